"""Pipes and devices in the place of files: no reader opens them and waits."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.data.csv_file import CsvFile
from kd_app.data.image_list import read_image_list
from kd_app.data.image_tree import is_image
from kd_app.data.timm_reader import TimmReader
from kd_app.models.checkpoint import INDEX, read_checkpoint
from kd_app.models.weights_metadata import read_metadata
from kd_app.reporting.html.write import check_owner
from kd_app.reporting.runs import Run
from kd_app.run_files import CURVES, EXAMPLES, PREDICTIONS
from tests.data.test_timm_reader import photos
from tests.reporting.run_folders import build_results

TABLES = {CURVES: "curves", EXAMPLES: "examples", PREDICTIONS: "predictions"}


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    """A reader that waits fails its test after seconds."""

    def fail(*_: Any) -> None:
        raise AssertionError("it waits")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def read_index(pipe: Path) -> None:
    index = pipe.with_name(f"model{INDEX}")
    index.write_text(json.dumps({"weight_map": {"x": pipe.name}}), encoding="utf-8")
    read_checkpoint(index)


def read_run(pipe: Path, name: str) -> None:
    run = Run(pipe.rename(pipe.with_name(name)).parent, build_results())
    getattr(run, TABLES[name])


def read_as_timm(pipe: Path) -> None:
    root = photos(pipe.parent / "photos", ["a/1.png", "b/2.png"])
    os.rename(pipe, root / "a" / "pipe.png")
    TimmReader(root=root, reader="folder", channels=3).list_images()


def read_table(pipe: Path) -> None:
    root = pipe.rename(pipe.with_suffix(".csv"))
    settings: dict[str, Any] = {"columns": {}, "splits": None, "images": None, "suffix": None}
    CsvFile(root=root, channels=3, whole_labels=False, **settings).find()


REFUSED: dict[str, Callable[[Path], Any]] = {
    "weights": read_checkpoint,
    "a part of weights": read_index,
    "images": lambda pipe: read_image_list(str(pipe)),
    "images of timm": read_as_timm,
    "a table": read_table,
    "an owner": lambda pipe: check_owner(pipe.rename(pipe.with_name("report.json")).parent),
    **{name: partial(read_run, name=name) for name in TABLES},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pipe_in_the_place_of_a_file_is_refused(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(RequestError):
        REFUSED[name](tmp_path / "pipe.safetensors")


def test_a_pipe_has_no_metadata_and_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_metadata(tmp_path / "pipe") == {}
    assert not is_image(str(tmp_path / "pipe"))
