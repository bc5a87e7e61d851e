"""The shards of a teacher cache: what is computed, by whom, and in which format."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from kd_app.config import RunError
from kd_app.models.spec import LoadedModel
from kd_app.run import teacher_views
from kd_app.run.model import RunModel
from kd_app.run.role_jobs import build_control_job, build_student_job
from kd_app.run.workspace import Workspace
from kd_app.teacher_outputs.cache import TeacherCache
from kd_app.teacher_outputs.filling import CacheFiller
from kd_app.training.job import CachedOutputs
from tests.builders import build_workspace, teacher_folder

CACHED = (
    "teacher.outputs=cached",
    "controls=[]",
    "data.views=2",
    "trainer.max_epochs=2",
    "data.batch_size=256",
    "student.name=resnet8",
)


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def workspace(teacher_path: Path, tmp_path: Path) -> Workspace:
    return build_workspace(tmp_path, f"teacher.checkpoint={teacher_path}", *CACHED)


def load_teacher(workspace: Workspace) -> RunModel:
    teacher = workspace.load_pretrained_teacher()
    assert teacher is not None
    return teacher


def cache(workspace: Workspace) -> CachedOutputs:
    job = build_student_job(workspace, load_teacher(workspace))
    assert job.teacher is not None
    assert job.teacher.cached is not None
    return job.teacher.cached


def load(outputs: CachedOutputs) -> TeacherCache:
    return TeacherCache.load(outputs.shards)


class FillRecorder:
    """Records the views and the numbers of images that are computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, int]] = []
        plain = CacheFiller.fill

        def fill(
            filler: CacheFiller, format: Any, view: int, rows: Any, *more: Any, **k: Any
        ) -> None:
            self.calls.append((view, len(rows)))
            plain(filler, format, view, rows, *more, **k)

        monkeypatch.setattr(CacheFiller, "fill", fill)


def test_only_views_and_images_that_the_training_reads_are_computed(
    teacher_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = FillRecorder(monkeypatch)
    words = (f"teacher.checkpoint={teacher_path}", *CACHED, "data.views=4")
    cache(build_workspace(tmp_path, *words))
    assert recorder.calls == [(0, 1295), (1, 1295)]
    cache(build_workspace(tmp_path, *words, "trainer.max_epochs=3"))
    assert recorder.calls[2:] == [(2, 1295)]  # the others are there
    limited = build_workspace(tmp_path, *words, "trainer.limit_train_batches=2")
    outputs = cache(limited)
    assert recorder.calls[3:] == [(0, 512), (1, 512)]
    limited.data.bind(build_student_job(limited, None).input, order_seed=limited.spec.recipe.seed)
    batches = list(limited.data.train_dataloader())[:2]
    images = np.sort(torch.cat([batch.index for batch in batches]).numpy())
    assert load(outputs).images[0].tolist() == images.tolist()


def test_another_image_of_the_class_can_be_any_training_image(
    teacher_path: Path, tmp_path: Path
) -> None:
    words = (*CACHED, "controls=[shuffled_teacher]", "trainer.limit_train_batches=2")
    workspace = build_workspace(tmp_path, f"teacher.checkpoint={teacher_path}", *words)
    job = build_control_job(workspace, "shuffled_teacher", load_teacher(workspace))
    assert job.teacher is not None
    assert job.teacher.cached is not None
    assert len(load(job.teacher.cached).images[0]) == 1295


@contextmanager
def hold(folders: list[Path]) -> Iterator[None]:
    """What another process does while it builds these stages."""
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(FileLock(folder.with_name(f".{folder.name}.lock")))
        yield


def test_processes_share_the_shards_and_take_over_those_of_a_dead_one(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_views, "_LEAST_BLOCK", 400)
    whole = cache(workspace)
    assert len(whole.shards) == 2 * 4
    expected = {path.name: (path / "rows.bin").read_bytes() for path in whole.shards}
    for path in whole.shards:
        shutil.rmtree(path)
    recorder = FillRecorder(monkeypatch)
    other = hold(list(whole.shards[:3]))
    other.__enter__()
    plain = workspace.stages.find_or_build
    waits: list[str] = []

    def find_or_build(name: str, **more: Any) -> Any:
        if not waits:  # the other process ends without having built its shards
            assert len(recorder.calls) == 5
            other.__exit__(None, None, None)
        waits.append(name)
        return plain(name, **more)

    monkeypatch.setattr(workspace.stages, "find_or_build", find_or_build)
    again = cache(workspace)
    assert len(recorder.calls) == 8
    assert {path.name: (path / "rows.bin").read_bytes() for path in again.shards} == expected
    rows = load(again).images[1]
    assert rows.tolist() == workspace.data.list_rows("train").tolist()  # type: ignore[union-attr]


def test_a_damaged_or_lost_shard_is_computed_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = cache(workspace).shards
    content = [(each / "rows.bin").read_bytes() for each in (first, second)]
    with (first / "rows.bin").open("r+b") as file:
        file.truncate(100)
    shutil.rmtree(second)
    recorder = FillRecorder(monkeypatch)
    cache(workspace)
    assert recorder.calls == [(0, 1295), (1, 1295)]
    assert [(each / "rows.bin").read_bytes() for each in (first, second)] == content


def test_the_cache_of_another_teacher_under_this_name_is_refused(
    workspace: Workspace, tmp_path: Path
) -> None:
    shards = cache(workspace).shards
    other_path = teacher_folder(tmp_path / "other", "resnet14")
    other = build_workspace(tmp_path / "b", f"teacher.checkpoint={other_path}", *CACHED)
    for ours, theirs in zip(shards, cache(other).shards, strict=True):
        shutil.rmtree(ours)
        shutil.copytree(theirs, ours)
    with pytest.raises(RunError, match=r"does not hold its outputs: .* was inferred again"):
        cache(workspace)


def test_a_disk_that_is_too_small_is_reported_before_the_teacher_runs(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = FillRecorder(monkeypatch)
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("kd_app.teacher_outputs.filling.shutil.disk_usage", lambda _: usage)
    with pytest.raises(RunError, match=r"2,590 views of images take .* lower data\.views"):
        cache(workspace)
    assert recorder.calls == []


def lose(monkeypatch: pytest.MonkeyPatch, **shares: float) -> None:
    monkeypatch.setattr(
        CacheFiller, "measure_lost_shares", lambda _, format, __: {1.0: shares[format.name]}
    )


AT_ONE = ("loss=[cross_entropy,soft_target]", "loss.soft_target.temperature=1")


def build_wide(teacher_path: Path, tmp_path: Path, *more: str) -> Workspace:
    """With a format for many classes in spite of ten."""
    words = (f"teacher.checkpoint={teacher_path}", *CACHED, *AT_ONE, *more)
    return build_workspace(tmp_path, *words)


def test_auto_replaces_a_format_that_loses_too_much(
    teacher_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(monkeypatch, embedding=0.03, int8=0.0)
    monkeypatch.setattr("kd_app.teacher_outputs.choice._SMALL", 4)
    monkeypatch.setattr("kd_app.run.cache_plan.measure_embedding_width", measure_one)
    assert cache(build_wide(teacher_path, tmp_path)).format == "int8"


def measure_one(_: LoadedModel) -> int:
    return 1


def test_a_format_that_loses_too_much_is_refused_by_name(
    teacher_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(monkeypatch, int8=0.03)
    with pytest.raises(RunError, match=r"int8 loses 3.0% of the teacher's KL .* at temperature 1"):
        cache(build_wide(teacher_path, tmp_path, "teacher.cache=int8"))
