"""``results.json``: the schema of a run's results, source of every table and plot."""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from kd_app.config import RequestError
from kd_app.config.links import check_links
from kd_app.config.records import load_record, parse_record
from kd_app.config.redact import hide_secrets
from kd_app.digest import SELF, seal
from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.pair_metrics import PAIR_METRICS
from kd_app.metrics.spec import MetricSpec
from kd_app.reporting.constraints import (
    Config,
    Count,
    Finite,
    NonNegative,
    Number,
    PathText,
    Positive,
    Probability,
    Rate,
    Share,
    Size,
    check_lengths,
    check_models,
)
from kd_app.reporting.embedding_results import EmbeddingRecord
from kd_app.run_files import READ
from kd_app.stages import write_atomically

VERSION: Final = 1
_EXPECTED: Final = (
    f"Expected the results of a run, version {VERSION}, in the folder of the run. Run the same"
    " command again to rewrite the file; finished stages are kept."
)


class _Part(BaseModel):
    """Rejects unknown keys: no code would read a metric that is not declared."""

    model_config = ConfigDict(extra="forbid")


class _Open(BaseModel):
    """Allows further keys."""

    model_config = ConfigDict(extra="allow")


TeacherLabels = Literal["same", "more", "unknown"]


class Data(_Open):
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


class ImageStatistics(_Part):
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


class RefitRecord(_Part):
    """The second training of a model, on train and validation (`data.refit`).

    images: number of images of both splits · epochs: those that validation chose in the
    first training.
    """

    images: int
    epochs: int


class TrainingRecord(_Part):
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


class ModelRecord(_Open):
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


class Estimate(_Part):
    """A value and the ends of its interval."""

    value: Number
    low: Number = None
    high: Number = None


class _Metrics(_Part):
    """Values by metric name, each with the ends of its interval."""

    # `_declare` adds the fields from the list of metrics, which mypy can't see.
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> float | None: ...
        def __setattr__(self, name: str, value: float | None) -> None: ...

    def look_up(self, name: str) -> Estimate:
        """The metric `name` with its interval."""
        return Estimate(
            value=getattr(self, name),
            low=getattr(self, f"{name}_low"),
            high=getattr(self, f"{name}_high"),
        )


def _declare(specs: Sequence[MetricSpec[Any]]) -> Callable[[type[_Metrics]], Any]:
    """A decorator that adds three fields per metric: value and ends of the interval."""

    def extend(part: type[_Metrics]) -> Any:
        fields: dict[str, Any] = {
            f"{spec.name}{end}": (
                Share
                if specs is MODEL_METRICS and spec.format == "percent" and not end
                else Number,
                ... if spec.required else None,
            )
            for spec in specs
            for end in ("", "_low", "_high")
        }
        return create_model(
            part.__name__, __base__=part, __doc__=part.__doc__, __module__=part.__module__, **fields
        )

    return extend


@_declare(MODEL_METRICS)
class ModelMetrics(_Metrics):
    """The `MODEL_METRICS` of one model.

    Each is in 0..1 (nll in nats, brier in 0..2) and has the ends of its interval,
    except classwise_ece, which has no interval.
    """


@_declare(PAIR_METRICS)
class PairMetrics(_Metrics):
    """The `PAIR_METRICS`: the student against teacher and labels-only control, or the
    candidate of a cascade against the reference.

    A metric is null if it is undefined or if the run lacks a model that it needs.
    kl_to_teacher: KL(teacher || student), nats · reverse_kl: KL(student || teacher),
    nats · rank_correlation: Spearman's, in -1..1 · cka: in 0..1, without interval.
    """


class Difference(Estimate):
    """A metric of one model minus that of another on the same images, with the ends of
    the paired interval.
    """


class PerClass(_Part):
    """Metrics by class number, to 6 digits; null for a class without images.

    support: number of images · accuracy, f1: by model · negative_flips, positive_flips:
    shares of the class's images; empty without a teacher.
    """

    support: Annotated[list[Count], Field(min_length=1)]
    accuracy: dict[str, list[Share]]
    f1: dict[str, list[Share]]
    negative_flips: list[Share] = []
    positive_flips: list[Share] = []

    @model_validator(mode="after")
    def _check(self) -> Self:
        classes = len(self.support)
        check_lengths(classes, accuracy=self.accuracy, f1=self.f1)
        flips = {"negative_flips": self.negative_flips, "positive_flips": self.positive_flips}
        check_lengths(classes, **{name: values for name, values in flips.items() if values})
        return self


class Group(_Part):
    """Metrics on one group of the images, such as a camera or a site: top-1 of each
    model, and the student's agreement with the teacher.
    """

    num_images: Count
    accuracy: dict[str, Estimate]
    agreement: Number = None


class CorruptionMetrics(_Part):
    """Top-1 of each model on the same corrupted images, and the student's agreement
    with the teacher. severity: 1 to 5.
    """

    corruption: str
    severity: Annotated[int, Field(ge=1, le=5)]
    num_images: Count
    accuracy: dict[str, Share]
    agreement: Number = None


class Measurement(_Part):
    """Metrics of models on the same images.

    split: name of the measured split if it is not the key of this part · confidence: of
    all intervals · pair: metrics that compare the models · gains: the student's top1
    minus that of each control · groups: up to 100 groups with the most images;
    predictions.parquet has all.
    """

    split: str | None = None
    num_images: Count
    confidence: Probability
    pair: PairMetrics | None = None
    gains: dict[str, Difference] = {}
    per_class: PerClass
    groups: dict[str, Group] = {}
    robustness: list[CorruptionMetrics] = []

    def check_models(self, models: Collection[str]) -> None:
        """Raise `ValueError` unless each part has the metrics of these models."""
        if self.per_class.accuracy:
            check_models(models, accuracy=self.per_class.accuracy)
        for name, group in self.groups.items():
            check_models(models, **{f"groups.{name}": group.accuracy})


class Split(Measurement):
    """Metrics of a run's models on one split.

    Each further control has a key with its own name, next to labels_only.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ModelMetrics] = Field(init=False)

    teacher: ModelMetrics | None = None
    labels_only: ModelMetrics | None = None
    student: ModelMetrics

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.check_models(("student",))
        for each in self.robustness:
            check_models(("student",), **{f"robustness.{each.corruption}": each.accuracy})
        return self

    @property
    def by_model(self) -> dict[str, ModelMetrics]:
        """Metrics by role, in the order teacher, labels_only, further controls,
        student; only models that have metrics.
        """
        by_role = {
            "teacher": self.teacher,
            "labels_only": self.labels_only,
            **self.__pydantic_extra__,
            "student": self.student,
        }
        return {role: metrics for role, metrics in by_role.items() if metrics is not None}


class Verdict(_Part):
    """Outcome of the verdict rule that the config sets before the run: the fields of
    `kd_app.metrics.verdict.Judgment`, and the split.
    """

    outcome: Literal["kept", "lost", "not shown"]
    metric: Literal["top1", "balanced_accuracy", "worst_class"]
    margin: Probability
    confidence: Probability
    difference: Finite
    low: Finite
    high: Finite
    num_images: Count
    n_needed: Count | None
    mcnemar_p: Probability
    smallest_margin: Number = None
    split: str


class TeacherEntropy(_Part):
    """How soft the teacher's probabilities are at a temperature.

    mean_nats: mean entropy · of_uniform: mean entropy over ``log K`` · beyond_top: mean
    probability outside the top class.
    """

    temperature: NonNegative
    mean_nats: Number
    of_uniform: Number
    beyond_top: Number


def _check_square(matrix: list[list[float | None]]) -> list[list[float | None]]:
    check_lengths(len(matrix), **{f"row {number}": row for number, row in enumerate(matrix)})
    return matrix


Matrix = Annotated[list[list[Number]], AfterValidator(_check_square)]


class SimilarPair(_Part):
    """Two class names, and the mean probability of either class on the images of the
    other.
    """

    first: str
    second: str
    probability: Finite


class Similarity(_Part):
    """Class similarity according to the teacher at a temperature.

    similar: the strongest pairs · matrix: mean probabilities (columns) over the images
    of each class (rows), null for a class without images; no matrix above 100 classes.
    """

    temperature: NonNegative
    similar: list[SimilarPair]
    matrix: Matrix | None


class Knowledge(_Part):
    """The dark knowledge of the teacher: probabilities beyond the top class on the
    images of `split`.

    similar, matrix: at temperature 1 · softened: at the temperatures of the student's
    loss terms.
    """

    split: str
    num_images: Count
    entropy: list[TeacherEntropy]
    similar: list[SimilarPair]
    matrix: Matrix | None
    softened: list[Similarity] = []


class ModelSpeed(_Open):
    """Throughput of one model, measured in turns with the others."""

    images_per_second: Rate


class Speed(_Open):
    """Throughput of a run's models.

    teacher, student: inference · training_images_per_second: of the student's training,
    including the teacher's forward pass.
    """

    teacher: ModelSpeed | None = None
    student: ModelSpeed | None = None
    training_images_per_second: Rate = None


class LicenseRecord(_Part):
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


class StageRecord(_Part):
    """A stage that the run uses.

    path: the stage's folder · seconds: duration of the computation · status: whether
    this run computed the stage or reused it from the cache.
    """

    name: str
    path: PathText
    seconds: NonNegative
    status: Literal["computed", "reused"]


class CompressionStep(_Part):
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


class LatencyStats(_Part):
    """Milliseconds per image on one thread, end to end (resizing, cropping and all
    stages that the image passes), over `num_images` images.
    """

    mean: NonNegative
    p50: NonNegative
    p95: NonNegative
    p99: NonNegative
    num_images: Count


class CascadeStageRecord(_Part):
    """One stage of a cascade.

    file: as the config names the file · sha256: of the file · temperature: fitted on
    validation · validation, test: top-1 of the stage alone · cost_ms: mean time per
    validation image, from which the costs of rungs are computed · latency: on test
    images.
    """

    file: str
    sha256: str
    temperature: NonNegative
    validation: Estimate
    test: Estimate
    cost_ms: Positive
    latency: LatencyStats


class Rung(_Part):
    """A cascade at one set of thresholds.

    thresholds: null if a stage forwards all images or none · shares: of the images that
    reach each stage · better, worse: number of images that only the cascade, or only
    the last stage, classifies correctly · cost_ms: expected time per image · proven:
    the cascade is shown to lose no more than the margin.
    """

    thresholds: list[Number]
    shares: Annotated[list[Probability], Field(min_length=1)]
    accuracy: Probability
    better: Count
    worse: Count
    cost_ms: Positive
    proven: bool | None = None


class RoutingCurve(_Part):
    """All rungs of one measure of confidence on validation, from forwarding all images
    to forwarding none.

    chosen: index of the cheapest proven rung; null if none is cheaper than the last
    stage alone.
    """

    measure: str
    rungs: Annotated[list[Rung], Field(min_length=1)]
    chosen: Count | None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.chosen is not None and self.chosen >= len(self.rungs):
            raise ValueError(f"chosen={self.chosen} is not one of {len(self.rungs)} rungs")
        return self


class CascadeSplit(Measurement):
    """Metrics of a cascade on one split.

    candidate: the cascade, or the first stage if a single model is recommended ·
    reference: the last stage.
    """

    candidate: ModelMetrics
    reference: ModelMetrics

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.check_models(("candidate", "reference"))
        return self


class CascadeRecord(_Part):
    """The evaluation of a cascade.

    answer: what to ship: the cascade, or the first or the last stage alone · margin: of
    top-1 against the last stage · confidence: of the proof, for all measures together ·
    measure, thresholds: chosen on `num_images` validation images · test: the same
    thresholds on test · latency: of the cascade, measured; null if the cascade is not
    recommended · splits: metrics by split.
    """

    answer: Literal["cascade", "first", "last"]
    margin: Probability
    confidence: Probability
    num_images: Count
    measure: str
    thresholds: list[Number]
    stages: Annotated[list[CascadeStageRecord], Field(min_length=2)]
    curves: list[RoutingCurve]
    test: Rung
    latency: LatencyStats | None = None
    splits: dict[Literal["validation", "test"], CascadeSplit] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        stages = len(self.stages)
        check_lengths(stages - 1, thresholds=self.thresholds)
        for rung in (self.test, *(rung for curve in self.curves for rung in curve.rungs)):
            check_lengths(stages, shares=rung.shares)
            check_lengths(stages - 1, thresholds=rung.thresholds)
        chosen = {curve.measure: curve.chosen for curve in self.curves}
        if self.measure not in chosen:
            raise ValueError(f"measure={self.measure!r} has no curve")
        if self.answer == "cascade" and chosen[self.measure] is None:
            raise ValueError(f"the curve of {self.measure!r} has no chosen rung")
        return self


class FileRecord(_Part):
    """A file in the run's folder, with the sha256 of the file as written."""

    name: str
    sha256: str


class Results(_Part):
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


def read(path: Path) -> Results:
    """Read a ``results.json``.

    Raises `RequestError` if the file is missing, truncated, of another schema version,
    has changed since it was written, or does not fit the schema, or if a link leads
    out of the run's folder.
    """
    check_links(path.parent, READ)
    content = load_record(path, expected=_EXPECTED, is_sealed=True)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != VERSION:
        raise RequestError(
            f"{str(path)!r} has schema_version {version!r}, and this kd_app reads version"
            f" {VERSION}. Use the version of kd_app that wrote the file, or run the same command"
            " again to rewrite the file."
        )
    return parse_record(path, content, Results, expected=_EXPECTED)
