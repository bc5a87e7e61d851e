"""Choosing a cascade on validation: the measure of confidence, its thresholds, and
the temperature of each stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt

from kd_app.config import Decoding, Typed
from kd_app.deployment.cascade import ImageStage, ModelCascade
from kd_app.deployment.confidence import compute_log_probabilities, fit_temperature
from kd_app.deployment.logits import LogitsBuffer
from kd_app.deployment.routing import RoutingChoice, choose_threshold, compute_routing_curve
from kd_app.metrics.blocks import slice_rows
from kd_app.metrics.record import Predictions
from kd_app.metrics.verdict import VerdictRule

Measure = Literal["maximum", "margin", "entropy", "energy"]


class Routing(Typed, called="routing"):
    """The group ``routing`` of ``conf/evaluate.yaml``."""

    def __init__(
        self,
        *,
        measures: Annotated[list[Measure], Field(min_length=1)],
        steps: PositiveInt,
        images: PositiveInt,
    ) -> None:
        self.measures = list(dict.fromkeys(measures))
        self.steps = steps
        self.images = images


@dataclass(frozen=True)
class _RecordedModel:
    """A stage that returns stored logits for image numbers, so that thresholds are
    checked with the code of the exported cascade.
    """

    logits: NDArray[np.float32]

    def infer_logits(self, rows: NDArray[Any], /) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.logits[rows]
        return logits

    def prepare_image(
        self, image: Image.Image, decoding: Decoding | None = None, /
    ) -> NDArray[np.uint8]:
        raise AssertionError("images are numbers here")


@dataclass(frozen=True)
class CascadeChoice:
    """The selected measure of confidence with its thresholds, the choices for all
    measures, and the temperature and cost (seconds) of each stage.
    """

    measure: Measure
    routing: RoutingChoice
    by_measure: dict[Measure, RoutingChoice]
    temperatures: tuple[float, ...]
    costs: tuple[float, ...]

    @property
    def uses_cascade(self) -> bool:
        return self.routing.answer == "cascade"

    def build_cascade(
        self, stages: Sequence[ImageStage], decoding: Decoding | None = None
    ) -> ModelCascade:
        """Build the cascade; decoding: of the images on which it was chosen."""
        thresholds = self.routing.rung.thresholds
        return ModelCascade(stages, thresholds, self.measure, self.temperatures, decoding)


def choose_cascade(
    routing: Routing,
    rule: VerdictRule,
    predictions: Sequence[Predictions],
    costs: tuple[float, ...],
) -> CascadeChoice:
    """Choose the measure of confidence whose proven thresholds cost least; the first
    among equals.
    """
    target, logits = predictions[0].target, [each.logits for each in predictions]
    temperatures = tuple(fit_temperature(each, target) for each in logits)
    confidence = 1 - (1 - rule.confidence) / len(routing.measures)
    choices = {}
    for measure in routing.measures:
        curve = compute_routing_curve(
            logits,
            target,
            costs,
            measure=measure,
            temperatures=temperatures,
            num_steps=routing.steps,
        )
        choices[measure] = choose_threshold(
            curve,
            costs,
            num_images=len(target),
            margin=rule.margin,
            confidence_level=confidence,
        )
    best = min(choices, key=lambda measure: choices[measure].cost)
    return CascadeChoice(best, choices[best], choices, temperatures, costs)


def combine_predictions(
    predictions: Sequence[Predictions], choice: CascadeChoice, spool: Path | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Log-probabilities of the selected cascade (of the first stage if there is none),
    and the last stage of each image.

    spool: folder for a temporary file of the log-probabilities, see `LogitsBuffer`.
    """
    logits = [each.logits for each in predictions]
    buffer, stages = LogitsBuffer(spool), np.zeros(len(logits[0]), dtype=np.int64)
    cascade = None
    if choice.uses_cascade:  # else the thresholds may be infinite
        cascade = choice.build_cascade([_RecordedModel(each) for each in logits])
    images = np.arange(len(logits[0]))
    for rows in slice_rows(logits[0]):
        if cascade:
            log_p, stages[rows] = cascade.infer(images[rows])  # type: ignore[arg-type]
        else:
            log_p = compute_log_probabilities(logits[0][rows], choice.temperatures[0])
        buffer.append(log_p.astype(np.float32))
    return buffer.read(), stages
