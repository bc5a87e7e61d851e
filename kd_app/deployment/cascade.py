"""Student first, teacher for the images it is not sure of; predicting needs numpy
alone.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kd_app.deployment.confidence import MEASURES, compute_confidence, log_probabilities
from kd_app.deployment.manifest import hash_file

if TYPE_CHECKING:
    from PIL.Image import Image


class CascadeStage(Protocol):
    """A model that answers ``uint8 images[B, C, H, W]`` with ``logits[B, classes]``."""

    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """The logits of a batch."""


class ImageStage(CascadeStage, Protocol):
    """A stage that makes its own input of an image."""

    def prepare_image(self, image: "Image", /) -> NDArray[np.uint8]:
        """``[C, H, W]``, resized and cropped as the model expects it."""


Images = NDArray[np.uint8] | Sequence["Image"]
"""``[B, C, H, W]`` as all stages expect them, or images that each stage resizes and
crops itself.
"""


@dataclass(frozen=True)
class Cascade:
    """Models from cheap to dear; an image goes on to the next while its confidence is
    below the threshold.

    thresholds: one for each stage but the last, finite. temperatures: one for each
    stage, for its confidence and its probability.
    """

    stages: Sequence[ImageStage]
    thresholds: tuple[float, ...]
    measure: str
    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        expected = (len(self.stages) - 1, len(self.stages))
        got = (len(self.thresholds), len(self.temperatures))
        if len(self.stages) < 2 or got != expected or not np.isfinite(self.thresholds).all():
            raise ValueError(
                "A cascade has two stages or more, a finite threshold for each but the last and a"
                f" temperature for each; got {len(self.stages)} stages, thresholds"
                f" {self.thresholds}, temperatures {self.temperatures}."
            )

    def infer(self, images: Images) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Of each image: ``log softmax(logits / temperature)`` of the stage that
        answered, ``[B, classes]``, and the index of that stage.
        """
        left, stage = np.arange(len(images)), np.zeros(len(images), dtype=np.int64)
        answers: NDArray[np.float64] | None = None
        for index, model in enumerate(self.stages):
            if index and not len(left):
                break
            logits = model.infer_logits(prepare_batch(images, left, model))
            if answers is None:
                answers = np.zeros(logits.shape)
            answers[left], stage[left] = log_probabilities(logits, self.temperatures[index]), index
            if index < len(self.thresholds):
                left = left[
                    compute_confidence(logits, self.measure, self.temperatures[index])
                    < self.thresholds[index]
                ]
        assert answers is not None
        return answers, stage

    def predict(
        self, images: Images
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """Of each image: the class index, its probability, and the index of the stage
        that answered.
        """
        answers, stage = self.infer(images)
        return answers.argmax(axis=-1), np.exp(answers.max(axis=-1)), stage

    def save(self, path: Path, files: Sequence[Path]) -> None:
        """Write cascade.json: the file of each stage relative to it with its sha256,
        and the settings.
        """
        if len(files) != len(self.stages):
            raise ValueError(
                f"A cascade of {len(self.stages)} stages is saved with a file for each, got"
                f" {len(files)}."
            )
        root = path.resolve().parent
        stages = [
            {
                "file": Path(os.path.relpath(file.resolve(), root)).as_posix(),
                "sha256": hash_file(file),
            }
            for file in files
        ]
        settings = {
            "measure": self.measure,
            "thresholds": list(self.thresholds),
            "temperatures": list(self.temperatures),
        }
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(
            json.dumps({"stages": stages, **settings}, indent=2, allow_nan=False) + "\n",
            encoding="utf-8",
        )
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, open_stage: "Callable[[Path], ImageStage]") -> "Cascade":
        """The cascade of a cascade.json, its stages opened by `open_stage`, such as
        `kd_app.deployment.artifact.open_artifact`.

        Raises:
            ValueError: it is no cascade.json, a stage's file is not there or not the
            one the thresholds were chosen for, or the stages have other
                classes, or the same in another order.
        """
        told = _read(path)
        files = [path.resolve().parent / each["file"] for each in told["stages"]]
        for file, each in zip(files, told["stages"], strict=True):
            if not file.is_file():
                raise ValueError(
                    f"{str(path)!r} names the stage {each['file']!r}, and there is no"
                    f" {str(file)!r}. Put that file back."
                )
            if (got := hash_file(file)) != each["sha256"]:
                raise ValueError(
                    f"{file} has the sha256 {got}, and the thresholds of {path} were chosen for"
                    f" {each['sha256']}. Put that file back, or choose the thresholds anew."
                )
        stages = [open_stage(file) for file in files]
        classes = [getattr(stage, "classes", None) for stage in stages]
        if any(each != classes[0] for each in classes):
            raise ValueError(
                f"The stages of {str(path)!r} do not know the same classes in the same order."
                " Choose the cascade anew with kd-evaluate."
            )
        return cls(stages, tuple(told["thresholds"]), told["measure"], tuple(told["temperatures"]))


def prepare_batch(images: Images, rows: NDArray[np.int64], model: ImageStage) -> NDArray[np.uint8]:
    """The images `rows` as `model` expects them, ``uint8 [B, C, H, W]``."""
    return (
        images[rows]
        if isinstance(images, np.ndarray)
        else np.stack([model.prepare_image(images[row]) for row in rows.tolist()])
    )


def _read(path: Path) -> dict[str, Any]:
    """What a cascade.json says, as far as its shape goes."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        for each in told["stages"]:
            _ = str(each["file"]), str(each["sha256"])
        numbers = [float(number) for number in (*told["thresholds"], *told["temperatures"])]
        if told["measure"] not in MEASURES or not np.isfinite(numbers).all():
            raise ValueError(f"measure {told['measure']!r}, thresholds and temperatures {numbers}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is no cascade that can be read ({type(error).__name__}: {error})."
            " Expected: a cascade.json as kd-evaluate writes it, with stages, thresholds,"
            " temperatures and a known measure. Write it anew with kd-evaluate."
        ) from None
    return dict(told)
