"""The search space: Hydra's sweep overrides as Optuna distributions."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from kd_app.config import RequestError


def parse_space(overrides: Sequence[Override]) -> dict[str, BaseDistribution]:
    """Parse ``key=interval(1,8)``, ``key=tag(log,interval(1e-4,1e-1))``,
    ``key=int(interval(1,8))``, ``key=range(1,9)`` and ``key=choice(a,b)``.

    An interval includes both ends. A range excludes the second end, as always in Hydra.
    Raises `RequestError` for other overrides.
    """
    space = {override.get_key_element(): _parse_distribution(override) for override in overrides}
    if not space:
        raise RequestError(
            "The search space is empty. Set hydra.sweeper.space or hparams_search=, or add a sweep"
            " such as seed=0,1."
        )
    return space


def _parse_distribution(override: Override) -> BaseDistribution:
    if not override.is_sweep_override():
        raise RequestError(
            f"{override.input_line!r} is not a search range. Expected interval(a,b), range(a,b) or"
            " choice(a,b,...)."
        )
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        start, end = value.start, value.end
        assert start is not None
        assert end is not None
        is_int = isinstance(start, int) and isinstance(end, int)
        kind = IntDistribution if is_int else FloatDistribution
        try:
            return kind(start, end, log="log" in value.tags)  # type: ignore[arg-type]
        except ValueError as error:
            raise RequestError(f"{override.input_line!r} is not a search range: {error}") from None
    if isinstance(value, RangeSweep):
        steps = list(value.range())
        if not steps:
            raise RequestError(
                f"{override.input_line!r} is empty: a range excludes its second end."
            )
        is_int = all(isinstance(step, int) for step in steps)
        kind = IntDistribution if is_int else FloatDistribution
        return kind(steps[0], steps[-1], step=value.step)  # type: ignore[arg-type]
    return CategoricalDistribution(list(override.sweep_string_iterator()))
