"""Readers of a sweep's folder: the proposals of a search, and the results and curves of
the trials.
"""

import csv
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from kd_app.config import RequestError
from kd_app.config.recorded_files import check_recorded
from kd_app.config.records import parse_with, read_record
from kd_app.config.regular_file import open_regular_text
from kd_app.reporting.results import Results, read
from kd_app.run_files import CURVES, RESULTS
from kd_app.tasks.build import TASKS

FILE = "search.json"
EXPECTED = "The trials are not affected: move that file away to start a new search."


class SearchSettingsRecord(TypedDict):
    """The settings of a search; space: distributions in Optuna's JSON, by key."""

    sampler: str
    seed: int
    objectives: Annotated[dict[str, Literal["maximize", "minimize"]], Field(min_length=1)]
    space: dict[str, str]


class SearchRecord(TypedDict):
    """The content of ``search.json``; proposed: the parameters of each trial."""

    search: SearchSettingsRecord
    proposed: list[dict[str, Any]]


def require_optuna() -> None:
    """Raise `RequestError` if optuna is not installed."""
    if find_spec("optuna") is None:
        raise RequestError(
            "A search and trial_pruning=median need optuna, which is not installed. Install it: pip"
            " install 'kd_app[search]'. A plain sweep (-m seed=0,1) works without optuna."
        )


def read_proposals(out: Path) -> SearchRecord | None:
    """The content of ``search.json`` in `out`; None if there is no search."""
    path = out / FILE
    if not path.is_file():
        return None
    return read_record(path, SearchRecord, expected=EXPECTED, is_sealed=True)


def read_trial_results(folder: Path) -> Results | None:
    """The results of a trial; None if there are no readable results."""
    try:
        return read(folder / RESULTS)
    except RequestError:
        return None


def find_selected(row: Mapping[str, Any]) -> str | None:
    """The column of a point of the curves that chooses the best epoch; None if the
    point has none.
    """
    names = (f"validation/{task.selection.metric}" for task in TASKS)
    return next((name for name in names if row.get(name) not in (None, "")), None)


def read_curve(folder: Path) -> dict[int, float]:
    """The student's metric by epoch, by which its best epoch is chosen, in a finished
    trial.
    """
    path = folder / CURVES
    if not path.is_file():
        return {}
    check_recorded(path)

    def parse() -> dict[int, float]:
        with open_regular_text(path) as file:
            rows = list(csv.DictReader(file))
        points = ((row, find_selected(row)) for row in rows if row["stage"] == "student")
        return {int(float(row["epoch"])): float(row[name]) for row, name in points if name}

    return parse_with(path, parse, expected="Run the trial's command again to rewrite the file.")
