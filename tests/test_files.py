"""Writing into folders that somebody else may have filled."""

import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kd_app.files import (
    follow_umask,
    is_outside,
    list_regular_files,
    make_folder,
    remove_links,
    replace_file,
    replace_folder,
)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "victim"
    path.parent.mkdir()
    path.write_text("precious")
    return path


@pytest.fixture
def _umask() -> Iterator[None]:
    before = os.umask(0o002)
    yield
    os.umask(before)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(path: Path, text: str = "new") -> None:
    with replace_file(path) as file:
        file.write(text.encode())


def test_a_file_is_replaced_whole_and_leaves_no_other_name(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with replace_file(path) as file:
        file.write(b"ne")
        assert path.read_text() == "old"
        (partial,) = tmp_path.glob(".a.*")
        assert partial.suffix == ".partial"
        file.write(b"w")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def fail() -> None:
        with replace_file(tmp_path / "a") as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_under_the_final_name_is_replaced(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "a").symlink_to(victim)
    write(tmp_path / "a")
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "a").read_text() == "new"
    assert victim.read_text() == "precious"


def test_a_link_under_the_temporary_name_is_not_followed(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda count: "guess")
    (tmp_path / ".a.guess.partial").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write(tmp_path / "a")
    assert victim.read_text() == "precious"


def test_temporary_names_differ(tmp_path: Path) -> None:
    names = set()
    for _ in range(20):
        with replace_file(tmp_path / "a") as file:
            names.add(Path(str(file.name)).name)
    assert len(names) == 20


def test_the_longest_name_has_room_for_a_temporary_one(tmp_path: Path) -> None:
    write(tmp_path / ("ä" * 127))
    with replace_folder(tmp_path / ("b" * 255)):
        pass
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("_umask")
def test_what_a_library_writes_gets_the_rights_of_the_umask(tmp_path: Path) -> None:
    with replace_file(tmp_path / "a") as file:
        private = tmp_path / "private"
        private.write_text("new")
        private.chmod(0o600)
        private.replace(str(file.name))
    assert (tmp_path / "a").read_text() == "new"
    assert rights(tmp_path / "a") == 0o664


@pytest.mark.usefixtures("_umask")
def test_all_files_and_folders_of_a_stage_get_them_and_links_are_left_alone(
    tmp_path: Path, victim: Path
) -> None:
    victim.chmod(0o600)
    stage = tmp_path / "stage"
    (stage / "model").mkdir(parents=True)
    for name in ("record", "model/weights"):
        (stage / name).write_text("x")
    (stage / "model" / "weights").chmod(0o600)
    (stage / "model").chmod(0o700)
    (stage / "link").symlink_to(victim)
    follow_umask(stage, like=stage / "record")
    assert rights(stage / "model" / "weights") == 0o664
    assert rights(stage / "model") == 0o775
    assert rights(victim) == 0o600


@pytest.mark.parametrize("kind", ["file", "folder", "link to a folder", "nothing"])
def test_a_folder_takes_the_place_of_what_was_there(
    tmp_path: Path, victim: Path, kind: str
) -> None:
    target = tmp_path / "student"
    if kind == "file":
        target.touch()
    elif kind == "folder":
        (target / "old").mkdir(parents=True)
    elif kind == "link to a folder":
        target.symlink_to(victim.parent)
    with replace_folder(target) as partial:
        (partial / "weights").touch()
    assert os.listdir(target) == ["weights"]
    assert not target.is_symlink()
    assert victim.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["home", "student"]


def test_a_link_in_the_place_of_a_folder_becomes_a_folder(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "teacher").symlink_to(victim.parent)
    for _ in range(2):
        make_folder(tmp_path / "teacher")
        assert not (tmp_path / "teacher").is_symlink()
    assert victim.read_text() == "precious"


def test_what_leads_out_of_a_folder_is_removed_from_it(tmp_path: Path, victim: Path) -> None:
    folder = tmp_path / "stage.partial"
    (folder / "model").mkdir(parents=True)
    (folder / "curves").write_text("kept")
    (folder / "link").symlink_to(victim)
    (folder / "model" / "folder").symlink_to(victim.parent)
    (folder / "second name").hardlink_to(victim)
    os.mkfifo(folder / "pipe")
    assert list_regular_files(folder) == (
        ["curves", "second name"],
        ["link", "model/folder", "pipe"],
    )
    remove_links(folder)
    assert list_regular_files(folder) == (["curves"], [])
    assert victim.read_text() == "precious"


def test_a_link_within_a_folder_is_not_outside(tmp_path: Path, victim: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "a").touch()
    (run / "inside").symlink_to("a")
    (run / "outside").symlink_to(victim)
    (tmp_path / "name").symlink_to(run)
    names = ["a", "inside", "outside"]
    for folder in (run, tmp_path / "name"):
        assert [is_outside(folder / name, folder) for name in names] == [False, False, True]
