"""What is read from a run's folder lies in it."""

from pathlib import Path

import pytest

from kd_app.config import RequestError
from kd_app.config.links import check_links
from kd_app.reporting.results import read
from kd_app.run.open_model import open_model
from kd_app.run_files import READ
from kd_app.specs.model_specs import build_model_spec


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run" / "student").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    for name in ("results.json", "student/config.json"):
        (tmp_path / "run" / name).write_text("{}")
    return tmp_path / "run"


@pytest.mark.parametrize("name", [*READ, "student/LICENSE.txt", "teacher/reference.json"])
def test_a_link_out_of_the_folder_is_refused_by_name(run: Path, name: str) -> None:
    link = run / name
    link.parent.mkdir(exist_ok=True)
    if link.is_dir():
        link.rename(run / "moved")
    link.unlink(missing_ok=True)
    link.symlink_to(run.parent / "secret")
    with pytest.raises(RequestError, match=r"is a link to '.*secret', out of its folder"):
        check_links(run, READ)


def test_links_within_the_folder_and_beside_what_is_read_are_allowed(run: Path) -> None:
    (run / "metrics.csv").symlink_to("results.json")
    (run / "my data").symlink_to(run.parent)
    (run.parent / "alias").symlink_to(run)
    check_links(run, READ)
    check_links(run.parent / "alias", READ)
    with pytest.raises(RequestError, match="my data"):
        check_links(run)


def test_all_ways_into_a_run_check_its_links(run: Path) -> None:
    (run / "student" / "model.safetensors").symlink_to(run.parent / "secret")
    with pytest.raises(RequestError, match="out of its folder"):
        read(run / "results.json")
    with pytest.raises(RequestError, match="out of its folder"):
        open_model(str(run), threads=None)
    with pytest.raises(RequestError, match="out of its folder"):
        build_model_spec("student", {"checkpoint": run}, None)


def test_the_cache_of_the_hub_has_its_files_beside_the_folder(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "f00d").touch()
    (snapshot / "model.safetensors").symlink_to("../../blobs/f00d")
    check_links(snapshot)
    (snapshot / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(RequestError, match="out of its folder"):
        check_links(snapshot)


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(RequestError, match=r"is a link to '[ab]', out of its folder"):
        check_links(tmp_path)
