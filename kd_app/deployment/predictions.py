"""Predictions of a model on a split, and throughput."""

import math
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from kd_app.config import InputSpec, RequestError
from kd_app.data.batch import Batch
from kd_app.data.normalize import normalize
from kd_app.deployment.cascade import LogitsModel
from kd_app.deployment.logits import LogitsBuffer, number_images
from kd_app.deployment.timing import time_interleaved
from kd_app.metrics.record import Predictions
from kd_app.models.taps import Taps

_MAX_EMBEDDING_VALUES = 2**25
"""Maximum size of a split's embeddings: 128 MB, or 16,384 images of a ResNet-50."""


class UInt8Classifier(LogitsModel, Protocol):
    """A model that takes uint8 images, such as an `Artifact`."""

    @property
    def pixels(self) -> InputSpec:
        """The images that the model accepts."""


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    input_spec: InputSpec,
    *,
    device: torch.device,
    limit: float | None = None,
    embeddings: bool = False,
    spool: Path | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Predictions:
    """Predict all batches in eval mode and float32.

    limit: number, or share below 1, of the batches to use · embeddings: also return the
    inputs of the final linear layer, from the same forward pass · spool: folder for a
    temporary file of logits, which then never are in memory as a whole · on_batch:
    called with the number of finished batches. NaN and infinite logits are returned as
    they are.
    """
    model = _place_model(model, device)
    taps = Taps(model, frozenset({"logits"}))
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    logits = LogitsBuffer(spool)
    embedding_rows: list[tuple[np.ndarray, np.ndarray]] = []
    count = step = 0
    with torch.inference_mode():
        for number, raw in enumerate(limit_batches(batches, limit)):
            batch = raw.to(device)
            image = (
                normalize(batch.image, input_spec, torch.channels_last)
                if batch.image.dtype == torch.uint8
                else batch.image
            )
            if embeddings and not number:
                taps = _build_embedding_taps(model, image) or taps
            outputs = taps(image)
            assert outputs.logits is not None
            rows.append((batch.index.cpu().numpy(), batch.to_hard_target().cpu().numpy()))
            logits.append(outputs.logits.float().cpu().numpy())
            if outputs.embedding is not None:
                step = step or _compute_step(batches, len(batch), outputs.embedding.shape[1])
                first = -count % step
                embedding_rows.append(
                    (
                        outputs.embedding[first::step].float().cpu().numpy(),
                        np.arange(count + first, count + len(batch), step),
                    )
                )
            count += len(batch)
            if on_batch:
                on_batch(number + 1)
    index, target = (np.concatenate(column) for column in zip(*rows, strict=True))
    kept = (np.concatenate(column) for column in zip(*embedding_rows, strict=True))
    return Predictions(index, target, logits.read(), *kept)


def predict_with_artifact(
    model: UInt8Classifier,
    batches: Iterable[Batch],
    *,
    limit: float | None = None,
    spool: Path | None = None,
) -> Predictions:
    """Predict all batches, or the first `limit` of them, with an exported file.

    spool: as for `predict`. Raises `RequestError` as `to_uint8_input` and
    `Artifact.infer_logits`.
    """
    rows, logits = [], LogitsBuffer(spool)
    for batch in limit_batches(batches, limit):
        numbers = batch.index.numpy()
        with number_images(numbers):
            logits.append(model.infer_logits(to_uint8_input(batch.image, model.pixels)))
        rows.append((numbers, batch.to_hard_target().numpy()))
    index, target = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Predictions(index, target, logits.read())


def to_uint8_input(
    image: torch.Tensor, input_spec: InputSpec
) -> UInt8[np.ndarray, "batch channels height width"]:
    """Convert the images of a batch to the input of an exported file.

    Gray images are repeated for a color model. Raises `RequestError` for images other
    than uint8, such as those that an external data module has normalized.
    """
    if image.dtype != torch.uint8:
        raise RequestError(
            f"The data module returned images of type {image.dtype}. Exported files normalize their"
            " input and need uint8 images: return uint8 values (0 to 255) from the data module."
        )
    batch: np.ndarray = image.expand(-1, input_spec.channels, -1, -1).contiguous().numpy()
    return batch


def _build_embedding_taps(model: nn.Module, image: torch.Tensor) -> Taps | None:
    """Build taps for logits and embedding; None if the model has no embedding."""
    taps = Taps(model, frozenset({"logits", "embedding"}))
    try:
        taps(image[:1])
    except Exception:
        # A user-provided module may fail in any way here. The logits are needed anyway.
        return None
    return taps


def _compute_step(batches: Iterable[Batch], batch_size: int, width: int) -> int:
    """Every how many images to store an embedding.

    The step is a power of two, so that the records of two models have common images.
    """
    images = len(batches) * batch_size if isinstance(batches, Sized) else 0
    return 1 << max(0, math.ceil(math.log2(max(1, images * width) / _MAX_EMBEDDING_VALUES)))


def _place_model(model: nn.Module, device: torch.device) -> nn.Module:
    return model.eval().to(device).to(memory_format=torch.channels_last)


def limit_batches(batches: Iterable[Batch], limit: float | None) -> Iterable[Batch]:
    """Return the first `limit` batches (a number, or a share below 1), or all."""
    if limit is None:
        return batches
    size = len(batches) if isinstance(batches, Sized) else 0
    number = max(1, int(size * limit)) if isinstance(limit, float) and limit <= 1 else int(limit)
    return islice(batches, number)


@torch.inference_mode()
def measure_throughput(
    models: Mapping[str, tuple[nn.Module, InputSpec]],
    *,
    device: torch.device,
    batch: int = 64,
    seconds: float = 1.0,
) -> dict[str, float]:
    """Measure images per second of each model, in float32 on random pixels.

    The models take turns in several rounds, so that ratios stay valid on a machine
    whose speed drifts; the result is the median over rounds. `seconds` is the
    approximate time per model.
    """
    inputs = {
        name: (_place_model(model, device), _make_noise(input_spec, batch, device))
        for name, (model, input_spec) in models.items()
    }

    def build_calls(repeats: Mapping[str, int]) -> dict[str, Callable[[], None]]:
        return {
            name: partial(_run_model, model, image, repeats[name], device)
            for name, (model, image) in inputs.items()
        }

    rounds = 5
    once = dict.fromkeys(inputs, 1)
    # The trial is also the warm-up.
    trial = time_interleaved(build_calls(once), rounds=1, repeats=once)
    repeats = {
        name: max(1, int(seconds / rounds / max(times.item(), 1e-6)))
        for name, times in trial.items()
    }
    measured = time_interleaved(build_calls(repeats), rounds=rounds, repeats=once)
    return {
        name: batch * repeats[name] / float(np.median(times)) for name, times in measured.items()
    }


def _make_noise(input_spec: InputSpec, batch: int, device: torch.device) -> torch.Tensor:
    shape = (batch, input_spec.channels, input_spec.height, input_spec.width)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return image.to(device, memory_format=torch.channels_last)


def _run_model(model: nn.Module, image: torch.Tensor, repeats: int, device: torch.device) -> None:
    for _ in range(repeats):
        model(image)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
