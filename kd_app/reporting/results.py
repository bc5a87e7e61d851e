"""``results.json``: everything that is printed, plotted or compared comes from it."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from kd_app.config import RequestError
from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.pair_metrics import PAIR_METRICS
from kd_app.metrics.spec import MetricSpec
from kd_app.stages import write_atomically

VERSION: Final = 1
Number = Annotated[
    float | None,
    AfterValidator(lambda value: value if value is None or math.isfinite(value) else None),
]
"""A figure; null where it is undefined or not finite."""


class _Part(BaseModel):
    """Unknown keys are refused: a figure that nobody declared would be one that nobody
    reads.
    """

    model_config = ConfigDict(extra="forbid")


class _Open(BaseModel):
    """Holds the keys below, and whatever else is known."""

    model_config = ConfigDict(extra="allow")


class Data(_Open):
    """name: of the set · classes: their names, in the order of the logits · sizes:
    images of each split · fingerprint: sha256 of names, labels and contents.
    """

    name: str | None = None
    classes: list[str]
    sizes: dict[str, int]
    fingerprint: str


class Model(_Open):
    """params: entries of all parameters · macs: multiply-adds of one image ·
    size_bytes: on disk · license: of these weights; the student's is that of what ships
    · sha256: of the weights (of their file without what it says of itself) · weights:
    how they were loaded.
    """

    name: str
    params: int | None
    macs: int | None
    size_bytes: int
    license: str
    source: str
    sha256: str
    weights: dict[str, Any]


class Estimate(_Part):
    """A figure and the ends of its interval."""

    value: Number
    low: Number = None
    high: Number = None


class _Metrics(_Part):
    """Values by the names of metrics, each with the ends of its interval."""

    if TYPE_CHECKING:  # the fields come from the list of metrics

        def __getattr__(self, name: str) -> float | None: ...
        def __setattr__(self, name: str, value: float | None) -> None: ...

    def get(self, name: str) -> Estimate:
        """A metric with its interval."""
        return Estimate(
            value=getattr(self, name),
            low=getattr(self, f"{name}_low"),
            high=getattr(self, f"{name}_high"),
        )


def _declare(specs: Sequence[MetricSpec[Any]]) -> Callable[[type[_Metrics]], Any]:
    """Give a part three fields a metric: its value and the ends of its interval."""

    def extend(part: type[_Metrics]) -> Any:
        fields: dict[str, Any] = {
            f"{spec.name}{end}": (Number, ... if spec.required else None)
            for spec in specs
            for end in ("", "_low", "_high")
        }
        return create_model(
            part.__name__, __base__=part, __doc__=part.__doc__, __module__=part.__module__, **fields
        )

    return extend


@_declare(MODEL_METRICS)
class ModelMetrics(_Metrics):
    """The `MODEL_METRICS` of one model: each in 0..1 (nll in nats, brier in 0..2), with
    the ends of its interval; classwise_ece has none.
    """


@_declare(PAIR_METRICS)
class PairMetrics(_Metrics):
    """The `PAIR_METRICS`: the student beside teacher and labels-only control, of a
    cascade the candidate beside the reference; absent (null) is what needs a model that
    the run has not, or is undefined.

    kl_to_teacher: KL(teacher || student), reverse_kl: KL(student || teacher), nats.
    rank_correlation: Spearman's, -1..1. cka: 0..1, without interval.
    """


class Difference(Estimate):
    """One model's figure minus another's on the same images, with the ends of the
    paired interval.
    """


class PerClass(_Part):
    """By class number, to 6 digits; null for a class without images. Flips are shares
    of the class's images; empty without a teacher.
    """

    support: list[int]
    accuracy: dict[str, list[Number]]
    f1: dict[str, list[Number]]
    negative_flips: list[Number] = []
    positive_flips: list[Number] = []


class Group(_Part):
    """The images of one group of the data, such as a camera or a site: top-1 of each
    model, and the student's agreement with the teacher.
    """

    num_images: int
    accuracy: dict[str, Estimate]
    agreement: Number = None


class Robustness(_Part):
    """Top-1 of each model on the same corrupted images, and the student's agreement
    with the teacher on them. severity: 1 to 5.
    """

    corruption: str
    severity: int
    num_images: int
    accuracy: dict[str, Number]
    agreement: Number = None


class Measurement(_Part):
    """Figures of models on the same images: how many images there are, the confidence
    of all intervals, the pair. groups: those with the most images, up to 100;
    predictions.parquet has all.
    """

    num_images: int
    confidence: float
    pair: PairMetrics | None = None
    gains: dict[str, Difference] = {}
    per_class: PerClass
    groups: dict[str, Group] = {}
    robustness: list[Robustness] = []


class Split(Measurement):
    """Figures of a run's models on one split.

    Controls beside labels_only stand under their own names, like models. gains: the
    student's top1 minus that of each control.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ModelMetrics] = Field(init=False)

    teacher: ModelMetrics | None = None
    labels_only: ModelMetrics | None = None
    student: ModelMetrics

    @property
    def by_model(self) -> dict[str, ModelMetrics]:
        """The models that were measured: teacher, labels_only, further controls,
        student.
        """
        found = {
            "teacher": self.teacher,
            "labels_only": self.labels_only,
            **self.__pydantic_extra__,
            "student": self.student,
        }
        return {role: figures for role, figures in found.items() if figures is not None}


class Verdict(_Part):
    """Outcome of the rule that was stated before the run; the fields of
    `kd_app.metrics.verdict.Judgment`, and the split it is about.
    """

    outcome: Literal["kept", "lost", "not shown"]
    metric: Literal["top1", "balanced_accuracy", "worst_class"]
    margin: float
    confidence: float
    difference: float
    low: float
    high: float
    num_images: int
    n_needed: int | None
    mcnemar_p: float
    split: str


class Softness(_Part):
    """How much the teacher spreads over the classes at a temperature: mean entropy
    (nats), that over ``log K``, and the mean probability that is not on its top class.
    """

    temperature: float
    mean_nats: Number
    of_uniform: Number
    beyond_top: Number


class SimilarPair(_Part):
    """Two classes by name, and the mean probability of either on the images of the
    other.
    """

    first: str
    second: str
    probability: float


class Similarity(_Part):
    """Classes that the teacher finds alike at a temperature: the strongest pairs, and
    the mean probabilities (columns) over the images of each class (rows), null where a
    class has none; no matrix above 100 classes.
    """

    temperature: float
    similar: list[SimilarPair]
    matrix: list[list[Number]] | None


class Knowledge(_Part):
    """What the teacher says beyond its top class, on the images of `split`. `similar`
    and `matrix` are at temperature 1, `softened` at those at which the student was
    taught.
    """

    split: str
    num_images: int
    entropy: list[Softness]
    similar: list[SimilarPair]
    matrix: list[list[Number]] | None
    softened: list[Similarity] = []


class ModelSpeed(_Open):
    """Throughput of one model, measured beside the others'."""

    images_per_second: Number


class Speed(_Open):
    """teacher, student: inference · training_images_per_second: of the student's
    training, the teacher's forward pass included.
    """

    teacher: ModelSpeed | None = None
    student: ModelSpeed | None = None
    training_images_per_second: Number = None


class Licenses(_Part):
    """Licenses by name, or 'unknown' ('none': random weights): of the teacher's
    weights, the student's starting weights, the data, and what ships.

    In sentences: what is forbidden and was not accepted, what is unknown, what was
    accepted (license.accept), and which notices have to be kept.
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
    """A stage that the run rests on: its folder, the seconds it took whoever made it,
    and whether this run made or found it.
    """

    name: str
    path: str
    seconds: float
    made: Literal["made", "found"]


class Step(_Part):
    """One step of a compression, on validation. top1: of its model · lost: accuracy
    (verdict.metric) of the step before minus its own, as a paired difference; null for
    the start · macs, params, size_bytes: as of models · latency_ms: median of one image
    with one thread, as an XNNPACK program · told: what the step says of itself. The
    last may be the alternative: another net of that cost, beside the one that came out.
    """

    name: str
    top1: Estimate
    lost: Difference | None = None
    macs: int
    params: int
    size_bytes: int
    latency_ms: Number = None
    told: dict[str, Any] = {}


class Latency(_Part):
    """Milliseconds of one image on one thread, end to end: resizing and cropping, all
    stages that it went through; of `num_images` images.
    """

    mean: float
    p50: float
    p95: float
    p99: float
    num_images: int


class CascadeStage(_Part):
    """One stage. file: as it was named · sha256: of its file · temperature: fitted on
    validation · validation, test: top-1 alone · cost_ms: mean time of an image,
    measured on validation images, by which the costs of rungs are computed · latency:
    on test images.
    """

    file: str
    sha256: str
    temperature: float
    validation: Estimate
    test: Estimate
    cost_ms: float
    latency: Latency


class Rung(_Part):
    """A cascade at one set of thresholds. thresholds: null where all or nothing is sent
    on · shares: of the images that reach each stage · better, worse: images that only
    the cascade, or only the last stage, has right · cost_ms: expected time of an image
    · proven: shown to lose no more than the margin.
    """

    thresholds: list[Number]
    shares: list[float]
    accuracy: float
    better: int
    worse: int
    cost_ms: float
    proven: bool | None = None


class RoutingCurve(_Part):
    """All rungs of one measure of confidence on validation, from 'everything is sent
    on' down to 'nothing is'. chosen: the number of its cheapest proven rung, or null
    where none is cheaper than the last stage alone.
    """

    measure: str
    rungs: list[Rung]
    chosen: int | None


class CascadeSplit(Measurement):
    """Figures on one split of the candidate, which is the cascade (the first stage,
    where the answer is one model), and of the reference, which is the last stage.
    """

    candidate: ModelMetrics
    reference: ModelMetrics


class Cascade(_Part):
    """What routing was worth. answer: ship the cascade, or the first or the last stage
    alone.

    margin: of top-1 against the last stage · confidence: at which it is shown for all
    measures together · measure, thresholds: what was chosen, on `num_images` validation
    images · test: the same thresholds on test · latency: of the cascade, measured; null
    where it is not to be used · splits: figures by the name of the split.
    """

    answer: Literal["cascade", "first", "last"]
    margin: float
    confidence: float
    num_images: int
    measure: str
    thresholds: list[Number]
    stages: list[CascadeStage]
    curves: list[RoutingCurve]
    test: Rung
    latency: Latency | None = None
    splits: dict[Literal["validation", "test"], CascadeSplit] = {}


class FileRecord(_Part):
    """A file beside results.json, as it was written."""

    name: str
    sha256: str


class Results(_Part):
    """One run. `reason` says why one failed, or was ended early in a sweep (pruned);
    what is not known yet is null or empty.
    """

    schema_version: Literal[1] = VERSION
    status: Literal["running", "finished", "failed", "pruned"]
    reason: str | None = None
    seed: int
    config: dict[str, Any]
    environment: dict[str, Any]
    data: Data | None = None
    license: Licenses | None = None
    models: dict[str, Model] = {}
    validation: Split | None = None
    test: Split | None = None
    verdict: Verdict | None = None
    knowledge: Knowledge | None = None
    speed: Speed = Speed()
    steps: list[Step] = []
    cascade: Cascade | None = None
    stages: list[StageRecord] = []
    files: list[FileRecord] = []
    notes: list[str] = []


def build_json_schema() -> dict[str, Any]:
    """The JSON Schema of ``results.json``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Results.model_json_schema(mode="serialization"),
    }


def write(path: Path, results: Results) -> None:
    """Write ``results.json`` whole or not at all; plain JSON, null for what is not
    finite.
    """
    write_atomically(path, results.model_dump_json(indent=1) + "\n")


def read(path: Path) -> Results:
    """Read a ``results.json``. Raises `RequestError`: it is not there, cut off, of
    another schema version, or not of this schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(
            f"There is no {str(path)!r}. A run's folder holds a results.json; name such a folder."
        ) from None
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{str(path)!r} can't be read: {error}. It is cut off or no JSON; run the same command"
            " again to make it anew, its stages are kept."
        ) from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != VERSION:
        raise RequestError(
            f"{str(path)!r} has schema_version {version!r}, and this kd_app reads version"
            f" {VERSION}. Read it with the kd_app that wrote it, or run the same command again to"
            " make it anew."
        )
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(
            f"{str(path)!r} is no results.json of version {VERSION}: {where}: {first['msg']} (got"
            f" {str(first['input'])[:60]!r}). Run the same command again to make it anew."
        ) from None
