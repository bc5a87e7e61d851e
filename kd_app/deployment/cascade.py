"""Cascades: a small model first, larger models for the images with low confidence.

Prediction needs numpy only.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kd_app.config.errors import RequestError
from kd_app.config.pixels import Decoding
from kd_app.config.records import load_record, parse_with
from kd_app.deployment.confidence import MEASURES, compute_confidence, compute_log_probabilities
from kd_app.deployment.logits import number_images
from kd_app.deployment.manifest import describe_decoding, parse_decoding
from kd_app.digest import hash_file, seal
from kd_app.stages import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image


_LARGEST = 1e6
"""Bound of thresholds and temperatures."""


class LogitsModel(Protocol):
    """A model that maps ``uint8 images[B, C, H, W]`` to ``logits[B, classes]``."""

    def infer_logits(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Compute the logits of a batch."""


class ImageStage(LogitsModel, Protocol):
    """A stage of a cascade, which also prepares images."""

    def prepare_image(
        self, image: "Image", decoding: Decoding | None = None, /
    ) -> NDArray[np.uint8]:
        """Convert an opened image to the ``[C, H, W]`` that the model expects.

        decoding: how to decode; None: as in the run that wrote the model.
        """


Images = NDArray[np.uint8] | Sequence["Image"]
"""An array ``[B, C, H, W]`` for all stages, or images that each stage prepares."""


@dataclass(frozen=True)
class ModelCascade:
    """Models from cheap to expensive.

    An image is forwarded to the next stage if its confidence is below the threshold.

    thresholds: one for each stage but the last, finite · measure: confidence measure
    (`kd_app.deployment.confidence.compute_confidence`) · temperatures: one for each
    stage, for confidence and probability · decoding: how images were decoded when the
    thresholds were chosen; None: each stage decodes as in its own run.
    """

    stages: Sequence[ImageStage]
    thresholds: tuple[float, ...]
    measure: str
    temperatures: tuple[float, ...]
    decoding: Decoding | None = None

    def __post_init__(self) -> None:
        expected = (len(self.stages) - 1, len(self.stages))
        lengths = (len(self.thresholds), len(self.temperatures))
        if len(self.stages) < 2 or lengths != expected or not np.isfinite(self.thresholds).all():
            raise ValueError(
                "A cascade needs at least two stages, a finite threshold for each stage but the"
                " last, and a temperature for each stage; got"
                f" {len(self.stages)} stages, thresholds {self.thresholds}, temperatures"
                f" {self.temperatures}."
            )

    def infer(self, images: Images) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Run the stages on the images.

        Returns ``log softmax(logits / temperature)`` ``[B, classes]`` of the final
        stage of each image, and the index of that stage ``[B]``.
        """
        rows, stage = np.arange(len(images)), np.zeros(len(images), dtype=np.int64)
        log_p: NDArray[np.float64] | None = None
        for index, model in enumerate(self.stages):
            if index and not len(rows):
                break
            temperature = self.temperatures[index]
            with number_images(rows):
                logits = model.infer_logits(prepare_batch(images, rows, model, self.decoding))
            if log_p is None:
                log_p = np.zeros(logits.shape)
            log_p[rows], stage[rows] = compute_log_probabilities(logits, temperature), index
            if index < len(self.thresholds):
                confidence = compute_confidence(logits, self.measure, temperature)
                rows = rows[confidence < self.thresholds[index]]
        assert log_p is not None
        return log_p, stage

    def predict(
        self, images: Images
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """Predict class index, its probability and the final stage of each image."""
        log_p, stage = self.infer(images)
        return log_p.argmax(axis=-1), np.exp(log_p.max(axis=-1)), stage

    def save(self, path: Path, files: Sequence[Path]) -> None:
        """Write cascade.json with the settings and the stages' files.

        Each file has a relative path and a sha256.
        """
        if len(files) != len(self.stages):
            raise ValueError(
                f"A cascade of {len(self.stages)} stages needs as many files, got {len(files)}."
            )
        root = path.resolve().parent
        stages = [
            {
                "file": Path(os.path.relpath(file.resolve(), root)).as_posix(),
                "sha256": hash_file(file),
            }
            for file in files
        ]
        settings: dict[str, Any] = {
            "measure": self.measure,
            "thresholds": list(self.thresholds),
            "temperatures": list(self.temperatures),
        }
        if self.decoding is not None:
            settings["decoding"] = describe_decoding(self.decoding)
        text = json.dumps(seal({"stages": stages, **settings}), indent=2, allow_nan=False)
        write_atomically(path, f"{text}\n")

    @classmethod
    def load(cls, path: Path, open_stage: "Callable[[Path], ImageStage]") -> "ModelCascade":
        """Load a cascade.json; `open_stage` opens the file of each stage.

        `kd_app.deployment.artifact.open_artifact` is such a function.

        Raises:
            ValueError: the file is not a cascade.json, the file of a stage is missing
                or was changed, or the stages have different classes or orders of
                classes.
        """
        record = _read(path)
        files = [path.resolve().parent / each["file"] for each in record["stages"]]
        for file, each in zip(files, record["stages"], strict=True):
            if not _is_file(file):
                raise RequestError(
                    f"{str(path)!r} needs the file {str(file)!r}, which does not exist. Restore the"
                    " file."
                )
            if (sha256 := hash_file(file)) != each["sha256"]:
                raise RequestError(
                    f"{str(file)!r} has the sha256 {sha256}, but the thresholds of"
                    f" {str(path)!r} were chosen for {each['sha256']!r}. Restore that file, or"
                    " choose the thresholds again with kd-evaluate."
                )
        stages = [open_stage(file) for file in files]
        classes = [getattr(stage, "classes", None) for stage in stages]
        if any(each != classes[0] for each in classes):
            raise ValueError(
                f"The stages of {str(path)!r} must have the same classes in the same order. Choose"
                " the cascade again with kd-evaluate."
            )
        thresholds, temperatures = tuple(record["thresholds"]), tuple(record["temperatures"])
        return cls(stages, thresholds, record["measure"], temperatures, record["decoding"])


def prepare_batch(
    images: Images, rows: NDArray[np.int64], model: ImageStage, decoding: Decoding | None = None
) -> NDArray[np.uint8]:
    """Prepare the images `rows` for `model`, ``uint8 [B, C, H, W]``."""
    if isinstance(images, np.ndarray):
        return images[rows]
    return np.stack([model.prepare_image(images[row], decoding) for row in rows.tolist()])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def _read(path: Path) -> dict[str, Any]:
    """Read a cascade.json and check its structure."""
    expected = (
        "Expected a cascade.json from kd-evaluate with stages, thresholds, temperatures and a known"
        " measure. Write it again with kd-evaluate."
    )
    record = load_record(path, expected=expected, is_sealed=True)

    def parse() -> dict[str, Any]:
        stages = len(record["stages"])
        for each in record["stages"]:
            if not isinstance(each["file"], str) or not isinstance(each["sha256"], str):
                raise ValueError(f"a stage of {each!r}")
        thresholds, temperatures = record["thresholds"], record["temperatures"]
        for number in (*thresholds, *temperatures):
            if not isinstance(number, int | float) or abs(number) > _LARGEST:
                raise ValueError(f"{number!r} is not a threshold or temperature")
        if record["measure"] not in MEASURES or min(temperatures) <= 0:
            raise ValueError(f"measure {record['measure']!r}, temperatures {temperatures}")
        if stages < 2 or (len(thresholds), len(temperatures)) != (stages - 1, stages):
            raise ValueError(
                f"{stages} stages, {len(thresholds)} thresholds, {len(temperatures)} temperatures"
            )
        decoding = parse_decoding(record["decoding"]) if "decoding" in record else None
        return {**record, "decoding": decoding}

    return parse_with(path, parse, expected=expected)
