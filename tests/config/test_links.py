"""Links in folders that are read."""

from pathlib import Path

import pytest

from kd_app.config import RequestError
from kd_app.config.links import check_links


@pytest.mark.parametrize("place", ["results.json", "student/LICENSE.txt", "student"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_out_of_the_folder_is_refused(place: str, is_there: bool, tmp_path: Path) -> None:
    target, run = tmp_path / "secret", tmp_path / "run"
    if is_there:
        target.touch()
    (run / place).parent.mkdir(parents=True)
    (run / place).symlink_to(target)
    with pytest.raises(RequestError, match=rf"{place}' is a link out of the folder"):
        check_links(run)


def test_links_inside_of_the_folder_and_to_the_folder_pass(tmp_path: Path) -> None:
    (tmp_path / "run" / "student").mkdir(parents=True)
    (tmp_path / "run" / "a.csv").touch()
    (tmp_path / "run" / "student" / "b.csv").symlink_to("../a.csv")
    (tmp_path / "latest").symlink_to("run")
    check_links(tmp_path / "run")
    check_links(tmp_path / "latest")


def test_the_cache_of_the_hub_has_its_files_beside_the_folder(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "f00d").touch()
    (snapshot / "model.safetensors").symlink_to("../../blobs/f00d")
    check_links(snapshot)
    (snapshot / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(RequestError, match="link out of the folder"):
        check_links(snapshot)


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(RequestError, match=r"link out of the folder, to '[ab]'"):
        check_links(tmp_path)
