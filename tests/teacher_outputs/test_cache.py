"""Cached teacher outputs: which rows a batch gets, and that exact ones train the same
student as the running teacher.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_app.config import RequestError, RunError
from kd_app.config.compose import compose_config
from kd_app.digest import hash_file
from kd_app.metrics.record import Predictions
from kd_app.models.teacher import FrozenTeacher
from kd_app.reporting.console import Console
from kd_app.run.role_jobs import draft_role_job
from kd_app.run.workspace import Workspace
from kd_app.specs.spec import build_spec
from kd_app.stages import Stages
from kd_app.teacher_outputs.cache import (
    CacheShard,
    TeacherCache,
    TeacherLogits,
)
from tests.builders import StudentTraining, compare_resumed, teacher_folder, train_student
from tests.commands.call import call
from tests.teacher_outputs.shards import view_batch

VIEWS = (
    "data.batch_size=64",
    "data.split.test=0.78",
    "student.name=resnet8_narrow",
    "trainer.max_epochs=3",
    "data.views=2",
)
VIT = [
    f"student.kwargs.{key}={value}"
    for key, value in {"patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2}.items()
]
STORED = (*VIEWS, "teacher.outputs=cached")  # exact: ten classes take 40 bytes


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("teacher"), "resnet8_narrow")


@pytest.fixture(scope="module")
def place(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of stages that many tests share, with the logits of two views."""
    folder = tmp_path_factory.mktemp("stored")
    train_student(teacher, folder, *STORED)
    return folder


def weights(run: StudentTraining) -> str:
    return hash_file(run.folder / "model" / "model.safetensors")


def files(place: Path) -> list[Path]:
    return sorted((place / "stages").glob("answers-teacher-views-*/rows.bin"))


def names(place: Path) -> set[str]:
    return {path.parent.name for path in files(place)}


def load(place: Path) -> TeacherCache:
    return TeacherCache.load([path.parent for path in files(place)])


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
    live = train_student(teacher, tmp_path, *VIEWS)
    read = train_student(teacher, place, *STORED)
    assert weights(read) == weights(live)
    assert [row["train/soft_target"] for row in read.curves if "train/soft_target" in row] == [
        row["train/soft_target"] for row in live.curves if "train/soft_target" in row
    ]


def test_other_seeds_and_label_fractions_read_the_same_cache(
    teacher: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = BatchCounter(monkeypatch)
    runs = [
        train_student(teacher, place, *STORED, "trainer.max_epochs=1", *more)
        for more in (["seed=1"], ["data.label_fraction=0.1"], ["data.label_fraction=0.1", "seed=1"])
    ]
    assert len({weights(each) for each in runs}) == 3
    assert len(files(place)) == 2  # views
    # once each, for the shapes of what the terms compare, and for the sample
    assert counter.batches == 2 * len(runs)


@pytest.mark.parametrize("other", ["data.seed=1", "data.view.padding=0", "student.image_size=10"])
def test_logits_of_other_views_are_never_read(
    teacher: Path, place: Path, tmp_path: Path, other: str
) -> None:
    """Fault 6 of other toolkits: cached logits are used for another crop."""
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=1")
    train_student(teacher, tmp_path, *STORED, *short, other)
    assert not names(tmp_path) & names(place)
    ours, theirs = load(tmp_path), load(place)
    images = np.intersect1d(ours.images[0], theirs.images[0])[:50].tolist()
    one, two = (cache.select(view_batch(images)).logits for cache in (ours, theirs))
    assert one is not None
    assert two is not None
    assert not torch.allclose(one, two, atol=1e-2)


def test_mixed_images_have_a_cache_of_their_own(teacher: Path, place: Path, tmp_path: Path) -> None:
    short = (
        "trainer.max_epochs=2",
        "data.split.validation=0.5",
        "data.augment.operations=1",
        "data.augment.erasing=0.5",
        "data.num_workers=0",
        "data.mix.mixup=1.0",
        "data.mix.cutmix=1.0",
        "data.label_fraction=0.5",
        "loss=[cross_entropy,nkd,soft_target]",
    )
    live = train_student(teacher, tmp_path / "live", *VIEWS, *short)
    read = train_student(teacher, tmp_path / "read", *STORED, *short)
    assert weights(read) == weights(live)
    assert not names(tmp_path / "read") & names(place)


def test_the_teachers_license_is_recorded(place: Path) -> None:
    teacher = CacheShard(files(place)[0].parent).teacher
    assert (teacher["license"], len(teacher["sha256"])) == ("none", 64)


def test_an_interrupted_cache_is_resumed(
    teacher: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_app.teacher_outputs.filling._FLUSH_EVERY", 2)
    counter = BatchCounter(monkeypatch)
    counter.ends_at = 11  # 6 batches are a view: 10 are secured, one was answered after them
    with pytest.raises(RunError):
        train_student(teacher, tmp_path, *STORED)
    counter.batches, counter.ends_at = 0, None
    train_student(teacher, tmp_path, *STORED)
    assert counter.batches == 12 - 10 + 2  # and the sample, and the shapes
    contents = [{path.read_bytes() for path in files(each)} for each in (tmp_path, place)]
    assert contents[0] == contents[1]
    assert sorted(path.name for path in files(tmp_path)[0].parent.iterdir()) == [
        "cache.json",
        "index.npy",
        "rows.bin",
        "stage.json",
    ]


@pytest.mark.parametrize(
    "name", ["int8", "embedding", pytest.param("top10", marks=pytest.mark.slow)]
)
def test_a_training_on_an_approximate_cache_resumes_bit_for_bit(
    teacher: Path, place: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [f"teacher.cache={name}", "trainer.checkpoint_steps=1", "trainer.max_epochs=1"]
    if name == "top10":  # which is refused for so few classes
        monkeypatch.setattr("kd_app.teacher_outputs.choice.explain_width", lambda *_: "")
        more += ["loss=[cross_entropy,soft_target]", "loss.soft_target.temperature=1"]
    whole = compare_resumed(teacher, tmp_path, *STORED, *more)
    assert load(tmp_path / "whole").format.name == name
    exact = train_student(teacher, place, *STORED, *more[2:])
    assert weights(whole) != weights(exact)
    for ours, theirs in zip(whole.curves, exact.curves, strict=True):
        assert ours.get("train/loss", 0) == pytest.approx(theirs.get("train/loss", 0), rel=0.02)


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
    read = train_student(teacher, place, *STORED, *two)
    live = train_student(teacher, tmp_path, *VIEWS, *two)
    assert weights(read) == weights(live)
    assert len(files(place)) == 2 * 2  # two views for each of two inputs of students
    for cache in ("exact", "int8", "embedding"):
        one, both = (
            train_student(teacher, place, *STORED, *two, f"teacher.cache={cache}", *more)
            for more in (["trainer=cpu", "data.batch_size=256"], [])
        )
        ours, theirs = (each.member.loaded.model.state_dict() for each in (one, both))
        for name, tensor in ours.items():  # no BatchNorm, which sees half as many
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=3e-5)


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
            "feature_hint also reads features",
        ),
        (["teacher.outputs=sometimes"], "'live' or 'cached'"),
        (
            ["teacher.cache=int4", "teacher.outputs=cached"],
            "'exact', 'int8', 'float16', 'top10' or 'embedding'",
        ),
        (["teacher.cache=int8"], "teacher.outputs=live runs the teacher"),
        (["teacher.cache_gb=0", "teacher.outputs=cached"], "cache_gb=0"),
        (
            ["teacher.outputs=cached", "data.views=2", "teacher.cache=top10"],
            "soft_target reads the probabilities at temperature 4",
        ),
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
