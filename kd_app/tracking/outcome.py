"""From results.json to what trackers show."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_app.config.redact import redact
from kd_app.tracking import lineage
from kd_app.tracking.base import Artifact, Outcome

_SHOWN = ("test", "validation", "verdict", "speed", "models", "license")


def build_outcome(
    run: str, results: Mapping[str, Any], files: Sequence[Path], out: Path, uses: Sequence[Artifact]
) -> Outcome:
    """What trackers get to see of the `results` (the content of results.json) of the
    `run`, of its `files` and folders, and of what it `uses`.
    """
    shown = redact({section: results.get(section) for section in _SHOWN})
    models = {
        role: figures
        for role, figures in (shown["test"] or {}).items()
        if isinstance(figures, Mapping) and "top1" in figures
    }
    named = dict(_name_files(files, out))
    return Outcome(
        figures=dict(_flatten(shown)),
        test={role: dict(_iterate_numbers(figures)) for role, figures in models.items()},
        classes=redact((results.get("data") or {}).get("classes") or []),
        files=named,
        makes=lineage.list_artifacts(run, results, named, uses),
    )


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | str]]:
    """``(dotted name, figure)`` of every number and word; lists and missing figures
    have no place in a summary.
    """
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, str) or _is_finite(value):
            yield f"{prefix}{key}", value


def _iterate_numbers(figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if _is_finite(value):
            yield name, float(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _name_files(files: Sequence[Path], out: Path) -> Iterator[tuple[str, Path]]:
    """``(name inside the run's folder, path)`` of every file, also of those in folders."""
    for path in files:
        inside = (
            sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        )
        base = out if path.is_relative_to(out) else path.parent
        yield from ((each.relative_to(base).as_posix(), each) for each in inside)
