"""A page about runs, told to the trackers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_app.config.make import make
from kd_app.reporting.results import read
from kd_app.run_files import RESULTS, STUDENT
from kd_app.tracking import Artifact, Backend, Tracker, lineage


def tell_report(runs: Sequence[Path], page: Path, loggers: Mapping[str, Mapping[str, Any]]) -> None:
    """Send the `page` about `runs` to the trackers of the ``logger`` group, as made
    from the students of those runs.
    """
    backends = {name: make(node, Backend) for name, node in loggers.items()}
    names = [run_names(run.absolute()) for run in runs]
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
    tracker.report(
        page.absolute(),
        [_student(run.absolute(), name) for run, (_, name) in zip(runs, names, strict=True)],
    )


def run_names(out: Path, *, trial: bool | None = None) -> tuple[str, str]:
    """Group and name of the run in `out`: both its folder's name, or for a sweep's
    trial (by default a numbered folder) the sweep's and both.
    """
    of_sweep = out.name.isdecimal() if trial is None else trial
    return (out.parent.name, f"{out.parent.name}-{out.name}") if of_sweep else (out.name, out.name)


def _student(run: Path, name: str) -> Artifact:
    student = read(run / RESULTS).models.get("student")
    files = {path.relative_to(run).as_posix(): path for path in sorted((run / STUDENT).glob("*"))}
    return lineage.describe_student(name, files, student.sha256 if student else "unknown", ())
