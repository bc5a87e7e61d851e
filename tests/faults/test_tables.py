"""Tables of a run that somebody changed: a report shows the rest of the run, and
`load_run` ends in values or in a `RequestError`.
"""

import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest

from kd_app.reporting.html.collect import build_report
from kd_app.reporting.html.sections import build_overview, build_sections
from kd_app.reporting.html.write import render_csv
from kd_app.reporting.neighbor_examples import NeighborRow, write_neighbors
from kd_app.reporting.runs import load_run
from kd_app.run_files import CURVES, EXAMPLES, NEIGHBORS, PREDICTIONS
from tests.faults.conftest import Fault
from tests.faults.full_results import NAMES
from tests.faults.mutations import VALUES
from tests.faults.test_records import MUTATIONS, read_or_explain
from tests.reporting.html.folders import run_folder

TABLES = (PREDICTIONS, EXAMPLES, NEIGHBORS, CURVES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables") / "run"
    run_folder(folder, names=NAMES, images=20, examples=True)
    row: Any = {"query": 1, "file": "a.png", "overlap": 0.5, "role": "student", "png": b"x"}
    near: Any = {"neighbor": [2], "neighbor_file": ["b.png"], "neighbor_png": [None]}
    write_neighbors(folder / NEIGHBORS, [NeighborRow(**row, **near)])
    return folder


def change(path: Path, seed: int) -> None:
    """Change the table in a file: its cells, columns, rows, or bytes."""
    draw = random.Random(seed)
    kind, content = draw.random(), path.read_bytes()
    if kind < 0.1:
        path.write_bytes(content[: draw.randrange(len(content))])
        return
    if kind < 0.2:
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :])
        return
    is_csv = path.suffix == ".csv"
    table = pd.read_csv(path) if is_csv else pd.read_parquet(path)
    column = draw.choice(list(table))
    if kind < 0.3:
        table = table.drop(columns=column)
    elif kind < 0.4:
        table = table.rename(columns={column: draw.choice(["", "x", "x_top1", "a_probabilities"])})
    elif kind < 0.5:
        table = table.iloc[draw.choice([[], [0], [0, 0, 0]])]
    elif kind < 0.8:
        table[column] = [draw.choice(VALUES)] * len(table)
    else:
        table[column] = table[column].astype(object)
        table.at[0, column] = draw.choice(VALUES)
    table.to_csv(path, index=False) if is_csv else table.to_parquet(path, index=False)


def use_table(folder: Path) -> None:
    with patch("kd_app.reporting.runs.check_recorded"):
        report = build_report([folder])
        build_overview(report)
        for part in report.runs:
            build_sections(report, part)
        render_csv(report).encode()
        report.model_dump_json().encode()
        run = load_run(folder)
        for name in ("predictions", "examples", "curves"):
            read_or_explain(partial(getattr, run, name), name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TABLES)
def test_a_changed_table_is_left_out_or_shown(
    name: str, folder: Path, tmp_path: Path, fault: Fault
) -> None:
    shutil.copytree(folder, tmp_path / "run")
    number, changed = MUTATIONS // 20, 0
    for seed in range(number):
        shutil.copy(folder / name, tmp_path / "run" / name)
        try:
            change(tmp_path / "run" / name, seed)
        except Exception:
            continue  # a table can't hold every value
        changed += 1
        try:
            use_table(tmp_path / "run")
        except Exception as error:
            raise AssertionError(f"mutation {seed} of {name}") from error
    fault(
        f"a table was changed: {name}",
        happened="left out of the page with a line, or all that reads it works",
        lost="nothing",
        times=changed,
    )
