"""``results.json``: the schema of a run's results, source of every table and plot."""

import json
import os
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import model_validator

from kd_app.config import RequestError, suggest_closest
from kd_app.config.links import check_links
from kd_app.config.records import load_record, parse_record
from kd_app.config.redact import hide_secrets
from kd_app.digest import SELF, seal
from kd_app.reporting.cascade_results import CascadeRecord
from kd_app.reporting.constraints import (
    Config,
    Count,
    Finite,
    NonNegative,
    OpenPart,
    Part,
    PathText,
    Rate,
    Size,
    check_lengths,
    check_models,
)
from kd_app.reporting.embedding_results import EmbeddingRecord
from kd_app.reporting.knowledge_results import Knowledge
from kd_app.reporting.metrics import Difference, Estimate, Split, Verdict
from kd_app.run_files import READ
from kd_app.stages import write_atomically

VERSION: Final = 1
_EXPECTED: Final = (
    f"Expected the results of a run, version {VERSION}, in the folder of the run. Run the same"
    " command again to rewrite the file; finished stages are kept."
)


TeacherLabels = Literal["same", "more", "unknown"]


class Data(OpenPart):
    """The data set of a run.

    name: of the data set · classes: names in the order of the logits; of images without
    classes none · sizes: number of
    images per split · fingerprint: sha256 of file names, labels and contents ·
    num_labeled: number of training images whose label is used, null: all ·
    teacher_labels: whether the teacher was trained on labels that the student does not
    see: 'same': on none of them, 'more', or 'unknown' for a teacher that is used as it
    is; null without a teacher, or if the student sees all labels.
    """

    name: str | None = None
    classes: list[str]
    sizes: dict[str, Count]
    fingerprint: str
    num_labeled: int | None = None
    teacher_labels: TeacherLabels | None = None


class ImageStatistics(Part):
    """The images to which models without a normalization or size of their own are
    fitted.

    channels, height, width: in pixels; files are resized to the input of each model ·
    mean, std: of each channel, in 0..1.
    """

    channels: Size
    height: Size
    width: Size
    mean: list[Finite]
    std: list[NonNegative]

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_lengths(self.channels, mean=self.mean, std=self.std)
        return self


class RefitRecord(Part):
    """The second training of a model, on train and validation (`data.refit`).

    images: number of images of both splits · epochs: those that validation chose in the
    first training.
    """

    images: int
    epochs: int


class TrainingRecord(Part):
    """How a model's training ended.

    epochs: number of completed epochs, fewer than max_epochs after an early stop ·
    best_epoch: the epoch (from 1) whose weights are exported · exported: the raw
    weights, or their moving average · refit: the second training, whose weights are
    exported instead.
    """

    epochs: Count | None = None
    max_epochs: Count | None = None
    best_epoch: Count | None = None
    exported: Literal["raw", "average"] = "raw"
    refit: RefitRecord | None = None


class ModelRecord(OpenPart):
    """One model of a run.

    params: number of parameter entries · macs: multiply-adds per image · size_bytes: on
    disk · license: of the weights; for the student, of the shipped weights · source:
    where the weights come from · sha256: of the weights (of the file's tensors, without
    its metadata) · weights: how the weights were loaded · training: how the training
    ended; null for a model that was not trained here.
    """

    name: str
    params: Count | None
    macs: Count | None
    size_bytes: Count
    license: str
    source: str
    sha256: str
    weights: dict[str, Any]
    training: TrainingRecord | None = None


class ModelSpeed(OpenPart):
    """Throughput of one model, measured in turns with the others."""

    images_per_second: Rate


class Speed(OpenPart):
    """Throughput of a run's models.

    teacher, student: inference · training_images_per_second: of the student's training,
    including the teacher's forward pass.
    """

    teacher: ModelSpeed | None = None
    student: ModelSpeed | None = None
    training_images_per_second: Rate = None


class LicenseRecord(Part):
    """Names of licenses, or 'unknown' ('none': random weights), and sentences about
    the licenses.

    teacher: of the teacher's weights · student_start: of the student's starting weights
    · data: of the images · ships: of the shipped student · forbidden: violations that
    were not accepted · unknown: terms that are unknown · accepted: violations that
    ``license.accept`` accepts · notices: notices that must be kept.
    """

    teacher: str | None = None
    student_start: str
    data: str
    ships: str
    forbidden: list[str] = []
    unknown: list[str] = []
    accepted: list[str] = []
    notices: list[str] = []


class StageRecord(Part):
    """A stage that the run uses.

    path: the stage's folder · seconds: duration of the computation · status: whether
    this run computed the stage or reused it from the cache.
    """

    name: str
    path: PathText
    seconds: NonNegative
    status: Literal["computed", "reused"]


class CompressionStep(Part):
    """One step of a compression, on validation. The last may be the alternative:
    another network of the same cost.

    top1: of the step's model · lost: accuracy (verdict.metric) of the step before minus
    that of this step, as a paired difference; null for the start · macs, params,
    size_bytes: as in models · latency_ms: median for one image on one thread, as an
    XNNPACK program · details: what the step reports.
    """

    name: str
    top1: Estimate
    lost: Difference | None = None
    macs: Count
    params: Count
    size_bytes: Count
    latency_ms: Rate = None
    details: dict[str, Any] = {}


class FileRecord(Part):
    """A file in the run's folder, with the sha256 of the file as written."""

    name: str
    sha256: str


class Results(Part):
    """One run; null or empty for what is not known yet.

    reason: why the run failed or was pruned (ended early in a sweep) · cautions:
    sentences to read before all others, such as about a teacher at chance ·
    image_stats: of the images for which the models were made, not of others that are
    measured later.
    """

    schema_version: Literal[1] = VERSION
    status: Literal["running", "finished", "failed", "pruned"]
    reason: str | None = None
    seed: int
    config: Config
    environment: dict[str, Any]
    data: Data | None = None
    image_stats: ImageStatistics | None = None
    license: LicenseRecord | None = None
    models: dict[str, ModelRecord] = {}
    validation: Split | None = None
    test: Split | None = None
    verdict: Verdict | None = None
    knowledge: Knowledge | None = None
    speed: Speed = Speed()
    steps: list[CompressionStep] = []
    cascade: CascadeRecord | None = None
    embedding: EmbeddingRecord | None = None
    stages: list[StageRecord] = []
    files: list[FileRecord] = []
    cautions: list[str] = []
    notes: list[str] = []

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Compare the parts with each other."""
        if self.models and (self.validation or self.test):
            check_models(("student",), models=self.models)
        cascade = list(self.cascade.splits.values()) if self.cascade else []
        if self.data is not None:
            classes = len(self.data.classes)
            for split in (self.validation, self.test, *cascade):
                if split is not None:
                    check_lengths(classes, support=split.per_class.support)
            if self.knowledge is not None:
                for matrix in (
                    self.knowledge.matrix,
                    *(each.matrix for each in self.knowledge.softened),
                ):
                    if matrix is not None:
                        check_lengths(classes, matrix=matrix)
        return self


def build_json_schema() -> dict[str, Any]:
    """The JSON Schema of ``results.json``."""
    schema = Results.model_json_schema(mode="serialization")
    schema["properties"][SELF] = {
        "description": "Hash of the other keys, as kd_app wrote them.",
        "type": "string",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write(path: Path, results: Results) -> None:
    """Write ``results.json`` atomically, as plain JSON with null for numbers that are
    not finite, with ``***`` for secrets in the configuration, and with its own hash.
    """
    content = json.loads(results.model_dump_json())
    content["config"] = hide_secrets(content["config"])
    write_atomically(path, json.dumps(seal(content), indent=1, ensure_ascii=False) + "\n")


def _build_missing_folder_error(folder: Path) -> RequestError:
    if folder.exists():
        return RequestError(
            f"{str(folder)!r} is a file. Expected the folder of a run: {str(folder.parent)!r}."
        )
    parent = folder.parent
    near = suggest_closest(folder.name, os.listdir(parent)) if parent.is_dir() else ""
    return RequestError(
        f"There is no folder {str(folder)!r}. {near}Expected the folder of a run, which kd-distill"
        " prints at its end."
    )


def read(path: Path) -> Results:
    """Read a ``results.json``.

    Raises `RequestError` if the file is missing, truncated, of another schema version,
    has changed since it was written, or does not fit the schema, or if a link leads
    out of the run's folder.
    """
    check_links(path.parent, READ)
    if not path.parent.is_dir():
        raise _build_missing_folder_error(path.parent)
    content = load_record(path, expected=_EXPECTED, is_sealed=True)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != VERSION:
        raise RequestError(
            f"{str(path)!r} has schema_version {version!r}, and this kd_app reads version"
            f" {VERSION}. Use the version of kd_app that wrote the file, or run the same command"
            " again to rewrite the file."
        )
    return parse_record(path, content, Results, expected=_EXPECTED)
