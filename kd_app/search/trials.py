"""Readers of a sweep's folder: the proposals of a search, and the results and curves of
the trials.
"""

import csv
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kd_app.config import RequestError
from kd_app.config.recorded_files import check_recorded
from kd_app.digest import CHANGED, is_changed
from kd_app.reporting.results import Results, read
from kd_app.run_files import CURVES, RESULTS

FILE = "search.json"
CURVE = "validation/top1"


def require_optuna() -> None:
    """Raise `RequestError` if optuna is not installed."""
    if find_spec("optuna") is None:
        raise RequestError(
            "A search and trial_pruning=median need optuna, which is not installed. Install it: pip"
            " install 'kd_app[search]'. A plain sweep (-m seed=0,1) works without optuna."
        )


def read_proposals(out: Path) -> dict[str, Any] | None:
    """The content of ``search.json`` in `out`; None if there is no search."""
    if not (out / FILE).is_file():
        return None
    try:
        record: dict[str, Any] = json.loads((out / FILE).read_text(encoding="utf-8"))
        record["search"], record["proposed"]
        is_damaged = is_changed(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{str(out / FILE)!r} can't be read ({type(error).__name__}). The trials are not"
            " affected: move that file away to start a new search."
        ) from None
    if is_damaged:
        raise RequestError(
            f"{str(out / FILE)!r} {CHANGED} The trials are not affected: restore that file, or move"
            " it away to start a new search."
        )
    return record


def read_trial_results(folder: Path) -> Results | None:
    """The results of a trial; None if there are no readable results."""
    try:
        return read(folder / RESULTS)
    except RequestError:
        return None


def read_curve(folder: Path) -> dict[int, float]:
    """The student's validation accuracy by epoch, in a finished trial."""
    path = folder / CURVES
    if not path.is_file():
        return {}
    check_recorded(path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "student" and row.get(CURVE)]
    return {int(float(row["epoch"])): float(row[CURVE]) for row in rows}
