"""Downloading the records of runs from Weights & Biases."""

import os
from pathlib import Path, PurePosixPath
from typing import Any

from kd_app.config import RequestError
from kd_app.config.errors import take_first_line
from kd_app.files import replace_folder
from kd_app.reporting.runs import find_runs, load_run
from kd_app.run_files import RESULTS
from kd_app.tracking.base import STUDENT, restore_environment


def fetch_runs(project: str, folder: str | os.PathLike[str]) -> list[Path]:
    """Download the records of the runs of a project ('entity/project') into `folder`.

    A record contains results.json, predictions.parquet, curves, examples and page, but
    neither the student's weights nor the split. Runs that are already anywhere below
    `folder`, by the sha256 of the student, are skipped. Downloads are atomic.

    Returns the new folders. Raises `RequestError` if W&B is not reachable or has no
    such project.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    hashes, folders = _hash_students(root), []
    with restore_environment(WANDB_SILENT="true"):
        import wandb

        try:
            api = wandb.Api()
            for name in [each.name for each in api.artifact_type("run", project).collections()]:
                artifact = api.artifact(f"{project}/{name}:latest", type="run")
                is_known = artifact.metadata.get("identity") in hashes
                if not is_known and not (root / name / RESULTS).exists():
                    _download(artifact, root / name)
                    folders.append(root / name)
        except (wandb.Error, ValueError, OSError) as error:
            reason = take_first_line(error)
            raise RequestError(
                f"The runs of {project!r} could not be fetched from Weights & Biases: {reason}"
                f" Expected entity/project and a login (wandb login). {len(folders)} runs were"
                " fetched; repeat the call to continue."
            ) from None
    return folders


def _download(artifact: Any, folder: Path) -> None:
    """Download all files of an artifact, atomically."""
    outside = [
        path
        for path in (folder.name, *artifact.manifest.entries)
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts
    ]
    if outside:
        raise ValueError(
            f"{artifact.name} contains {outside[0]!r}, which would be written outside its folder."
        )
    with replace_folder(folder) as partial:
        artifact.download(str(partial), skip_cache=True)


def _hash_students(root: Path) -> set[str]:
    """sha256 of the students of all runs in `root`."""
    try:
        folders = find_runs([str(root)])
    except RequestError:
        return set()
    return {
        run.results.models[STUDENT].sha256
        for run in map(load_run, folders)
        if STUDENT in run.results.models
    }
