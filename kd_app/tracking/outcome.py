"""Selection of the results that trackers log."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_app.config.redact import redact
from kd_app.tracking import lineage
from kd_app.tracking.base import Outcome, TrackedArtifact

_SECTIONS = ("test", "validation", "embedding", "verdict", "speed", "models", "license")


def build_outcome(
    run: str,
    results: Mapping[str, Any],
    files: Sequence[Path],
    out: Path,
    uses: Sequence[TrackedArtifact],
) -> Outcome:
    """Build the outcome of a run for the trackers.

    results: the content of results.json · files: files and folders of the run · uses:
    artifacts that the run uses.
    """
    sections = redact({section: results.get(section) for section in _SECTIONS})
    models = {
        role: metrics
        for role, metrics in (sections["test"] or {}).items()
        if isinstance(metrics, Mapping) and "top1" in metrics
    }
    files_by_name = dict(_name_files(files, out))
    return Outcome(
        metrics=dict(_flatten(sections)),
        test={role: dict(_iterate_numbers(metrics)) for role, metrics in models.items()},
        classes=redact((results.get("data") or {}).get("classes") or []),
        files=files_by_name,
        artifacts=lineage.list_artifacts(run, results, files_by_name, uses),
    )


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | str]]:
    """Yield dotted name and value of every number and string.

    A tracker's summary can't hold lists and missing values.
    """
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, str) or _is_finite(value):
            yield f"{prefix}{key}", value


def _iterate_numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if _is_finite(value):
            yield name, float(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _name_files(files: Sequence[Path], out: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name within the run's folder and the path of every file.

    Folders are searched recursively.
    """
    for path in files:
        members = [path]
        if path.is_dir():
            members = sorted(each for each in path.rglob("*") if each.is_file())
        base = out if path.is_relative_to(out) else path.parent
        yield from ((each.relative_to(base).as_posix(), each) for each in members)
