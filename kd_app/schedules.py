"""Schedules of learning rates and loss weights, as functions of the progress alone, so
that a resumed training needs no saved state.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from kd_app.config import RequestError, Typed
from kd_app.config.length import LengthNeed

Share = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(ge=1e-12, le=1000)]
"""A smaller one changes no weight in float32; with a larger one, every training
diverges, also with LARS and its rates above 10.
"""
WeightDecay = Annotated[float, Field(ge=0, le=1000)]


class Schedule(Typed):
    """The factor of a learning rate or of the weight of a loss term, as a function of
    the progress (0..1) of the training.
    """

    def __init__(self, *, warmup: Share) -> None:
        self.warmup = warmup

    def compute_factor(self, progress: float) -> float:
        """``progress / warmup`` during the warm-up, then `compute_shape` of the
        progress after the warm-up.
        """
        if progress < self.warmup:
            return progress / self.warmup
        return self.compute_shape((progress - self.warmup) / max(1 - self.warmup, 1e-12))

    def list_phases(self) -> Iterator[tuple[str, float, str]]:
        """The settings that start a phase: the setting, the share of the training at
        which the phase starts, and what a training without this phase lacks.
        """
        yield f"warmup={self.warmup:g}", self.warmup, "the factor never reaches its full value"

    def list_length_needs(self) -> Iterator[LengthNeed]:
        """Each phase needs a step: the middle of the last one is at progress ``1 -
        1/(2 steps)``.
        """
        for setting, start, effect in self.list_phases():
            yield LengthNeed(
                setting,
                math.ceil(0.5 / (1 - start) - 1e-9) if start < 1 else math.inf,
                "steps",
                effect,
                "Set a smaller share of the training",
            )

    @abstractmethod
    def compute_shape(self, progress: float) -> float:
        """The factor at `progress` (0..1) of the training after the warm-up."""


def _compute_rise(t: float) -> float:
    """Half a cosine from 0 to 1, for t from 0 to 1."""
    return (1 - math.cos(math.pi * t)) / 2


class Cosine(Schedule):
    """``final + (1 - final) * (1 + cos(pi * progress)) / 2`` (Loshchilov & Hutter, ICLR
    2017, arXiv 1608.03983).
    """

    def __init__(self, *, warmup: Share, final: Share) -> None:
        super().__init__(warmup=warmup)
        self.final = final

    def compute_shape(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


class OneCycle(Schedule):
    """Half a cosine from `first` up to 1 during the share `rise` of the training, then
    half a cosine down to `final` (Smith & Topin 2018, arXiv 1708.07120). The momentum
    does not change.
    """

    def __init__(self, *, rise: Share, first: Share, final: Share) -> None:
        super().__init__(warmup=0.0)
        self.rise, self.first, self.final = rise, first, final

    def list_phases(self) -> Iterator[tuple[str, float, str]]:
        yield f"rise={self.rise:g}", self.rise, "the factor never falls"

    def compute_shape(self, progress: float) -> float:
        if progress < self.rise:
            return self.first + (1 - self.first) * _compute_rise(progress / self.rise)
        fall = _compute_rise(min((progress - self.rise) / max(1 - self.rise, 1e-12), 1.0))
        return 1 - (1 - self.final) * fall


class Linear(Schedule):
    """``1 - (1 - final) * progress``."""

    def __init__(self, *, warmup: Share, final: Share) -> None:
        super().__init__(warmup=warmup)
        self.final = final

    def compute_shape(self, progress: float) -> float:
        return 1 - (1 - self.final) * min(progress, 1.0)


class MultiStep(Schedule):
    """``gamma`` to the power of the number of passed milestones, which are shares of
    the training after the warm-up.
    """

    def __init__(self, *, warmup: Share, milestones: list[Share], gamma: Share) -> None:
        super().__init__(warmup=warmup)
        self.milestones = milestones
        self.gamma = gamma

    def list_phases(self) -> Iterator[tuple[str, float, str]]:
        yield from super().list_phases()
        for milestone in self.milestones:
            share = self.warmup + (1 - self.warmup) * milestone
            effect = f"the training ends before the milestone {milestone:g}"
            yield f"milestones={self.milestones}", share, effect

    def compute_shape(self, progress: float) -> float:
        return float(self.gamma ** sum(progress >= milestone for milestone in self.milestones))


class Constant(Schedule):
    """1 after the warm-up."""

    def __init__(self, *, warmup: Share) -> None:
        super().__init__(warmup=warmup)

    def compute_shape(self, progress: float) -> float:
        return 1.0


class Ramp(Schedule):
    """`first` until the share `begin` of the training, `last` from the share `end` on,
    in between ``first + (last - first) * rise(t)``.

    t rises from 0 at `begin` to 1 at `end`; rise(t) is t (curve 'linear') or ``(1 -
    cos(pi t)) / 2`` ('cosine').
    """

    def __init__(
        self,
        *,
        first: Share,
        last: Share,
        begin: Share,
        end: Share,
        curve: Literal["linear", "cosine"],
    ) -> None:
        super().__init__(warmup=0.0)
        if end < begin:
            raise RequestError(
                f"The ramp has begin={begin} and end={end}. Expected begin <= end, both 0 to 1."
            )
        self.first, self.last = first, last
        self.begin, self.end = begin, end
        self.curve = curve

    def list_phases(self) -> Iterator[tuple[str, float, str]]:
        yield f"begin={self.begin:g}", self.begin, "the ramp never begins"

    def compute_shape(self, progress: float) -> float:
        t = min(max((progress - self.begin) / max(self.end - self.begin, 1e-12), 0.0), 1.0)
        rise = t if self.curve == "linear" else _compute_rise(t)
        return self.first + (self.last - self.first) * rise
