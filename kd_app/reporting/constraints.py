"""Types of the values in ``results.json``, so that all of them can be displayed."""

import math
from collections.abc import Collection
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_LARGEST: Final = 1e15
"""Bound of all numbers: sums and percentages of larger ones overflow."""
_ROUNDING: Final = 1e-6
_LONGEST_NAME: Final = 255
"""Bytes of the name of a file."""


def _bound(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    if abs(value) > _LARGEST:
        raise ValueError(f"a number is at most {_LARGEST:g}")
    return value


Number = Annotated[float | None, AfterValidator(_bound)]
"""A number; null if undefined or not finite."""
Finite = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=_LARGEST, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=_LARGEST, allow_inf_nan=False)]
"""A measured time, by which another is divided."""
Count = Annotated[int, Field(ge=0, le=2**53)]
Size = Annotated[int, Field(ge=1, le=2**20)]
"""Of an image, in pixels or channels."""
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def _bound_share(value: float | None) -> float | None:
    if value is not None and not -_ROUNDING <= value <= 1 + _ROUNDING:
        raise ValueError("a share is between 0 and 1")
    return value


Share = Annotated[Number, AfterValidator(_bound_share)]
"""A number in 0..1, up to rounding; null if undefined."""


def _check_path(text: str) -> str:
    if "\0" in text or any(len(part.encode()) > _LONGEST_NAME for part in text.split("/")):
        raise ValueError("not a path")
    return text


PathText = Annotated[str, Field(max_length=4000), AfterValidator(_check_path)]


def _require_non_negative(value: float | None) -> float | None:
    if value is not None and value < 0:
        raise ValueError("a rate, cost or time is at least 0")
    return value


Rate = Annotated[Number, AfterValidator(_require_non_negative)]
"""A rate, a cost or a time; null if unknown."""


class Part(BaseModel):
    """Rejects unknown keys: no code would read a metric that is not declared."""

    model_config = ConfigDict(extra="forbid")


class OpenPart(BaseModel):
    """Allows further keys."""

    model_config = ConfigDict(extra="allow")


class _RunConfig(OpenPart):
    """The groups of a configuration that reports read. A command that has no such group
    leaves it out.
    """

    data: "_DataConfig | None" = None
    student: dict[str, Any] | None = None
    teacher: dict[str, Any] | None = None
    loss: dict[str, dict[str, Any]] = {}
    controls: dict[str, Any] = {}
    callbacks: dict[str, Any] | None = None
    optimizer: dict[str, Any] = {}
    scheduler: dict[str, Any] = {}
    trainer: dict[str, Any] = {}
    verdict: "_VerdictConfig | None" = None


class _DataConfig(OpenPart):
    label_fraction: Annotated[Probability, Field(strict=True)] | None = None


class _VerdictConfig(OpenPart):
    margin: Annotated[Probability, Field(strict=True)] = 0.01


def _check_config(config: dict[str, Any]) -> dict[str, Any]:
    _RunConfig.model_validate(config)
    return config


Config = Annotated[dict[str, Any], AfterValidator(_check_config)]
"""The configuration of a run, unchanged."""


def check_models(models: Collection[str], /, **values: Collection[str]) -> None:
    """Raise `ValueError` for a part without an entry for each of the `models`."""
    for name, keys in values.items():
        if missing := [model for model in models if model not in keys]:
            raise ValueError(f"{name} lacks {', '.join(map(repr, missing))}")


def check_lengths(expected: int, /, **values: Any) -> None:
    """Raise `ValueError` for a list, or a list in a mapping, of another length."""
    for name, each in values.items():
        lists = each if isinstance(each, dict) else {"": each}
        for key, items in lists.items():
            if len(items) != expected:
                where = f"{name}.{key}" if key else name
                raise ValueError(f"{where} has {len(items)} values, expected {expected}")
