"""What a report says, as plain data: ``report.json``. The page, the table and the text
are views of it, and hold no figure of their own.
"""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from kd_app.metrics.model_pair import CASCADE, DISTILLATION, ModelPair
from kd_app.metrics.spec import Format
from kd_app.reporting.results import (
    Cascade,
    Estimate,
    Group,
    Knowledge,
    Number,
    Robustness,
    Step,
    Verdict,
)

VERSION: Final = 1


class _Part(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class ModelPart(_Part):
    """One model of a run. params: entries · macs: multiply-adds of one image ·
    size_bytes: on disk · figures: by name, as in ``results.json``.
    """

    role: str
    label: str
    name: str
    license: str
    params: int | None
    macs: int | None
    size_bytes: int | None
    images_per_second: Number
    figures: dict[str, Estimate]


class PairPart(_Part):
    """What compares the student with teacher or control. unit: as of a `MetricSpec`."""

    key: str
    name: str
    meaning: str
    unit: Format
    figure: Estimate


class Curve(_Part):
    """One metric of one training: a value at each epoch."""

    role: str
    metric: str
    epochs: list[float]
    values: list[Number]


class ClassPart(_Part):
    """One class. support: its images · accuracy: share of them that each model has
    right · change: student minus teacher, or null.
    """

    name: str
    support: int
    accuracy: dict[str, Number]
    f1: dict[str, Number] = {}
    change: Number = None
    negative_flips: Number = None
    positive_flips: Number = None


class Confused(_Part):
    """Images of class `label` that the model takes for class `answer`; share: of the
    images of `label`.
    """

    label: str
    answer: str
    count: int
    share: float


class Confusion(_Part):
    """The student's answers. counts: row = label, column = answer, null where there are
    too many classes to look at · strongest: the errors.
    """

    classes: list[str]
    counts: list[list[int]] | None
    strongest: list[Confused]


class Bin(_Part):
    """Images whose top-1 probability falls in one bin: how many, their mean
    probability, the share that is right.
    """

    count: int
    confidence: float
    accuracy: float


class Reliability(_Part):
    """Calibration of one model."""

    role: str
    ece: Estimate
    bins: list[Bin]


class Answer(_Part):
    """What one model says of one image, and how probable it finds that."""

    role: str
    said: str
    probability: Number


class Example(_Part):
    """One image. image: PNG as base64, null where there is none · probabilities: of
    `classes`, by role · divergence: KL(teacher || student).
    """

    index: int
    file: str
    label: str
    why: str
    image: str | None = None
    answers: list[Answer]
    classes: list[str] = []
    probabilities: dict[str, list[float]] = {}
    divergence: Number = None


class Point(_Part):
    """One model in the plane of accuracy and cost."""

    run: str
    role: str
    name: str
    top1: Estimate
    images_per_second: Number
    size_bytes: int | None
    macs: int | None


class Made(_Part):
    """How a run was made. settings, environment: what to look at first · config: every
    setting by its dotted key · stages: name, seconds, made.
    """

    settings: dict[str, str]
    data: dict[str, str]
    environment: dict[str, str]
    stages: list[tuple[str, float, str]]
    config: dict[str, str]


class RunPart(_Part):
    """One run in full. missing: what the page leaves out, and why."""

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
    worth: list[str] = []
    curves: list[Curve] = []
    classes: list[ClassPart] = []
    confusion: Confusion | None = None
    reliability: list[Reliability] = []
    examples: list[Example] = []
    knowledge: Knowledge | None = None
    license: list[str] = []
    groups: dict[str, Group] = {}
    robustness: list[Robustness] = []
    steps: list[Step] = []
    cascade: Cascade | None = None
    cascade_says: list[str] = []
    made: Made
    limits: list[str]
    missing: list[str] = []

    @property
    def compared(self) -> ModelPair:
        """The roles of the two models that the page compares."""
        return DISTILLATION if self.cascade is None else CASCADE


class RunRow(_Part):
    """One run among others. differs: its settings that not all runs share · best:
    chosen on validation among the runs on the same data.
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


class OverSeeds(_Part):
    """A figure of one method. values: by seed · figure: their mean and its t-interval."""

    values: dict[int, float]
    figure: Estimate
    p: Number = None
    corrected: Number = None


class MethodPart(_Part):
    """One configuration and its seeds. runs: by seed · gain, to_teacher, to_baseline:
    the student minus its control, its teacher, the baseline's.
    """

    label: str
    runs: dict[int, str]
    verdicts: dict[int, str]
    validation: OverSeeds | None
    test: OverSeeds | None
    gain: OverSeeds | None
    to_teacher: OverSeeds | None
    to_baseline: OverSeeds | None


class ComparisonPart(_Part):
    """The methods on one set of images, as `kd_app.reporting.comparison` compares them.
    says: each time whether of methods or of models.
    """

    data: str
    split: str
    confidence: float
    correction: str
    baseline: str | None
    winner: str | None
    methods: list[MethodPart]
    says: list[str]


class FilePart(_Part):
    """What a run was exported to, or a model of it in torch (file: empty). role: whose
    it is · label: of the run and the file · tier: its number among the unbeaten of
    validation accuracy and cost, from 1 for the cheapest · outcome, negative_flips: of
    the split that the figures are from · ship: the run's choice · latency: milliseconds
    of one image, one thread.
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
    def figure(self) -> Estimate | None:
        """The accuracy to quote."""
        return self.test or self.validation


class Choice(_Part):
    """A question about a family, the file that answers it (null: none does), and the
    answer in a sentence.
    """

    asked: str
    run: str | None
    file: str | None
    says: str


class FamilyPart(_Part):
    """All files for one data set that were measured on one device. choices: made on
    validation, with the figures of test.
    """

    data: str
    device: str
    currency: str
    files: list[FilePart]
    choices: list[Choice]
    basis: list[str]


class Report(_Part):
    """Everything that is shown."""

    schema_version: Literal[1] = VERSION
    question: str
    answer: str
    basis: list[str]
    rows: list[RunRow]
    comparisons: list[ComparisonPart] = []
    points: list[Point]
    families: list[FamilyPart] = []
    runs: list[RunPart]
