"""Student first, teacher for the images it is not sure of; predicting needs numpy alone."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kd_app.deployment.confidence import confidence, log_probabilities


class Stage(Protocol):
    """A model that answers ``uint8 images[B, C, H, W]`` with ``logits[B, classes]``."""

    def logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """The logits of a batch."""


@dataclass(frozen=True)
class Cascade:
    """Models from cheap to dear; an image goes on to the next while its confidence is below the threshold.

    thresholds: one for each stage but the last, finite. temperatures: one for each stage, for its confidence and its probability.
    """

    stages: Sequence[Stage]
    thresholds: tuple[float, ...]
    measure: str
    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        expected = (len(self.stages) - 1, len(self.stages))
        got = (len(self.thresholds), len(self.temperatures))
        if len(self.stages) < 2 or got != expected or not np.isfinite(self.thresholds).all():
            raise ValueError(
                "A cascade has two stages or more, a finite threshold for each but the last and a temperature for each; "
                f"got {len(self.stages)} stages, thresholds {self.thresholds}, temperatures {self.temperatures}."
            )

    def predict(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """Of each image: the class index, its probability, and the index of the stage that answered."""
        label, stage = np.zeros(len(images), dtype=np.int64), np.zeros(len(images), dtype=np.int64)
        probability = np.zeros(len(images), dtype=np.float64)
        left = np.arange(len(images))
        for index, model in enumerate(self.stages):
            if not len(left):
                break
            logits = model.logits(images[left])
            probabilities = np.exp(log_probabilities(logits, self.temperatures[index]))
            label[left], probability[left], stage[left] = logits.argmax(axis=-1), probabilities.max(axis=-1), index
            if index < len(self.thresholds):
                left = left[confidence(logits, self.measure, self.temperatures[index]) < self.thresholds[index]]
        return label, probability, stage

    def save(self, path: Path, files: Sequence[Path]) -> None:
        """Write cascade.json: the file of each stage relative to it with its sha256, and the settings."""
        if len(files) != len(self.stages):
            raise ValueError(f"A cascade of {len(self.stages)} stages is saved with a file for each, got {len(files)}.")
        root = path.resolve().parent
        stages = [{"file": Path(os.path.relpath(file.resolve(), root)).as_posix(), "sha256": _sha256(file)} for file in files]
        settings = {"measure": self.measure, "thresholds": list(self.thresholds), "temperatures": list(self.temperatures)}
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps({"stages": stages, **settings}, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, open_stage: Callable[[Path], Stage]) -> "Cascade":
        """The cascade of a cascade.json, its stages opened by `open_stage`.

        Raises:
            ValueError: a stage's file is not the one the thresholds were chosen for.
        """
        told = json.loads(path.read_text(encoding="utf-8"))
        files = [path.resolve().parent / each["file"] for each in told["stages"]]
        for file, each in zip(files, told["stages"], strict=True):
            if (got := _sha256(file)) != each["sha256"]:
                raise ValueError(
                    f"{file} has the sha256 {got}, and the thresholds of {path} were chosen for {each['sha256']}. "
                    "Put that file back, or choose the thresholds anew."
                )
        return cls([open_stage(file) for file in files], tuple(told["thresholds"]), told["measure"], tuple(told["temperatures"]))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
