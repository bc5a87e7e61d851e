"""One training, from its parts to the written folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kd_app.callbacks.averaging import EMA
from kd_app.callbacks.curve_log import read_curves
from kd_app.callbacks.resumable_checkpoint import ResumableCheckpoint
from kd_app.config import InputSpec, RequestError, RunError
from kd_app.data.loaders import ImageLoaders
from kd_app.deployment.predictions import predict
from kd_app.digest import hash_file
from kd_app.models.create import create
from kd_app.training.fit import prepare_resume
from kd_app.training.module import Distillation
from tests.builders import GRAY, teacher_folder, train_student
from tests.commands.call import DIVERGING
from tests.models.test_spec import request

SMALL = (
    "data.batch_size=64",
    "data.split.test=0.78",
    "student.name=resnet8_narrow",
    "trainer.max_epochs=3",
)
"""Five batches an epoch."""
VIT: dict[str, Any] = {"patch_size": 2, "embed_dim": 32, "depth": 4, "num_heads": 2}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("teacher"), "resnet8_narrow")


def kwargs_of(role: str, kwargs: dict[str, Any]) -> list[str]:
    return [f"{role}.kwargs.{key}={value}" for key, value in kwargs.items()]


class Notes:
    """Record the student's weights after each step and at each validation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []
        plain_step, plain_epoch = Distillation.optimizer_step, Distillation.validation_step

        def step(module: Distillation, *args: Any, **kwargs: Any) -> None:
            plain_step(module, *args, **kwargs)
            self.steps.append(
                {
                    name: tensor.detach().clone()
                    for name, tensor in module.student.state_dict().items()
                }
            )

        def validation(module: Distillation, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                self.validated.append(
                    {
                        name: tensor.detach().clone()
                        for name, tensor in module.student.state_dict().items()
                    }
                )
            plain_epoch(module, batch, batch_idx)

        monkeypatch.setattr(Distillation, "optimizer_step", step)
        monkeypatch.setattr(Distillation, "validation_step", validation)


def same(one: dict[str, Tensor], other: dict[str, Tensor], **tolerance: Any) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, **tolerance, msg=name)


def test_the_best_validated_epoch_is_saved_and_the_test_set_is_not_read(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 8 of other toolkits: the best epoch is chosen on the test set."""
    splits: list[str] = []
    plain = ImageLoaders.build_evaluation_loader

    def build(loaders: ImageLoaders, split: str, *args: Any, **kwargs: Any) -> Any:
        splits.append(split)
        return plain(loaders, split, *args, **kwargs)

    monkeypatch.setattr(ImageLoaders, "build_evaluation_loader", build)
    notes = Notes(monkeypatch)
    for name, values in {
        "Top1": [0.3, 0.9, 0.9, 0.9, 0.5],
        "NegativeLogLikelihood": [1.0, 2.0, 1.5, 1.5, 0.1],
    }.items():
        scores = iter(values)
        monkeypatch.setattr(
            f"kd_app.metrics.classification.{name}.compute",
            lambda _, scores=scores: torch.tensor(next(scores)),
        )
    run = train_student(teacher, tmp_path, *SMALL, "trainer.max_epochs=5")
    same(
        notes.validated[2],
        load_file(run.folder / "model" / "model.safetensors"),
        rtol=0.0,
        atol=0.0,
    )
    assert run.member.record["best"] == {"top1": pytest.approx(0.9), "nll": 1.5, "epoch": 2}
    assert set(splits) == {"train", "validation"}


def test_averaged_and_raw_weights_are_validated_and_the_better_ones_saved(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes(monkeypatch)
    run = train_student(
        teacher,
        tmp_path,
        *SMALL,
        "trainer.max_epochs=2",
        "+callbacks=ema",
        "callbacks.ema.decay=0.3",
    )
    average = {name: tensor.clone() for name, tensor in notes.steps[0].items()}
    epochs = []
    for number, weights in enumerate(notes.steps):
        decay = min(0.3, (1 + number) / (10 + number))
        for name, tensor in weights.items() if number else ():
            average[name] = (
                decay * average[name] + (1 - decay) * tensor
                if tensor.is_floating_point()
                else tensor
            )
        epochs.append(
            {name: tensor.clone() for name, tensor in average.items() if tensor.is_floating_point()}
        )
    averaged, raw = notes.validated[::2], notes.validated[1::2]
    ends = [len(epochs) // 2 - 1, len(epochs) - 1]
    for end, validated in zip(ends, averaged, strict=True):
        floats = {name: tensor for name, tensor in validated.items() if tensor.is_floating_point()}
        same(epochs[end], floats, rtol=1e-4, atol=1e-5)
    for end, validated in zip(ends, raw, strict=True):
        same(notes.steps[end], validated, rtol=0.0, atol=0.0)
    best = run.member.record["best"]
    candidates = {"average": averaged, "raw": raw}[best["weights"]]
    shipped = load_file(run.folder / "model" / "model.safetensors")
    same(candidates[int(best["epoch"])], shipped, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(RequestError, match=f"EMA: decay={decay} does not fit"):
        EMA(decay=decay)


def test_a_checkpoint_contains_student_and_adapters_but_no_teacher(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 10 of other toolkits: teacher weights in every checkpoint."""
    checkpoints: list[dict[str, Any]] = []
    plain = ResumableCheckpoint._save

    def save(keep: ResumableCheckpoint, trainer: pl.Trainer) -> None:
        plain(keep, trainer)
        checkpoints.append(torch.load(keep.folder / "last.ckpt", weights_only=True))

    monkeypatch.setattr(ResumableCheckpoint, "_save", save)
    run = train_student(
        teacher,
        tmp_path,
        *SMALL,
        "loss=[cross_entropy,feature_hint]",
        "trainer.max_epochs=2",
        "trainer.checkpoint_minutes=1e-9",
        "+callbacks=ema",
    )
    assert len(checkpoints) == 2 * 5  # of 5 steps an epoch the last is saved at the epoch's end
    student = {f"student.{name}" for name in run.member.loaded.model.state_dict()}
    for content in checkpoints:
        assert {
            name
            for name in content["state_dict"]
            if not name.startswith("loss.terms.feature_hint.adapter.")
        } == student
        assert set(content["state_dict"]) - student
    assert not any(
        "terms" in name for name in load_file(run.folder / "model" / "model.safetensors")
    )


def test_a_checkpoint_is_saved_every_few_steps(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(
        ResumableCheckpoint, "_save", lambda keep, trainer: steps.append(trainer.global_step)
    )
    monkeypatch.setattr(ResumableCheckpoint, "on_train_epoch_end", lambda *_: None)
    train_student(teacher, tmp_path, *SMALL, "trainer.checkpoint_steps=2")
    assert steps == [2, 4, 6, 8, 12, 14]  # step 10 ends an epoch, which keeps a state of its own


def test_a_training_leaves_a_model_a_record_and_curves(teacher: Path, tmp_path: Path) -> None:
    run = train_student(teacher, tmp_path, *SMALL, "trainer.log_every=2")
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "curves.jsonl",
        "model",
        "stage.json",
        "training.json",
    ]
    assert run.logged_points == run.curves
    trains = [row for row in run.curves if "train/loss" in row]
    assert [row["step"] for row in trains] == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    assert {name for row in trains for name in row} == {
        "step",
        "epoch",
        "train/loss",
        "train/cross_entropy",
        "train/soft_target",
        "train/lr",
    }
    assert [row["step"] for row in run.curves if "validation/top1" in row] == [5, 10, 15]
    assert {"validation/agreement", "validation/kl_to_teacher", "validation/ece"} <= {
        name for row in run.curves for name in row
    }
    record = json.loads((run.folder / "training.json").read_text())
    assert record["best"]["top1"] == pytest.approx(
        max(row.get("validation/top1", 0.0) for row in run.curves)
    )
    assert record["images_per_second"] > 0
    assert record["weights"]["source"] == "random"
    assert record["precision"] == "32-true"


def test_the_logged_agreement_is_that_of_the_two_models(teacher: Path, tmp_path: Path) -> None:
    run = train_student(teacher, tmp_path, *SMALL, "trainer.max_epochs=1")
    model = create(request(checkpoint=teacher), GRAY, 10, seed=0).model
    answers = []
    for each, pixels in ((run.member.loaded.model, run.member.loaded.pixels), (model, GRAY)):
        answers.append(
            predict(
                each,
                run.data.build_evaluation_loader("validation", pixels),
                pixels,
                device=torch.device("cpu"),
            ).logits.argmax(1)
        )
    (agreement,) = (
        row["validation/agreement"] for row in run.curves if "validation/agreement" in row
    )
    assert agreement == pytest.approx(float((answers[0] == answers[1]).mean()))


# -- pairs

VIT_STUDENT = [
    "student.name=vit_tiny_patch16_224",
    *kwargs_of("student", {**VIT, "patch_size": 4}),
    "student.image_size=16",
]
PAIRS: dict[str, tuple[str, InputSpec, dict[str, Any], Sequence[str]]] = {
    "CNN to ViT": ("resnet8", GRAY, {}, VIT_STUDENT),
    "ViT to CNN": (
        "vit_tiny_patch16_224",
        InputSpec(3, 16, 16, (0.5,) * 3, (0.3,) * 3),
        {**VIT, "img_size": 16},
        ["student.name=resnet8_narrow"],
    ),
    "CNN to CNN, larger images": (
        "test_resnet",
        InputSpec(3, 40, 40, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        {},
        ["student.name=wrn_16_1"],
    ),
}


BRIEF = (
    "trainer.limit_train_batches=4",
    "trainer.max_epochs=1",
    "trainer.log_every=1",
    "data.batch_size=64",
)


@pytest.mark.parametrize("pair", PAIRS)
def test_feature_terms_connect_different_models_of_different_sizes(
    pair: str, tmp_path: Path
) -> None:
    name, pixels, kwargs, student = PAIRS[pair]
    folder = teacher_folder(tmp_path / "teacher", name, pixels=pixels, **kwargs)
    run = train_student(
        folder, tmp_path, *student, "loss=[cross_entropy,feature_hint,attention_transfer]", *BRIEF
    )
    rows = [row for row in run.curves if "train/loss" in row]
    assert all(
        0 < row[f"train/{term}"] < 1e6
        for row in rows
        for term in ("feature_hint", "attention_transfer")
    )
    assert rows[-1]["train/feature_hint"] < rows[0]["train/feature_hint"]
    assert any("validation/agreement" in row for row in run.curves)


@pytest.mark.parametrize("block", [-1, -3])
def test_attention_relations_are_those_of_the_teachers_chosen_block(
    block: int, tmp_path: Path
) -> None:
    folder = teacher_folder(tmp_path / "teacher", "vit_tiny_patch16_224", **VIT, img_size=8)
    student = [
        "student.name=vit_tiny_patch16_224",
        *kwargs_of("student", {**VIT, "embed_dim": 16, "depth": 2}),
    ]
    term = [
        "loss=[cross_entropy,attention_relation]",
        f"loss.attention_relation.teacher_block={block}",
        "loss.attention_relation.relation_heads=4",
    ]
    run = train_student(folder, tmp_path, *student, *term, *BRIEF)
    assert run.curves[0]["train/attention_relation"] > 0


def test_a_missing_block_of_the_teacher_is_refused_by_number(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "teacher", "vit_tiny_patch16_224", **VIT, img_size=8)
    student = [
        "student.name=vit_tiny_patch16_224",
        *kwargs_of("student", VIT),
        "loss.attention_relation.relation_heads=4",
    ]
    with pytest.raises(
        RequestError,
        match=(
            r"teacher_block=-9 counts from the teacher's last block, but the teacher has 4"
            r" readable blocks\. Expected -1 to -4"
        ),
    ):
        train_student(
            folder,
            tmp_path,
            *student,
            "loss=[cross_entropy,attention_relation]",
            "loss.attention_relation.teacher_block=-9",
        )


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_every_precision_trains_with_adapters_and_does_not_change_the_teacher(
    precision: str, teacher: Path, tmp_path: Path
) -> None:
    terms = [
        "loss=[cross_entropy,soft_target,feature_hint]",
        f"trainer.precision={precision}",
        "student.name=resnet8_narrow",
    ]
    run = train_student(
        teacher, tmp_path, *BRIEF, *terms, "trainer.gradient_clip_val=1.0", "+callbacks=ema"
    )
    assert run.curves[0]["train/feature_hint"] > 0
    assert run.member.record["precision"] == precision
    assert {tensor.dtype for tensor in run.member.loaded.model.parameters()} == {torch.float32}


def test_points_of_an_attempt_without_a_checkpoint_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "curves.jsonl").write_text('{"step": 5, "train/loss": 1.0}\n')
    assert prepare_resume(tmp_path) is None
    assert list(read_curves(tmp_path / "curves.jsonl")) == []


@pytest.mark.parametrize("damage", ["flipped", "cut off", "gone"])
def test_best_weights_that_the_checkpoint_does_not_know_restart_the_training(
    damage: str, tmp_path: Path
) -> None:
    messages: list[str] = []
    best, last = tmp_path / "best.safetensors", tmp_path / "last.ckpt"
    best.write_bytes(b"weights")
    callback = {"best": {"top1": 0.5, "nll": 1.0}, "sha256": hash_file(best)}
    torch.save({"global_step": 5, "callbacks": {"ResumableCheckpoint": callback}}, last)
    assert prepare_resume(tmp_path) == 5
    if damage == "gone":
        best.unlink()
    else:
        best.write_bytes({"flipped": b"weightt", "cut off": b"wei"}[damage])
    assert prepare_resume(tmp_path, messages.append) is None
    assert messages == [f"{best} is damaged or missing; the training restarts from the beginning"]
    assert not last.exists()


def test_the_best_weights_of_the_checkpoint_survive_a_kill_before_the_next_checkpoint(
    tmp_path: Path,
) -> None:
    best, before = tmp_path / "best.safetensors", tmp_path / ".best.safetensors.before"
    before.write_bytes(b"first")
    best.write_bytes(b"second")
    callback = {"best": {"top1": 0.5, "nll": 1.0}, "sha256": hash_file(before)}
    checkpoint = {"global_step": 5, "callbacks": {"ResumableCheckpoint": callback}}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert prepare_resume(tmp_path) == 5
    assert best.read_bytes() == b"first"
    assert not before.exists()


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '{"files": {"model": "ab"}}'])
def test_a_damaged_record_of_a_training_is_written_again(content: str, tmp_path: Path) -> None:
    messages: list[str] = []
    (tmp_path / "training.json").write_text(content)
    assert prepare_resume(tmp_path, messages.append) is None
    assert "training.json or a file of the model is damaged" in messages[0]
    assert not (tmp_path / "training.json").exists()


def test_a_run_error_leaves_an_attempt_and_no_stage(teacher: Path, tmp_path: Path) -> None:
    steps = ("data.batch_size=16", "trainer.log_every=1")
    with pytest.raises(
        RunError, match=r"The loss term \w+ is (not finite|nan|inf).*lower optimizer.lr"
    ):
        train_student(teacher, tmp_path, *SMALL, *DIVERGING, *steps)
    assert [path.suffix for path in (tmp_path / "stages").glob("student-*")] == [".partial"]


@pytest.mark.slow
# from beartype, which checks annotations in tests alone
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_a_compiled_student_trains_with_feature_terms_and_is_saved_like_any_other(
    teacher: Path, tmp_path: Path
) -> None:
    terms = [
        "student.name=resnet8_narrow",
        "loss=[cross_entropy,soft_target,feature_hint]",
        "trainer.precision=32-true",
    ]
    plain, compiled = (
        train_student(teacher, tmp_path / name, *BRIEF, *terms, f"trainer.compile={name}")
        for name in ("false", "true")
    )
    assert compiled.curves[0]["train/feature_hint"] > 0
    for ours, theirs in zip(plain.curves[:4], compiled.curves[:4], strict=True):
        assert theirs["train/loss"] == pytest.approx(ours["train/loss"], rel=1e-3)
    same(
        plain.member.loaded.model.state_dict(),
        compiled.member.loaded.model.state_dict(),
        rtol=1e-2,
        atol=1e-3,
    )
