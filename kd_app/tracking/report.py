"""Logging a page about runs to the trackers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_app.config.make import make
from kd_app.reporting.results import read
from kd_app.run_files import RESULTS, STUDENT
from kd_app.tracking import Backend, TrackedArtifact, Tracker, lineage


def log_report(runs: Sequence[Path], page: Path, loggers: Mapping[str, Mapping[str, Any]]) -> None:
    """Send the `page` about `runs` to the trackers of the ``logger`` group.

    The page is linked to the students of the runs.
    """
    backends = {name: make(node, Backend) for name, node in loggers.items()}
    names = [name_run(run.absolute()) for run in runs]
    name = names[0][1] if len(runs) == 1 else page.absolute().parent.name
    config = {"runs": [name for _, name in names]}
    tracker = Tracker(
        backends,
        out=page.parent,
        name=name,
        group=names[0][0],
        tags=["report"],
        config=config,
        say=print,
    )
    tracker.log_report(
        page.absolute(),
        [
            _describe_student(run.absolute(), name)
            for run, (_, name) in zip(runs, names, strict=True)
        ],
    )


def name_run(out: Path, *, trial: bool | None = None) -> tuple[str, str]:
    """Return group and name of the run in `out`.

    Both are the name of the folder. For a trial of a sweep, the group is the sweep's
    name, and the name also has the number of the trial. If `trial` is None, a folder
    whose name is a number is a trial.
    """
    is_trial = out.name.isdecimal() if trial is None else trial
    if is_trial:
        return out.parent.name, f"{out.parent.name}-{out.name}"
    return out.name, out.name


def _describe_student(run: Path, name: str) -> TrackedArtifact:
    student = read(run / RESULTS).models.get("student")
    files = {path.relative_to(run).as_posix(): path for path in sorted((run / STUDENT).glob("*"))}
    return lineage.describe_student(name, files, student.sha256 if student else "unknown", ())
