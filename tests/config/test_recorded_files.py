"""Files of a finished run that are not as the run wrote them."""

import json
from pathlib import Path

import pytest

from kd_app.config import RequestError
from kd_app.config.recorded_files import check_recorded
from kd_app.digest import hash_file

NAMES = ("config.yaml", "student/model.safetensors", "student/config.json")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    files = []
    for name in NAMES:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name, encoding="utf-8")
        files.append({"name": name, "sha256": hash_file(path)})
    (tmp_path / "results.json").write_text(json.dumps({"files": files}), encoding="utf-8")
    return tmp_path


def test_unchanged_files_and_files_without_a_record_pass(run: Path) -> None:
    (run / "student" / "notes.txt").touch()
    for path in (run, run / "student", *(run / name for name in NAMES), run / "student/notes.txt"):
        check_recorded(path)
    check_recorded(run.parent)


@pytest.mark.parametrize("damage", [lambda path: path.write_text("x"), lambda path: path.unlink()])
def test_a_damaged_file_is_refused_by_every_path_that_reads_it(damage: object, run: Path) -> None:
    assert callable(damage)
    damage(run / NAMES[1])
    for path in (run, run / "student", run / NAMES[1]):
        with pytest.raises(RequestError, match=r"model.safetensors' (has changed|is missing).*Res"):
            check_recorded(path)
    check_recorded(run / NAMES[0])
    check_recorded(run / NAMES[2])


def test_results_that_can_not_be_read_are_left_to_their_reader(run: Path) -> None:
    (run / NAMES[0]).write_text("x")
    for content in ("{", "[]", '{"files": [1]}'):
        (run / "results.json").write_text(content)
        check_recorded(run)
