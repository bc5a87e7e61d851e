"""Artifacts that link runs.

Equal artifacts get equal metadata in every run.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_app.config.redact import redact
from kd_app.digest import hash_file
from kd_app.tracking.base import STUDENT, TrackedArtifact


def describe_split(
    name: str, fingerprint: str, sizes: Mapping[str, int], file: Path
) -> TrackedArtifact:
    """Describe the split of the data.

    file: the run's split.csv, which external data modules do not have.
    """
    content = {"data": name, "fingerprint": fingerprint, "sizes": dict(sizes)}
    return TrackedArtifact(
        "split",
        f"{_sanitize_name(str(redact(name)))}-split",
        fingerprint,
        redact(content),
        files={file.name: file} if file.is_file() else {},
    )


def describe_teacher(model: Mapping[str, Any]) -> TrackedArtifact:
    """Describe the teacher by a reference (name, source, sha256, stage).

    The artifact does not include the weights.
    """
    content = {
        "name": model.get("name"),
        "sha256": model.get("sha256"),
        "stage": Path(str(model["stage"])).name if model.get("stage") else None,
    }
    about = {"source": model.get("source")}
    return TrackedArtifact(
        "teacher",
        f"teacher-{_sanitize_name(str(redact(model.get('name'))))}",
        str(model.get("sha256")),
        redact(content),
        redact(about),
    )


def describe_student(
    run: str, files: Mapping[str, Path], weights: str, uses: Sequence[TrackedArtifact]
) -> TrackedArtifact:
    """Describe the exported student of a run.

    files: all files of the run (name -> path) · weights: sha256 of the weights.
    """
    own = {name: path for name, path in files.items() if name.startswith(f"{STUDENT}/")}
    return TrackedArtifact(
        "student", f"student-{_sanitize_name(run)}", weights, {}, _describe_uses(uses), own
    )


def describe_report(name: str, page: Path, uses: Sequence[TrackedArtifact]) -> TrackedArtifact:
    """Describe a page about the artifacts that it `uses`."""
    return TrackedArtifact(
        "report",
        f"report-{_sanitize_name(name)}",
        hash_file(page),
        {},
        _describe_uses(uses),
        {page.name: page},
    )


def list_artifacts(
    run: str, results: Mapping[str, Any], files: Mapping[str, Path], uses: Sequence[TrackedArtifact]
) -> tuple[TrackedArtifact, ...]:
    """List the outputs of a run: the exported student and the run's record."""
    weights = str(((results.get("models") or {}).get(STUDENT) or {}).get("sha256"))
    student = describe_student(run, files, weights, uses)
    logged = {name for each in (student, *uses) for name in each.files}
    record = TrackedArtifact(
        "run",
        f"run-{_sanitize_name(run)}",
        weights,
        {},
        _describe_uses(uses),
        {name: path for name, path in files.items() if name not in logged},
    )
    return tuple(each for each in (student, record) if each.files)


def _describe_uses(uses: Sequence[TrackedArtifact]) -> dict[str, Any]:
    return {
        "uses": [{"kind": each.kind, "name": each.name, "identity": each.identity} for each in uses]
    }


def _sanitize_name(text: str) -> str:
    """Replace characters that artifact names can't contain."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)[:100]
