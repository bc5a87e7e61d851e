"""Content of a report as plain data, written to ``report.json``. Page, CSV and Markdown
are views of this data and add no numbers.

A ``serialization_alias`` is the key in ``report.json`` where the key differs from the
attribute.
"""

from typing import Final, Literal

from pydantic import Field

from kd_app.metrics.model_pair import CASCADE, DISTILLATION, ModelPair
from kd_app.metrics.spec import Format
from kd_app.reporting.cascade_results import CascadeRecord
from kd_app.reporting.constraints import Number, Part
from kd_app.reporting.embedding_map import MapRow
from kd_app.reporting.embedding_results import EmbeddingRecord
from kd_app.reporting.embedding_table import EmbeddingTable
from kd_app.reporting.knowledge_results import Knowledge
from kd_app.reporting.metrics import CorruptionMetrics, Estimate, Group, Verdict
from kd_app.reporting.results import CompressionStep

VERSION: Final = 1


class ModelPart(Part):
    """One model of a run.

    params: number of parameters · macs: multiply-adds per image · size_bytes: on disk ·
    metrics: by name, as in ``results.json``.
    """

    role: str
    label: str
    name: str
    license: str
    params: int | None
    macs: int | None
    size_bytes: int | None
    images_per_second: Number
    metrics: dict[str, Estimate] = Field(serialization_alias="figures")


class PairPart(Part):
    """A metric that compares the student with its teacher or with a control.

    unit: the `format` of the `MetricSpec`.
    """

    key: str
    name: str
    meaning: str
    unit: Format
    estimate: Estimate = Field(serialization_alias="figure")


class Curve(Part):
    """One metric of one training: one value per epoch."""

    role: str
    metric: str
    epochs: list[float]
    values: list[Number]


class ClassPart(Part):
    """One class.

    support: number of images · accuracy: by model · change: student minus teacher, null
    without a teacher.
    """

    name: str
    support: int
    accuracy: dict[str, Number]
    f1: dict[str, Number] = {}
    change: Number = None
    negative_flips: Number = None
    positive_flips: Number = None


class ConfusedPair(Part):
    """Images of class `label` that the model predicts as class `predicted`.

    share: of the images of `label`.
    """

    label: str
    predicted: str = Field(serialization_alias="answer")
    count: int
    share: float


class Confusion(Part):
    """Predictions of the student by label.

    counts: rows are labels, columns are predictions; null where there are too many
    classes to show · strongest: the most frequent errors.
    """

    classes: list[str]
    counts: list[list[int]] | None
    strongest: list[ConfusedPair]


class Bin(Part):
    """Images whose top-1 probability is in one bin.

    count: number of images · confidence: mean top-1 probability.
    """

    count: int
    confidence: float
    accuracy: float


class Reliability(Part):
    """Calibration of one model."""

    role: str
    ece: Estimate
    bins: list[Bin]


class PredictionPart(Part):
    """Prediction of one model for one image, with the probability of that class."""

    role: str
    predicted: str = Field(serialization_alias="said")
    probability: Number


class ExamplePart(Part):
    """One example image.

    why: reason for showing the image · image: PNG as base64, null without a thumbnail ·
    probabilities: of `classes`, by role · divergence: KL(teacher || student).
    """

    index: int
    file: str
    label: str
    why: str
    image: str | None = None
    predictions: list[PredictionPart] = Field(serialization_alias="answers")
    classes: list[str] = []
    probabilities: dict[str, list[float]] = {}
    divergence: Number = None


class Point(Part):
    """Accuracy and cost of one model."""

    run: str
    role: str
    name: str
    top1: Estimate
    images_per_second: Number
    size_bytes: int | None
    macs: int | None


class Provenance(Part):
    """Configuration, data and environment of a run.

    settings: the main settings · config: all settings by dotted key · stages: name,
    seconds, and whether this run computed or reused the stage.
    """

    settings: dict[str, str]
    data: dict[str, str]
    environment: dict[str, str]
    stages: list[tuple[str, float, str]]
    config: dict[str, str]


class NeighborPart(Part):
    """The nearest images of a query by one model. png: base64."""

    role: str
    files: list[str]
    png: list[str | None]


class QueryPart(Part):
    """A held-out image with its nearest images by each model. overlap: share of the
    teacher's neighbors that the student finds.
    """

    file: str
    overlap: float
    png: str | None
    models: list[NeighborPart]


class RunPart(Part):
    """All details of one run.

    gains: sentences about what distillation gained · missing: what the page leaves out,
    and why.
    """

    name: str
    title: str
    status: str
    seed: int
    question: str
    answer: str
    basis: list[str]
    split: str | None
    num_images: int | None
    confidence: float | None
    verdict: Verdict | None
    models: list[ModelPart]
    pair: list[PairPart]
    gains: list[str] = Field([], serialization_alias="worth")
    curves: list[Curve] = []
    classes: list[ClassPart] = []
    confusion: Confusion | None = None
    reliability: list[Reliability] = []
    examples: list[ExamplePart] = []
    knowledge: Knowledge | None = None
    license: list[str] = []
    groups: dict[str, Group] = {}
    robustness: list[CorruptionMetrics] = []
    steps: list[CompressionStep] = []
    cascade: CascadeRecord | None = None
    cascade_details: list[str] = Field([], serialization_alias="cascade_says")
    embedding: EmbeddingRecord | None = None
    embedding_table: EmbeddingTable | None = None
    embedding_sentences: list[str] = []
    neighbors: list[QueryPart] = Field([], exclude=True)
    map: list[MapRow] = Field([], exclude=True)
    provenance: Provenance
    limits: list[str]
    missing: list[str] = []

    @property
    def compared(self) -> ModelPair:
        """Roles of the two models that the page compares."""
        return DISTILLATION if self.cascade is None else CASCADE


class RunRow(Part):
    """One run in the table of all runs.

    differs: the settings that not all runs share · best: selected on validation among
    the runs on the same data.
    """

    name: str
    differs: dict[str, str]
    seed: int | None
    status: str
    reason: str | None = None
    best: bool = False
    outcome: str | None = None
    validation: Estimate | None = None
    test: Estimate | None = None
    teacher: Estimate | None = None
    gain: Estimate | None = None


class SeedStatistics(Part):
    """A metric of one method over seeds.

    values: by seed · estimate: the mean with its t-interval.
    """

    values: dict[int, float]
    estimate: Estimate = Field(serialization_alias="figure")
    p: Number = None
    corrected: Number = None


class MethodPart(Part):
    """One configuration with its seeds.

    runs: by seed · gain, to_teacher, to_baseline: the student minus the control without
    a teacher, minus the teacher, and minus the student of the baseline.
    """

    label: str
    runs: dict[int, str]
    verdicts: dict[int, str]
    validation: SeedStatistics | None
    test: SeedStatistics | None
    gain: SeedStatistics | None
    to_teacher: SeedStatistics | None
    to_baseline: SeedStatistics | None


class ComparisonPart(Part):
    """Comparison of the methods on one set of images by `kd_app.reporting.comparison`.

    metric: its name · control: what was trained without the teacher · has_teacher:
    whether the teacher has a value of the metric.
    sentences: each states whether the comparison is of methods or of models.
    """

    data: str
    metric: str
    control: str
    has_teacher: bool
    split: str
    confidence: float
    correction: str
    baseline: str | None
    winner: str | None
    methods: list[MethodPart]
    sentences: list[str] = Field(serialization_alias="says")


class FilePart(Part):
    """One exported file of a run, or one of its models in torch (then `file` is empty).

    role: of the model · tier: number among the files that no other file beats in both
    validation accuracy and cost, from 1 for the cheapest · outcome, negative_flips: on
    test, or on validation if test was not read · ship: the file that the run recommends
    · latency: milliseconds for one image on one thread.
    """

    run: str
    file: str
    role: str
    label: str
    format: str
    license: str
    size_bytes: int | None
    validation: Estimate | None
    test: Estimate | None
    outcome_validation: str | None = None
    outcome: str | None = None
    margin: float | None = None
    negative_flips: Number = None
    latency_p50: Number = None
    latency_p95: Number = None
    latency_p99: Number = None
    images_per_second: Number = None
    batch_size: int | None = None
    cost_per_million: Number = None
    start_seconds: Number = None
    peak_memory_bytes: int | None = None
    tier: int | None = None
    ship: bool = False

    @property
    def accuracy(self) -> Estimate | None:
        """Top-1 accuracy on test, or on validation if test was not read."""
        return self.test or self.validation


class Choice(Part):
    """The file that is best for a goal. run, file: null if no file reaches the goal."""

    goal: str = Field(serialization_alias="asked")
    run: str | None
    file: str | None
    sentence: str = Field(serialization_alias="says")


class FamilyPart(Part):
    """All files for one data set that were measured on one device.

    choices: selected on validation, described by their test metrics.
    """

    data: str
    device: str
    currency: str
    files: list[FilePart]
    choices: list[Choice]
    basis: list[str]


class Report(Part):
    """Content of the whole report."""

    schema_version: Literal[1] = VERSION
    question: str
    answer: str
    basis: list[str]
    rows: list[RunRow]
    comparisons: list[ComparisonPart] = []
    points: list[Point]
    families: list[FamilyPart] = []
    runs: list[RunPart]
