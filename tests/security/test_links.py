"""Links in the folders of others are not followed by what writes there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import ANY

import pytest

from kd_app.config import RequestError
from kd_app.jobs.export import copy_whole
from kd_app.models.save import copy_labeled
from kd_app.run.folder import check_out, claim_folder
from tests.builders import teacher_folder

ROOT = Path(__file__).parents[2]
NOBODY = 65534
CONFIG = {"seed": 0}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "victim"
    path.parent.mkdir()
    path.write_text("precious")
    return path


def test_an_exported_file_replaces_links_under_its_names(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "source").write_text("onnx")
    target = tmp_path / "export" / "model.onnx"
    target.parent.mkdir()
    for name in ("model.onnx", ".model.onnx.partial", f".model.onnx.{os.getpid()}.partial"):
        (target.parent / name).symlink_to(victim)
    copy_whole(tmp_path / "source", target)
    assert target.read_text() == "onnx"
    assert not target.is_symlink()
    assert victim.read_text() == "precious"


def test_a_copied_model_holds_no_file_that_a_link_names(tmp_path: Path, victim: Path) -> None:
    source, student = teacher_folder(tmp_path / "model"), tmp_path / "student"
    (source / "LICENSE.txt").symlink_to(victim)
    (source / "more").symlink_to(victim.parent)
    (source / "notice.txt").write_text("regular")
    copy_labeled(source, student, license="mit", teacher=None, decoding={})
    assert sorted(os.listdir(student)) == ["config.json", "model.safetensors", "notice.txt"]


def test_a_run_writes_nothing_through_links_in_its_folder(tmp_path: Path, victim: Path) -> None:
    out = tmp_path / "run"
    with claim_folder(out, CONFIG, overwrite=False):
        pass
    (out / "student").mkdir()
    (out / "student" / "more").symlink_to(victim.parent)
    (out / "student" / "inside").symlink_to("..")
    (out / "notes").symlink_to(victim.parent)  # a run writes nothing there
    (out / ".before").symlink_to(victim.parent)
    for name in ("wandb", "results.json", "teacher"):
        (out / name).symlink_to(victim.parent if name != "results.json" else victim)
    with claim_folder(out, CONFIG, overwrite=False):
        assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == [
            "config.yaml",
            "notes",
            "student",
        ]
        assert os.listdir(out / "student") == ["inside"]
    assert os.listdir(victim.parent) == ["victim"]
    assert victim.read_text() == "precious"


def test_a_refused_request_removes_no_link(tmp_path: Path, victim: Path) -> None:
    out = tmp_path / "run"
    with claim_folder(out, CONFIG, overwrite=False):
        pass
    (out / "wandb").symlink_to(victim.parent)
    with (
        pytest.raises(RequestError, match="another configuration"),
        claim_folder(out, {"seed": 1}, overwrite=False),
    ):
        raise AssertionError("claimed")
    assert (out / "wandb").is_symlink()


def test_a_folder_in_a_run_that_is_a_link_out_of_it_is_refused(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "big disk"
    run.mkdir()
    elsewhere.mkdir()
    (run / "export").symlink_to(elsewhere)
    with pytest.raises(RequestError, match=r"is a link out of the run's folder, to '.*big disk'"):
        check_out(run / "export", tmp_path / "stages", run)
    check_out(elsewhere, tmp_path / "stages", run)
    (tmp_path / "alias").symlink_to(run)
    check_out(tmp_path / "alias" / "compressed", tmp_path / "stages", tmp_path / "alias")


RIGHTS = "-dac_override,-dac_read_search,-fowner"
OTHER_USER = ["setpriv", f"--bounding-set={RIGHTS}", f"--inh-caps={RIGHTS}"]
"""Root without the rights of root over the files of others."""
WORDS = ["debug=fdr", "logger=[csv]", "teacher.name=resnet8", "trainer=cpu", "stages=../stages"]


def run(folder: Path, command: str, *words: str, user: Sequence[str] = ()) -> tuple[int, str]:
    """The exit code and stderr of a command in a folder."""
    folder.mkdir(exist_ok=True)
    program = [sys.executable, "-m", f"kd_app.commands.{command}", *words]
    result = subprocess.run(
        [*user, *program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        umask=0o022,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can be two users"
)
def test_two_users_share_stages(tmp_path: Path) -> None:
    """The first one computes a teacher; the second one reads it and may not write."""
    first, second, elsewhere = (tmp_path / name for name in ("first", "second", "elsewhere"))
    assert run(first, "distill", *WORDS, "out=run") == (0, ANY)
    stages = tmp_path / "stages"
    for path in (stages, *stages.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    files = [path for path in stages.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o044 for path in files} == {0o044}
    for lock in stages.glob(".*.lock"):
        lock.unlink()

    assert run(second, "distill", *WORDS, "out=run", user=OTHER_USER) == (0, ANY)
    records = json.loads((second / "run" / "results.json").read_text())["stages"]
    assert {record["status"] for record in records} == {"reused"}
    assert {Path(record["path"]).parent for record in records} == {stages}

    code, paragraph = run(second, "distill", *WORDS, "out=other", "seed=5", user=OTHER_USER)
    assert code == 1
    assert "Permission denied" in paragraph
    assert "Set stages= to another folder" in paragraph
    assert "Traceback" not in paragraph

    shutil.copytree(first / "run", elsewhere / "run")
    words = ["run=run", "out=again", "limit=1", "trainer=cpu"]
    assert run(elsewhere, "evaluate", *words) == (0, ANY)
    results = json.loads((elsewhere / "again" / "results.json").read_text())
    assert set(results["models"]) >= {"teacher", "student"}
