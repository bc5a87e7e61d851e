"""The job of ``kd-report stages=...``: lists the cached stages by size, age and the
runs that refer to them, and removes those that no run needs.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kd_app.config import RequestError
from kd_app.reporting.console import Console
from kd_app.reporting.results import read
from kd_app.reporting.runs import find_runs
from kd_app.reporting.stages_table import StageRow, build_stages_table, format_size
from kd_app.run_files import CONFIG, RESULTS
from kd_app.stages import Stages, StoredStage

DAY: Final = 24 * 3600.0


@dataclass(frozen=True)
class RunReferences:
    """What some runs say about stages.

    runs: by the name of a stage, the runs that refer to it. unfinished: the first start
    of a run that may go on, in seconds since the epoch; its stages are not all recorded
    yet. None without such a run.
    """

    runs: Mapping[str, Sequence[Path]]
    unfinished: float | None


def report_stages(
    root: Path,
    places: Sequence[str],
    *,
    free: bool = False,
    keep_days: float = 1.0,
    console: Console | None = None,
) -> list[StageRow]:
    """List the stages in the folder `root`, largest first; returns the rows.

    places: where runs are looked for, as for ``runs=``; by default the folder that
    contains `root`. free: remove the stages that no run refers to, except those in use,
    and those of the last `keep_days` days.

    Raises `RequestError` if there is no such folder, and with `free` if `places` is
    empty or a run there can't be read.
    """
    console = console or Console()
    if not root.is_dir():
        raise RequestError(
            f"There is no folder stages={str(root)!r}. Expected the folder of cached stages, which"
            " kd-distill calls stages=; its default is runs/.stages."
        )
    if free and not places:
        raise RequestError(
            "free=true removes the stages that no run refers to, and runs= names no runs. Name all"
            " folders with runs that use these stages: 'runs=[runs]'."
        )
    stages = Stages(root, say=console.print)
    references, unreadable = _read_references(root, places)
    if unreadable and free:
        raise RequestError(
            f"{unreadable[0]} Which stages it refers to is not known, so nothing was removed."
        )
    for reason in unreadable:
        console.print(f"Note: {reason} The stages that it refers to count as unused.")
    stored = sorted(stages.list_stored(), key=lambda stage: -stage.size_bytes)
    rows = [_describe(stage, references, keep_days) for stage in stored]
    console.show(build_stages_table(rows))
    _report(console, stages, rows, free=free)
    return rows


def _read_references(root: Path, places: Sequence[str]) -> tuple[RunReferences, list[str]]:
    """What the runs say, and why some of them can't be read."""
    try:
        folders = find_runs(places or [str(root.parent)])
    except RequestError:
        if places:
            raise
        folders = []
    runs: dict[str, list[Path]] = defaultdict(list)
    starts, unreadable = [], []
    for folder in folders:
        if not (folder / RESULTS).is_file():
            continue  # a refused trial
        try:
            results = read(folder / RESULTS)
        except RequestError as error:
            unreadable.append(str(error))
            continue
        if results.status in ("running", "failed"):
            config = folder / CONFIG
            starts.append((config if config.is_file() else folder).stat().st_mtime)
        for name in {Path(stage.path).name for stage in results.stages} | _list_names(
            results.config, root
        ):
            runs[name].append(folder)
    return RunReferences(runs, min(starts, default=None)), unreadable


def _list_names(node: Any, root: Path) -> set[str]:
    """The stages that a configuration names by their paths, such as a teacher's."""
    if isinstance(node, Mapping):
        return {name for each in node.values() for name in _list_names(each, root)}
    if isinstance(node, list):
        return {name for each in node for name in _list_names(each, root)}
    if not isinstance(node, str) or root.name not in node:
        return set()
    path = Path(node).absolute()
    return (
        {path.relative_to(root.absolute()).parts[0]} if root.absolute() in path.parents else set()
    )


def _describe(stage: StoredStage, references: RunReferences, keep_days: float) -> StageRow:
    runs = references.runs.get(stage.name, ())
    days = (time.time() - stage.changed) / DAY
    # An attempt without a lock may be in use on a machine that shares the file system.
    limit = keep_days if stage.is_finished else max(keep_days, 1.0)
    reason = None
    if runs:
        reason = "used by a run"
    elif references.unfinished is not None and stage.changed >= references.unfinished:
        reason = "may belong to an unfinished run"
    elif days < limit:
        reason = f"changed in the last {limit:g} days" if limit != 1 else "changed in the last day"
    return StageRow(stage, days, tuple(runs), reason)


def _report(console: Console, stages: Stages, rows: Sequence[StageRow], *, free: bool) -> None:
    """Print what could be freed, or free it."""
    unused = [row.stage for row in rows if row.kept_because is None]
    size = sum(stage.size_bytes for stage in unused)
    if not unused:
        console.print("No stage can be freed: each is used by a run, or is new.")
        return
    if not free:
        console.print(
            f"{_count(unused)} of {format_size(size)} could be freed: no run refers to them."
            " Nothing was removed. To remove them, name all folders with runs that use these"
            " stages, and set free=true: 'runs=[runs]' free=true."
        )
        return
    removed = [stage for stage in unused if stages.free(stage)]
    freed = sum(stage.size_bytes for stage in removed)
    busy = len(unused) - len(removed)
    in_use = f" {busy} {'is' if busy == 1 else 'are'} in use, and stayed." if busy else ""
    console.print(f"{_count(removed)} removed, {format_size(freed)} freed.{in_use}")


def _count(stages: Sequence[StoredStage]) -> str:
    return f"{len(stages)} stage{'' if len(stages) == 1 else 's'}"
