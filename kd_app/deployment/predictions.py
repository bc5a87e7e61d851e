"""What a model answers on a split, and how many images it takes a second."""

import math
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import partial
from itertools import islice

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from kd_app.config import InputSpec, RequestError
from kd_app.data.batch import Batch
from kd_app.data.normalize import normalize
from kd_app.deployment.artifact import Artifact
from kd_app.deployment.timing import time_interleaved
from kd_app.metrics.record import Predictions
from kd_app.models.taps import Taps

_KEPT = 2**25
"""So many numbers of a split's embeddings are kept at most: 128 MB, which is 16,384
images of a ResNet-50.
"""


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    pixels: InputSpec,
    *,
    device: torch.device,
    limit: float | None = None,
    embeddings: bool = False,
    say: Callable[[int], None] | None = None,
) -> Predictions:
    """The answers of `model`, in eval mode and float32, to all batches, or to the first
    `limit` of them (a number, or a share below 1).

    With `embeddings`, what its classifier was given comes with them, from the same
    forward pass.
    """
    model = _place_model(model, device)
    taps = Taps(model, frozenset({"logits"}))
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    seen = step = 0
    with torch.inference_mode():
        for number, raw in enumerate(limit_batches(batches, limit)):
            batch = raw.to(device)
            image = (
                normalize(batch.image, pixels, torch.channels_last)
                if batch.image.dtype == torch.uint8
                else batch.image
            )
            if embeddings and not number:
                taps = _with_embedding(model, image) or taps
            outputs = taps(image)
            assert outputs.logits is not None
            rows.append(
                (
                    batch.index.cpu().numpy(),
                    batch.to_hard_target().cpu().numpy(),
                    outputs.logits.float().cpu().numpy(),
                )
            )
            if outputs.embedding is not None:
                step = step or _step(batches, len(batch), outputs.embedding.shape[1])
                first = -seen % step
                kept.append(
                    (
                        outputs.embedding[first::step].float().cpu().numpy(),
                        np.arange(seen + first, seen + len(batch), step),
                    )
                )
            seen += len(batch)
            if say:
                say(number + 1)
    return Predictions(
        *(
            np.concatenate(column)
            for columns in (rows, kept)
            for column in zip(*columns, strict=True)
        )
    )


def predict_with_artifact(
    model: Artifact, batches: Iterable[Batch], *, limit: float | None = None
) -> Predictions:
    """The answers of an exported file to all batches, or to the first `limit` of them,
    in its own runtime. Raises `RequestError` as `to_uint8_input`.
    """
    rows = [
        (
            batch.index.numpy(),
            batch.to_hard_target().numpy(),
            model.infer_logits(to_uint8_input(batch.image, model.pixels)),
        )
        for batch in limit_batches(batches, limit)
    ]
    return Predictions(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def to_uint8_input(
    image: torch.Tensor, pixels: InputSpec
) -> UInt8[np.ndarray, "batch channels height width"]:
    """The images of a batch as an exported file takes them: a gray one is repeated
    where the model wants color.

    Raises `RequestError` for images that are not 8-bit ones any more, such as those
    that somebody's own data module has normalized.
    """
    if image.dtype != torch.uint8:
        raise RequestError(
            f"The data give images of {image.dtype}; exported files normalize by themselves and"
            " take uint8 images. Let data give uint8 images (0 to 255)."
        )
    found: np.ndarray = image.expand(-1, pixels.channels, -1, -1).contiguous().numpy()
    return found


def _with_embedding(model: nn.Module, image: torch.Tensor) -> Taps | None:
    """What reads logits and embedding in one pass, if the model has one."""
    taps = Taps(model, frozenset({"logits", "embedding"}))
    try:
        taps(image[:1])
    except Exception:  # whatever somebody's own module does when it is looked into: its answers are wanted all the same
        return None
    return taps


def _step(batches: Iterable[Batch], batch_size: int, width: int) -> int:
    """Of so many images one embedding is kept: a power of two, so that two models' have
    images in common.
    """
    images = len(batches) * batch_size if isinstance(batches, Sized) else 0
    return 1 << max(0, math.ceil(math.log2(max(1, images * width) / _KEPT)))


def _place_model(model: nn.Module, device: torch.device) -> nn.Module:
    return model.eval().to(device).to(memory_format=torch.channels_last)


def limit_batches(batches: Iterable[Batch], limit: float | None) -> Iterable[Batch]:
    """All batches, or the first `limit` of them (a number, or a share below 1)."""
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
    """Throughput of each model in float32 on random pixels: the median over rounds in
    which the models take turns, so that the ratios hold on a machine whose speed
    drifts. `seconds` is about what each model gets.
    """
    ready = {
        name: (_place_model(model, device), _make_noise(pixels, batch, device))
        for name, (model, pixels) in models.items()
    }

    def calls(repeats: Mapping[str, int]) -> dict[str, Callable[[], None]]:
        return {
            name: partial(_run_model, model, image, repeats[name], device)
            for name, (model, image) in ready.items()
        }

    single = dict.fromkeys(ready, 1)
    once = time_interleaved(calls(single), rounds=1, repeats=single)  # also the warm-up
    rounds = 5
    repeats = {name: max(1, int(seconds / rounds / max(once[name].item(), 1e-6))) for name in ready}
    times = time_interleaved(calls(repeats), rounds=rounds, repeats=single)
    return {name: batch * repeats[name] / float(np.median(taken)) for name, taken in times.items()}


def _make_noise(pixels: InputSpec, batch: int, device: torch.device) -> torch.Tensor:
    image = torch.rand(
        batch,
        pixels.channels,
        pixels.height,
        pixels.width,
        generator=torch.Generator().manual_seed(0),
    )
    return image.to(device, memory_format=torch.channels_last)


def _run_model(model: nn.Module, image: torch.Tensor, repeats: int, device: torch.device) -> None:
    for _ in range(repeats):
        model(image)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
