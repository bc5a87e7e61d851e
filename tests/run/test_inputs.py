"""The inputs of a run: recorded, compared, and refused if a finished run has others."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.data.build import build_data
from kd_app.reporting.console import Console
from kd_app.reporting.results import Results
from kd_app.run.inputs import InputRecord, RunInputs
from tests.builders import image_folder
from tests.reporting import run_folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of images, a class map and a checkpoint."""
    image_folder(tmp_path / "photos", images=6)
    image_folder(tmp_path / "more", images=2, classes=1)
    (tmp_path / "map.csv").write_text("teacher,class\n")
    (tmp_path / "net.pth").write_bytes(b"weights")
    (tmp_path / "out").mkdir()
    return tmp_path


def compose(root: Path) -> dict[str, Any]:
    return compose_config(
        "distill",
        [
            "data=folder",
            f"stages={root / 'stages'}",
            f"data.root={root / 'photos'}",
            f"data.unlabeled={root / 'more'}",
            f"teacher.checkpoint={root / 'net.pth'}",
            f"teacher.classes={root / 'map.csv'}",
        ],
    )


def open_inputs(root: Path) -> RunInputs:
    config = compose(root)
    return RunInputs(root / "out", config, build_data(config["data"]))


def record(root: Path) -> None:
    inputs = open_inputs(root)
    inputs.list_images()
    inputs.data.list()
    inputs.data.write_split(root / "out" / "split.csv")
    inputs.record()


def check(root: Path, status: str = "finished") -> str:
    """The refusal of a repeated command, without its advice; empty if there is none."""
    results: Results = run_folders.build_results(status=status)
    try:
        open_inputs(root).check(results, Console(silent=True))
    except RequestError as error:
        text, advice = str(error).split(" Its results were kept;")
        assert "overwrite=true" in advice
        return text
    return ""


def test_unchanged_inputs_are_accepted_also_with_new_times(root: Path) -> None:
    record(root)
    assert check(root) == ""
    for file in root.rglob("*.*"):
        os.utime(file, (1, 1))
    (root / "photos" / "class0" / "notes.txt").touch()
    assert check(root) == ""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda root: shutil.copy(
                root / "photos/class0/001.png", root / "photos/class0/000.png"
            ),
            "1 image with other content (class0/000.png)",
        ),
        (
            lambda root: shutil.copytree(root / "photos/class0", root / "photos/tri"),
            "6 images added (tri/000.png, tri/001.png, tri/002.png and 3 more), 1 new class (tri)",
        ),
        (
            lambda root: (root / "photos/class0/000.png").unlink(),
            "1 image removed (class0/000.png)",
        ),
        (
            lambda root: shutil.copy(root / "photos/class1/001.png", root / "more/new.png"),
            "1 image added (unlabeled/new.png)",
        ),
        (lambda root: (root / "net.pth").write_bytes(b"other"), "net.pth: net.pth changed"),
        (lambda root: (root / "map.csv").unlink(), "map.csv: not there any more"),
        (
            lambda root: shutil.rmtree(root / "photos"),
            "can't be compared with the data now: There is no",
        ),
    ],
)
def test_a_change_of_a_finished_runs_inputs_is_refused_by_name(
    root: Path, change: Any, expected: str
) -> None:
    record(root)
    change(root)
    assert expected in check(root)


def test_a_file_that_keeps_size_and_time_is_still_seen_to_change(root: Path) -> None:
    record(root)
    file = root / "photos/class0/000.png"
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "1 image with other content" in check(root)


def test_changed_inputs_of_an_unfinished_run_are_a_note(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(root)
    (root / "net.pth").write_bytes(b"other")
    open_inputs(root).check(run_folders.build_results(status="failed"), Console())
    assert "has changed since it began" in capsys.readouterr().out


def test_without_a_record_the_images_are_compared_with_the_split(root: Path) -> None:
    record(root)
    for damage in (b"{}", b"", b"[1]", b'{"listing": 1}'):
        (root / "out" / "inputs.json").write_bytes(damage)
        assert InputRecord.read(root / "out") is None
        assert check(root) == ""
    (root / "photos/class0/000.png").unlink()
    assert "1 image removed (class0/000.png)" in check(root)


def test_damaged_results_are_protected_like_those_of_a_finished_run(root: Path) -> None:
    record(root)
    open_inputs(root).check(None, Console(silent=True))
    next((root / "photos").rglob("*.png")).unlink()
    with pytest.raises(RequestError, match=r"1 image removed.*Its results were kept"):
        open_inputs(root).check(None, Console(silent=True))
