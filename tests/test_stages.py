"""The cache of long-running steps: reuse, resumption, and several processes."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from kd_app.digest import hash_file, hash_value
from kd_app.files import remove
from kd_app.stages import (
    RECORD,
    Stage,
    Stages,
    hash_content,
    sweep_leftovers,
    write_atomically,
)
from tests.training.processes import start

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


def make(
    stages: Stages,
    build: Callable[[Path], None],
    name: str = "teacher",
    lr: float = 0.1,
    data: str = "abc",
) -> Stage:
    return stages.find_or_build(name, config={"lr": lr}, inputs={"data": data}, build=build)


def writes(text: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "result").write_text(text)

    return build


def refuses(folder: Path) -> None:
    raise AssertionError("built again")


def test_a_stage_is_found_instead_of_built_again(tmp_path: Path) -> None:
    first = make(Stages(tmp_path), writes("one"))
    again = make(Stages(tmp_path), refuses)
    assert (first.is_new, again.is_new) == (True, False)
    assert first.path == again.path
    assert (again.path / "result").read_text() == "one"
    assert again.seconds == first.seconds


@pytest.mark.parametrize("other", [{"name": "student"}, {"lr": 0.2}, {"data": "abd"}])
def test_another_name_configuration_or_input_is_another_stage(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    stages = Stages(tmp_path)
    first, second = make(stages, writes("one")), make(stages, writes("two"), **other)
    assert second.is_new
    assert (first.path / "result").read_text() == "one"
    assert (second.path / "result").read_text() == "two"


@given(PLAIN)
def test_a_fingerprint_depends_on_the_content_and_not_on_the_order_of_keys(value: Any) -> None:
    turned = dict.fromkeys(("b", "a"), value)
    assert hash_value({"a": value, "b": value}) == hash_value(turned)
    assert hash_value([value]) != hash_value([value, None])
    assert hash_value(json.loads(json.dumps(value))) == hash_value(value)


def test_a_failed_build_leaves_no_stage_and_the_next_build_resumes_it(
    tmp_path: Path,
) -> None:
    def half(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("disk full")

    def rest(folder: Path) -> None:
        assert (folder / "half").exists()

    with pytest.raises(OSError, match="disk full"):
        make(Stages(tmp_path), half)
    assert [path.suffix for path in tmp_path.glob("teacher-*")] == [".partial"]
    assert make(Stages(tmp_path), rest).is_new
    assert make(Stages(tmp_path), refuses).path.joinpath("half").exists()
    assert [path.suffix for path in tmp_path.glob("teacher-*")] == [""]


@pytest.mark.parametrize(
    "damage", [b"", b"on", b"ome", None], ids=["empty", "cut off", "changed", "gone"]
)
def test_a_stage_with_a_damaged_file_is_rebuilt_with_a_message(
    tmp_path: Path, damage: bytes | None
) -> None:
    messages: list[str] = []
    result = make(Stages(tmp_path), writes("one")).path / "result"
    result.unlink() if damage is None else result.write_bytes(damage)
    again = make(Stages(tmp_path, say=messages.append), writes("one"))
    assert again.is_new
    assert result.read_text() == "one"
    assert messages == [
        f"{again.path.name}: result is missing or changed since the stage was built; the stage"
        " is rebuilt"
    ]
    assert not make(Stages(tmp_path), refuses).is_new


def test_a_large_file_is_hashed_in_parts_and_verified_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_app.stages._PART", 2)
    result = make(Stages(tmp_path), writes("one two")).path / "result"
    parts = b"".join(hashlib.sha256(part).digest() for part in (b"on", b"e ", b"tw", b"o"))
    assert hash_content(result) == f"parts {hashlib.sha256(parts).hexdigest()}"
    assert not make(Stages(tmp_path), refuses).is_new
    result.write_text("one twp")
    assert make(Stages(tmp_path), writes("one two")).is_new


def test_an_unchanged_file_is_hashed_once_in_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_app.stages._SETTLED_NS", -1)
    result = make(Stages(tmp_path), writes("one")).path / "result"
    with patch("kd_app.stages.hash_file") as hashed:
        make(Stages(tmp_path), refuses)
        make(Stages(tmp_path), refuses)
        assert not hashed.called
    status = result.stat()
    time.sleep(0.02)
    result.write_text("two")
    os.utime(result, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert make(Stages(tmp_path), writes("one")).is_new


@pytest.mark.parametrize("damage", ["gone", "empty", "[1]", "seconds"])
def test_a_stage_with_a_damaged_record_is_rebuilt(tmp_path: Path, damage: str) -> None:
    record = make(Stages(tmp_path), writes("one")).path / "stage.json"
    content = record.read_text()
    if damage == "gone":
        record.unlink()
    else:
        changed = {"empty": "", "seconds": content.replace('"seconds": ', '"seconds": 1')}
        record.write_text(changed.get(damage, damage))
    assert Stages(tmp_path).find("teacher", config={"lr": 0.1}, inputs={"data": "abc"}) is None
    assert make(Stages(tmp_path), writes("one")).is_new


def test_seconds_add_up_over_attempts(tmp_path: Path) -> None:
    def takes(seconds: float, *, fails: bool) -> Callable[[Path], None]:
        def build(folder: Path) -> None:
            time.sleep(seconds)
            if fails:
                raise RuntimeError

        return build

    with pytest.raises(RuntimeError):
        make(Stages(tmp_path), takes(0.2, fails=True))
    stage = make(Stages(tmp_path), takes(0.1, fails=False))
    assert 0.3 <= stage.seconds < 5
    assert make(Stages(tmp_path), refuses).seconds == pytest.approx(stage.seconds)


def test_a_stage_is_remade_once_in_a_run_and_other_stages_are_not(tmp_path: Path) -> None:
    for name in ("teacher", "student"):
        make(Stages(tmp_path), writes("old"), name=name)
    stages = Stages(tmp_path, remake=["student"])
    assert not make(stages, refuses, name="teacher").is_new
    assert make(stages, writes("new"), name="student").is_new
    assert not make(stages, refuses, name="student").is_new
    assert (make(Stages(tmp_path), refuses, name="student").path / "result").read_text() == "new"


def test_remaking_also_removes_an_unfinished_attempt(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    def fresh(folder: Path) -> None:
        assert not (folder / "half").exists()

    with pytest.raises(KeyboardInterrupt):
        make(Stages(tmp_path), half)
    make(Stages(tmp_path, remake=["teacher"]), fresh)


@given(st.text(max_size=30))
def test_an_atomic_write_leaves_only_the_written_file(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.mktemp("atomic")
    for content in ("before", text):
        write_atomically(folder / "file", content)
    assert (folder / "file").read_bytes() == text.encode().replace(b"\n", os.linesep.encode())
    assert list(folder.iterdir()) == [folder / "file"]


def test_a_files_sha256_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert (
        hash_file(tmp_path / "file")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


# -- several processes


def _child(root: Path, number: int, slow: float) -> None:
    """Build the stage; every attempt adds a line to ``attempts``, and every wait a line
    to ``waited``.
    """

    def build(folder: Path) -> None:
        with (root / "attempts").open("a") as file:
            file.write(f"{number}\n")
        (folder / f"by{number}").touch()
        time.sleep(slow)

    def say(text: str) -> None:
        with (root / "waited").open("a") as file:
            file.write(f"{number} {text}\n")

    stage = make(Stages(root / "stages", say=say), build)
    (root / f"found{number}").write_text(
        f"{stage.is_new} {sorted(path.name for path in stage.path.glob('by*'))}"
    )


def child(root: Path, number: int, slow: float) -> BaseProcess:
    return start(_child, root, number, slow)


def until(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def test_one_process_builds_a_stage_and_the_others_wait_for_it(
    tmp_path: Path,
) -> None:
    children = [child(tmp_path, number, slow=0.5) for number in range(3)]
    for each in children:
        each.join(60)
        assert each.exitcode == 0
    maker = (tmp_path / "attempts").read_text().strip()
    assert maker in ("0", "1", "2")
    outcomes = {str(number): (tmp_path / f"found{number}").read_text() for number in range(3)}
    assert outcomes == {number: f"{number == maker} ['by{maker}']" for number in outcomes}
    waited = (
        (tmp_path / "waited").read_text().splitlines() if (tmp_path / "waited").exists() else []
    )
    assert all(
        "another process is building this stage" in line and line[0] != maker for line in waited
    )


def test_after_a_kill_during_a_build_the_lock_is_free_and_the_files_remain(
    tmp_path: Path,
) -> None:
    first = child(tmp_path, 0, slow=60)
    until(tmp_path / "attempts")
    waiting = child(tmp_path, 1, slow=0)
    until(tmp_path / "waited")
    os.kill(first.pid or 0, signal.SIGKILL)
    waiting.join(30)
    assert waiting.exitcode == 0
    assert (tmp_path / "found1").read_text() == "True ['by0', 'by1']"
    assert not make(Stages(tmp_path / "stages"), refuses).is_new


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / ".folder.7.partial").mkdir()
    kept = tmp_path / "kept"
    kept.touch()
    (tmp_path / ".link.x.partial").symlink_to(kept)
    for name in ("results.json", "student/.model.safetensors.1.partial", ".results.json.9.partial"):
        (tmp_path / name).touch()
    sweep_leftovers(tmp_path)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert names == ["kept", "results.json", "student"]


def test_beside_the_stages_only_old_leftovers_are_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".book.1.partial", tmp_path / ".book.2.partial"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    (tmp_path / "student-0.partial").mkdir()  # an attempt that can be resumed
    make(Stages(tmp_path), lambda folder: None)
    assert not old.exists()
    assert new.exists()
    assert (tmp_path / "student-0.partial").is_dir()


def test_an_attempt_starts_without_the_temporary_files_of_the_last_one(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / ".last.ckpt.partial").touch()
        (folder / "last.ckpt").touch()
        raise OSError

    names: list[str] = []
    with pytest.raises(OSError):  # noqa: PT011
        make(Stages(tmp_path), fail)
    make(Stages(tmp_path), lambda folder: names.extend(os.listdir(folder)))
    assert sorted(names) == ["last.ckpt", "stage.json"]


def test_a_link_in_an_unfinished_stage_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    finished = make(Stages(tmp_path / "other"), writes("one")).path
    partial = tmp_path / "stages" / f"{finished.name}.partial"
    partial.mkdir(parents=True)
    (partial / "result").symlink_to(victim)
    assert make(Stages(partial.parent), writes("two")).path.joinpath("result").read_text() == "two"
    assert victim.read_text() == "precious"


def test_a_link_in_the_place_of_an_unfinished_stage_is_not_written_through(tmp_path: Path) -> None:
    name = make(Stages(tmp_path / "other"), writes("one")).path.name
    (tmp_path / "home").mkdir()
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / f"{name}.partial").symlink_to(tmp_path / "home")
    make(Stages(tmp_path / "stages"), writes("two"))
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "file", "link to a folder", "link in place of a file"])
def test_a_stage_with_something_that_its_record_does_not_name_is_rebuilt(
    tmp_path: Path, kind: str
) -> None:
    messages: list[str] = []
    secret = tmp_path / "secret"
    secret.mkdir() if "folder" in kind else secret.write_text("one")
    stage = make(Stages(tmp_path / "stages"), writes("one")).path
    if kind == "file":
        (stage / "quantized.pte").touch()
    elif "place" in kind:
        (stage / "result").unlink()
        (stage / "result").symlink_to(secret)
    else:
        (stage / "LICENSE.txt").symlink_to(secret)
    again = make(Stages(tmp_path / "stages", say=messages.append), writes("one"))
    assert again.is_new
    assert [path.name for path in sorted(stage.iterdir())] == ["result", RECORD]
    assert not (stage / "result").is_symlink()
    (message,) = messages
    assert "since the stage was built; the stage is rebuilt" in message
    assert secret.exists()


def test_a_hidden_file_that_a_system_left_does_not_matter(tmp_path: Path) -> None:
    stage = make(Stages(tmp_path), writes("one")).path
    (stage / ".DS_Store").touch()
    assert not make(Stages(tmp_path), refuses).is_new


def test_a_record_that_names_files_elsewhere_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one")
    stage = make(Stages(tmp_path / "stages"), writes("one")).path
    record = json.loads((stage / RECORD).read_text())
    del record["sha256"]
    record["files"]["../../secret"] = hash_content(tmp_path / "secret")
    (stage / RECORD).write_text(json.dumps({**record, "sha256": hash_value(record)}))
    assert make(Stages(tmp_path / "stages"), writes("one")).is_new


def test_a_finished_stage_needs_no_lock_and_no_right_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(Stages(tmp_path), writes("one")).path
    path.with_name(f".{path.name}.lock").unlink()
    monkeypatch.setattr(Stages, "_lock", refuses)
    monkeypatch.setattr(Path, "mkdir", refuses)
    assert make(Stages(tmp_path), refuses).path == path


def test_files_of_a_stage_have_the_rights_of_the_umask(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "model").mkdir(mode=0o700)
        (folder / "model" / "weights").touch(mode=0o600)

    before = os.umask(0o002)
    try:
        stage = make(Stages(tmp_path), build).path
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (stage, *sorted(stage.rglob("*")))]
    assert modes == [0o775, 0o775, 0o664, 0o664]
    assert not make(Stages(tmp_path), refuses).is_new


def test_relative_stages_have_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        make(Stages(Path("runs/.stages")), writes("one")).path.parent == tmp_path / "runs/.stages"
    )


def lock_stage(stages: Stages, name: str = "teacher", **more: Any) -> FileLock:
    """The lock that a process holds while it builds the stage."""
    path = make(stages, writes("x"), name, **more).path
    remove(path)
    return FileLock(path.with_name(f".{path.name}.lock"))


def test_a_stage_that_another_process_builds_is_left_to_it(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    lock = lock_stage(stages)
    calls: list[Path] = []

    def build_unless_busy() -> Stage | None:
        return stages.build_unless_busy(
            "teacher", config={"lr": 0.1}, inputs={"data": "abc"}, build=calls.append
        )

    with lock:
        assert build_unless_busy() is None
    assert calls == []
    stage = build_unless_busy()
    assert stage is not None
    assert (stage.is_new, len(calls)) == (True, 1)
    with lock:  # a finished stage needs no lock
        again = build_unless_busy()
    assert again is not None
    assert not again.is_new
