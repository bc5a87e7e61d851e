"""The part of ``results.json`` about a cascade."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kd_app.reporting.constraints import (
    Count,
    NonNegative,
    Number,
    Part,
    Positive,
    Probability,
    check_lengths,
)
from kd_app.reporting.metrics import Estimate, Measurement, ModelMetrics


class LatencyStats(Part):
    """Milliseconds per image on one thread, end to end (resizing, cropping and all
    stages that the image passes), over `num_images` images.
    """

    mean: NonNegative
    p50: NonNegative
    p95: NonNegative
    p99: NonNegative
    num_images: Count


class CascadeStageRecord(Part):
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


class Rung(Part):
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


class RoutingCurve(Part):
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


class CascadeRecord(Part):
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
