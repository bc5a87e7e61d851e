"""Cached teacher logits train the same student as the running teacher."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_app.config import RequestError, RunError
from kd_app.config.compose import compose_config
from kd_app.data.batch import Batch
from kd_app.metrics.record import Predictions
from kd_app.models.teacher import FrozenTeacher
from kd_app.reporting.console import Console
from kd_app.run.role_jobs import draft_role_job
from kd_app.run.spec import build_spec
from kd_app.run.workspace import Workspace
from kd_app.stages import Stages, hash_file
from kd_app.training import teacher_cache
from kd_app.training.teacher_cache import CachedTeacherLogits, TeacherLogits
from tests.builders import Trained, teacher_folder, trained
from tests.commands.call import call

VIEWS = ("data.batch_size=256", "student.name=resnet8", "trainer.max_epochs=3", "data.views=2")
VIT = [
    f"student.kwargs.{key}={value}"
    for key, value in {"patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2}.items()
]
STORED = (*VIEWS, "teacher.outputs=cached")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def place(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of stages that many tests share, with the logits of two views."""
    folder = tmp_path_factory.mktemp("stored")
    trained(teacher, folder, *STORED)
    return folder


def weights(run: Trained) -> str:
    return hash_file(run.folder / "model" / "model.safetensors")


def files(place: Path) -> list[Path]:
    return sorted((place / "stages").glob("answers-teacher-views-*/logits.npy"))


class BatchCounter:
    """Count the teacher's batches; raise at batch `ends_at`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches = 0
        self.ends_at: int | None = None
        plain = FrozenTeacher.forward

        def forward(teacher: FrozenTeacher, image: torch.Tensor) -> Any:
            if self.batches == self.ends_at:
                raise RunError("pulled the plug")
            self.batches += 1
            return plain(teacher, image)

        monkeypatch.setattr(FrozenTeacher, "forward", forward)


def test_logits_are_selected_by_image_number() -> None:
    logits = TeacherLogits(torch.tensor([2, 5, 9]), torch.tensor([[2.0], [5.0], [9.0]]))
    assert logits.select(torch.tensor([9, 2, 2, 5])).flatten().tolist() == [9.0, 2.0, 2.0, 5.0]


def test_logits_of_predictions_are_sorted_by_image_number() -> None:
    logits = np.array([[5.0], [2.0], [9.0]], np.float32)
    predictions = Predictions(np.array([5, 2, 9]), np.array([0, 0, 0]), logits)
    assert TeacherLogits.from_predictions(predictions).logits.flatten().tolist() == [2.0, 5.0, 9.0]


def test_cached_logits_train_the_same_student_as_the_teacher(
    teacher: Path, place: Path, tmp_path: Path
) -> None:
    live = trained(teacher, tmp_path, *VIEWS)
    read = trained(teacher, place, *STORED)
    assert weights(read) == weights(live)
    assert [row["train/soft_target"] for row in read.curves if "train/soft_target" in row] == [
        row["train/soft_target"] for row in live.curves if "train/soft_target" in row
    ]


def test_other_seeds_and_label_fractions_read_the_same_cache(
    teacher: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = BatchCounter(monkeypatch)
    runs = [
        trained(teacher, place, *STORED, "trainer.max_epochs=1", *more)
        for more in (["seed=1"], ["data.label_fraction=0.1"], ["data.label_fraction=0.1", "seed=1"])
    ]
    assert len({weights(each) for each in runs}) == 3
    assert len(files(place)) == 1
    assert counter.batches == len(runs)  # once each, for the shapes of what the terms compare


@pytest.mark.parametrize(
    "other", ["data.seed=1", "data.view.padding=0", "data.views=3", "student.image_size=10"]
)
def test_logits_of_other_views_are_never_read(
    teacher: Path, place: Path, tmp_path: Path, other: str
) -> None:
    """Fault 6 of other toolkits: cached logits are used for another crop."""
    first = np.load(files(place)[0])
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=1")
    trained(teacher, tmp_path, *STORED, *short, other)
    second = np.load(files(tmp_path)[0])
    assert files(tmp_path)[0].parent.name != files(place)[0].parent.name
    assert first.shape != second.shape or not np.allclose(first, second, atol=1e-2)


def test_mixed_images_have_a_cache_of_their_own(teacher: Path, place: Path, tmp_path: Path) -> None:
    short = (
        "trainer.max_epochs=2",
        "data.split.validation=0.6",
        "data.augment.operations=1",
        "data.augment.erasing=0.5",
        "data.num_workers=0",
        "data.mix.mixup=1.0",
        "data.mix.cutmix=1.0",
        "data.label_fraction=0.5",
        "loss=[cross_entropy,nkd,soft_target]",
    )
    live = trained(teacher, tmp_path / "live", *VIEWS, *short)
    read = trained(teacher, tmp_path / "read", *STORED, *short)
    assert weights(read) == weights(live)
    assert files(tmp_path / "read")[0].parent.name not in {
        path.parent.name for path in files(place)
    }


def test_each_view_has_its_own_logits(place: Path) -> None:
    answers = CachedTeacherLogits.load(files(place)[0].parent)
    assert answers.logits.shape == (2, len(answers.index), 10)
    assert answers.logits.dtype == np.float32
    one, two = (
        answers.select(
            Batch(
                torch.zeros(3),
                torch.zeros(3),
                torch.from_numpy(answers.index[[5, 0, 7]].copy()),
                view=view,
            )
        )
        for view in (0, 1)
    )
    assert torch.equal(one, torch.from_numpy(answers.logits[0, [5, 0, 7]]))
    assert not torch.allclose(one, two, atol=1e-2)


def test_a_control_with_partner_images_reads_their_logits(place: Path) -> None:
    answers = CachedTeacherLogits.load(files(place)[0].parent)
    index, other = (torch.from_numpy(answers.index[rows].copy()) for rows in ([0, 1], [8, 9]))
    selected = answers.select(
        Batch(torch.zeros(2), torch.zeros(2), index, view=1, other_index=other)
    )
    assert torch.equal(selected, torch.from_numpy(answers.logits[1, [8, 9]]))


def test_an_interrupted_cache_is_resumed(
    teacher: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_cache, "_FLUSH_EVERY", 2)
    counter = BatchCounter(monkeypatch)
    counter.ends_at = 9  # 6 batches are a view: 8 are secured, one was answered after them
    with pytest.raises(RunError):
        trained(teacher, tmp_path, *STORED)
    counter.batches, counter.ends_at = 0, None
    trained(teacher, tmp_path, *STORED)
    assert counter.batches == 12 - 8 + 1
    assert np.array_equal(np.load(files(tmp_path)[0]), np.load(files(place)[0]))
    assert sorted(path.name for path in files(tmp_path)[0].parent.iterdir()) == [
        "index.npy",
        "logits.npy",
        "stage.json",
    ]


def test_logits_that_were_damaged_between_two_attempts_are_computed_again(
    tmp_path: Path,
) -> None:
    messages: list[str] = []
    logits, done, digest = teacher_cache._open_memmap(tmp_path, (2, 3, 2), messages.append)
    logits[0] = values = np.arange(6, dtype=np.float32).reshape(3, 2)
    digest.update(values.data)
    teacher_cache._flush(tmp_path, logits, 3, digest)
    assert teacher_cache._open_memmap(tmp_path, (2, 3, 2), messages.append)[1] == 3
    logits[0, 1, 1] = 7
    logits.flush()
    assert (done, messages) == (0, [])
    assert teacher_cache._open_memmap(tmp_path, (2, 3, 2), messages.append)[1] == 0
    assert "logits.npy is damaged; the teacher's logits are computed again" in messages[0]


def test_a_full_disk_is_reported_before_the_teacher_runs(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "kd_app.training.teacher_cache.shutil.disk_usage",
        lambda _: type("Usage", (), {"free": 1000})(),
    )
    counter = BatchCounter(monkeypatch)
    with pytest.raises(RunError, match=r"2 views of 1,295 images take .* lower data\.views"):
        trained(teacher, tmp_path, *STORED)
    assert not counter.batches


@pytest.mark.slow
def test_two_ranks_read_the_cache_of_one_process(
    teacher: Path, place: Path, tmp_path: Path
) -> None:
    two = (
        "trainer=ddp_sim",
        "data.batch_size=128",
        "data.label_fraction=0.5",
        "trainer.max_epochs=2",
        "student.name=vit_tiny_patch16_224",
        *VIT,
    )
    read = trained(teacher, place, *STORED, *two)
    live = trained(teacher, tmp_path, *VIEWS, *two)
    one = trained(teacher, place, *STORED, *two, "trainer=cpu", "data.batch_size=256")
    assert len(files(place)) == 1
    assert weights(read) == weights(live)
    ours, theirs = (
        each.member.loaded.model.state_dict() for each in (one, read)
    )  # no BatchNorm, which sees half as many
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-5)


def test_runs_with_different_numbers_of_views_share_the_teacher(
    tmp_path: Path,
) -> None:
    runs = []
    for words in ([], ["data.views=4"]):
        workspace = Workspace(
            build_spec(compose_config("distill", words)),
            Stages(tmp_path),
            Console(silent=True),
            tracker=None,
        )
        workspace.prepare_data()
        runs.append(
            {
                role: draft_role_job(workspace, role).describe_identity(
                    workspace.data, workspace.spec.trainer
                )
                for role in ("teacher", "student")
            }
        )
    assert runs[0]["teacher"] == runs[1]["teacher"]
    assert runs[0]["student"] != runs[1]["student"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher.outputs=cached"], "data.views=null"),
        (
            ["teacher.outputs=cached", "data.views=2", "loss=[cross_entropy,feature_hint]"],
            "feature_hint of the student also reads features",
        ),
        (["teacher.outputs=sometimes"], "'live' or 'cached'"),
        (["data.views=0"], "views=0"),
        (["data.label_fraction=0"], "label_fraction=0"),
        (["data.label_fraction=1.5"], "label_fraction=1.5"),
        (
            ["data.label_fraction=0.1", "controls=[labels_only,shuffled_teacher]"],
            "The control shuffled_teacher",
        ),
        (["data.mix.mixup=0"], "mixup=0"),
        (["data.augment.magnitude=31"], "magnitude=31"),
    ],
)
def test_incompatible_settings_are_refused_by_name(
    words: list[str], message: str, tmp_path: Path
) -> None:
    result = call(f"out={tmp_path / 'out'}", f"stages={tmp_path / 'stages'}", *words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_settings_of_kd_apps_images_are_refused_for_an_external_data_module() -> None:
    own = ["data._target_=tests.training.small_parts.OwnData", "data.batch_size=8"]
    for word in (
        "data.label_fraction=0.5",
        "data.views=2",
        "data.unlabeled=more",
        "data.mix.cutmix=1.0",
    ):
        with pytest.raises(
            RequestError,
            match=(
                f"{word.partition('.mix')[0].partition('=')[0]}.* needs images that kd_app decodes"
                " itself, but the data module OwnData"
            ),
        ):
            build_spec(compose_config("distill", [*own, word]))
    with pytest.raises(RequestError, match="provides batches without views"):
        build_spec(compose_config("distill", [*own, "teacher.outputs=cached"]))


def test_a_full_disk_is_an_error_before_anything_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int, start: int, size: int) -> None:
        assert size >= 4 * 2 * 3 * 5
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match="quota") as raised:
        teacher_cache._open_memmap(tmp_path, (2, 3, 5), print)
    assert raised.value.filename == str(tmp_path / "logits.npy")
    assert list(tmp_path.iterdir()) == []


def test_the_space_of_the_cache_is_allocated(tmp_path: Path) -> None:
    teacher_cache._open_memmap(tmp_path, (2, 300, 50), print)
    status = (tmp_path / "logits.npy").stat()
    assert status.st_blocks * 512 >= status.st_size > 4 * 2 * 300 * 50
