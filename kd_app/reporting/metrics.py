"""The parts of ``results.json`` that hold metrics of models on the same images."""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, create_model, model_validator

from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.pair_metrics import PAIR_METRICS
from kd_app.metrics.spec import MetricSpec
from kd_app.reporting.constraints import (
    Count,
    Finite,
    Number,
    Part,
    Probability,
    Share,
    check_lengths,
    check_models,
)


class Estimate(Part):
    """A value and the ends of its interval."""

    value: Number
    low: Number = None
    high: Number = None


class _Metrics(Part):
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


class PerClass(Part):
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


class Group(Part):
    """Metrics on one group of the images, such as a camera or a site: top-1 of each
    model, and the student's agreement with the teacher.
    """

    num_images: Count
    accuracy: dict[str, Estimate]
    agreement: Number = None


class CorruptionMetrics(Part):
    """Top-1 of each model on the same corrupted images, and the student's agreement
    with the teacher. severity: 1 to 5.
    """

    corruption: str
    severity: Annotated[int, Field(ge=1, le=5)]
    num_images: Count
    accuracy: dict[str, Share]
    agreement: Number = None


class Measurement(Part):
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


class Verdict(Part):
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
