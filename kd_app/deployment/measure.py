"""What a model answers on a split, and how many images it takes a second."""

import time
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors.numpy import load_file, save_file
from torch import nn

from kd_app.config import Pixels
from kd_app.data.batch import Batch
from kd_app.data.normalize import normalize

_FILE = "answers.safetensors"


@dataclass(frozen=True)
class Predictions:
    """Answers of one model on one split: ``index [N]``, ``target [N]``, ``logits [N, K]`` as float32."""

    index: Int64[np.ndarray, " images"]
    target: Int64[np.ndarray, " images"]
    logits: Float[np.ndarray, "images classes"]

    def save(self, folder: Path) -> None:
        """Write them into `folder`."""
        save_file({"index": self.index, "target": self.target, "logits": self.logits}, folder / _FILE)

    @staticmethod
    def load(folder: Path) -> "Predictions":
        """Read them from `folder`."""
        return Predictions(**load_file(folder / _FILE))


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    pixels: Pixels,
    *,
    device: torch.device,
    limit: float | None = None,
    say: Callable[[int], None] | None = None,
) -> Predictions:
    """The answers of `model`, in eval mode and float32, to all batches, or to the first `limit` of them (a number, or a share below 1)."""
    model = _placed(model, device)
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    with torch.inference_mode():
        for number, raw in enumerate(_limited(batches, limit)):
            batch = raw.to(device)
            image = normalize(batch.image, pixels, torch.channels_last) if batch.image.dtype == torch.uint8 else batch.image
            logits = model(image).float().cpu().numpy()
            rows.append((batch.index.cpu().numpy(), batch.hard_target().cpu().numpy(), logits))
            if say:
                say(number + 1)
    return Predictions(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _placed(model: nn.Module, device: torch.device) -> nn.Module:
    return model.eval().to(device).to(memory_format=torch.channels_last)


def _limited(batches: Iterable[Batch], limit: float | None) -> Iterable[Batch]:
    if limit is None:
        return batches
    size = len(batches) if isinstance(batches, Sized) else 0
    number = max(1, int(size * limit)) if isinstance(limit, float) and limit <= 1 else int(limit)
    return islice(batches, number)


@torch.inference_mode()
def images_per_second(
    models: Mapping[str, tuple[nn.Module, Pixels]], *, device: torch.device, batch: int = 64, seconds: float = 1.0
) -> dict[str, float]:
    """Throughput of each model in float32 on random pixels: the median over rounds in which the models take turns, so that the ratios hold
    on a machine whose speed drifts. `seconds` is about what each model gets.
    """
    ready = {name: (_placed(model, device), _noise(pixels, batch, device)) for name, (model, pixels) in models.items()}
    once = {name: _seconds(model, image, 1, device) for name, (model, image) in ready.items()}  # also the warm-up
    rounds = 5
    repeats = {name: max(1, int(seconds / rounds / max(once[name], 1e-6))) for name in ready}
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, (model, image) in ready.items():
            times[name].append(_seconds(model, image, repeats[name], device) / repeats[name])
    return {name: batch / float(np.median(taken)) for name, taken in times.items()}


def _noise(pixels: Pixels, batch: int, device: torch.device) -> torch.Tensor:
    image = torch.rand(batch, pixels.channels, pixels.height, pixels.width, generator=torch.Generator().manual_seed(0))
    return image.to(device, memory_format=torch.channels_last)


def _seconds(model: nn.Module, image: torch.Tensor, repeats: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        model(image)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
