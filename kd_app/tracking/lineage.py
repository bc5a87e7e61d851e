"""What runs hand on to each other, in words that are the same whoever tells of it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_app.config.redact import redact
from kd_app.stages import hash_file
from kd_app.tracking.base import STUDENT, Artifact


def split(name: str, fingerprint: str, sizes: Mapping[str, int], file: Path) -> Artifact:
    """Which image is in which split: `file` is the run's split.csv, which a data module
    of somebody's own has none of.
    """
    content = {"data": name, "fingerprint": fingerprint, "sizes": dict(sizes)}
    return Artifact(
        "split",
        f"{_sanitize_name(name)}-split",
        fingerprint,
        redact(content),
        files={file.name: file} if file.is_file() else {},
    )


def describe_teacher(told: Mapping[str, Any]) -> Artifact:
    """Which weights teach: a reference (name, source, sha256, stage), not the weights.
    `source` says from where this run took them.
    """
    content = {
        "name": told.get("name"),
        "sha256": told.get("sha256"),
        "stage": Path(str(told["stage"])).name if told.get("stage") else None,
    }
    about = {"source": told.get("source")}
    return Artifact(
        "teacher",
        f"teacher-{_sanitize_name(str(redact(told.get('name'))))}",
        str(told.get("sha256")),
        redact(content),
        redact(about),
    )


def describe_student(
    run: str, files: Mapping[str, Path], weights: str, uses: Sequence[Artifact]
) -> Artifact:
    """The student of a run that ships, of whose `files` (name -> path) it takes its
    own; `weights`: their sha256.
    """
    own = {name: path for name, path in files.items() if name.startswith(f"{STUDENT}/")}
    return Artifact(
        "student", f"student-{_sanitize_name(run)}", weights, {}, _describe_uses(uses), own
    )


def report(name: str, page: Path, uses: Sequence[Artifact]) -> Artifact:
    """A page about what it `uses`."""
    return Artifact(
        "report",
        f"report-{_sanitize_name(name)}",
        hash_file(page),
        {},
        _describe_uses(uses),
        {page.name: page},
    )


def list_artifacts(
    run: str, results: Mapping[str, Any], files: Mapping[str, Path], uses: Sequence[Artifact]
) -> tuple[Artifact, ...]:
    """The student that ships and the record of the run."""
    weights = str(((results.get("models") or {}).get(STUDENT) or {}).get("sha256"))
    ships = describe_student(run, files, weights, uses)
    told = {name for each in (ships, *uses) for name in each.files}
    record = Artifact(
        "run",
        f"run-{_sanitize_name(run)}",
        weights,
        {},
        _describe_uses(uses),
        {name: path for name, path in files.items() if name not in told},
    )
    return tuple(each for each in (ships, record) if each.files)


def _describe_uses(uses: Sequence[Artifact]) -> dict[str, Any]:
    return {
        "uses": [{"kind": each.kind, "name": each.name, "identity": each.identity} for each in uses]
    }


def _sanitize_name(text: str) -> str:
    """`text` in the letters that names of artifacts may have."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)[:100]
