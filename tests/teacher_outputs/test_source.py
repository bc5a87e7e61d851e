"""Teacher sources: a running model, a cache, an average of the student, or itself."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.data.batch import Batch
from kd_app.models.outputs import Outputs
from kd_app.models.taps import Taps
from kd_app.specs.spec import build_spec
from kd_app.teacher_outputs.cache import (
    CachedTeacherModel,
    ShardRecord,
    TeacherCache,
    write_record,
)
from kd_app.teacher_outputs.format import CacheFormat, EmbeddingFormat, ExactFormat
from kd_app.teacher_outputs.source import CachedTeacher, LiveTeacher, SecondView, StudentEma
from kd_app.training.module import Distillation
from kd_app.training.trainer import silence_lightning
from tests.builders import compare_resumed
from tests.training.small_parts import (
    Net,
    OwnData,
    build_frozen,
    build_seeded,
    distillation,
    plain_trainer,
)


def images(seed: int = 0) -> Tensor:
    return torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def batch(image: Tensor, **more: Any) -> Batch:
    return Batch(image, torch.zeros(4, dtype=torch.long), torch.arange(4), **more)


LOGITS = torch.arange(12, dtype=torch.float32).reshape(4, 3)


def cache(folder: Path, format: CacheFormat, outputs: Outputs) -> TeacherCache:
    """The outputs for images 0 to 3 in view 1."""
    (folder / "rows.bin").write_bytes(format.encode(outputs).numpy().tobytes())
    np.save(folder / "index.npy", np.arange(4))
    model = CachedTeacherModel(name="net", sha256="a", license="mit")
    record = ShardRecord(format=format.name, width=format.width, view=1, images=4, teacher=model)
    write_record(folder, record)
    return TeacherCache.load([folder])


def test_a_live_teacher_sees_the_students_view_or_the_partner_image() -> None:
    model = build_seeded(Net)
    source = LiveTeacher(build_frozen(model))
    own, other = images(0), images(1)
    torch.testing.assert_close(source.compute_outputs(batch(own)).logits, model(own))
    torch.testing.assert_close(source.compute_outputs(batch(own, other=other)).logits, model(other))


def test_the_students_second_view_takes_the_place_of_a_teacher_with_a_gradient() -> None:
    model = build_seeded(Net)
    source = SecondView(Taps(model, frozenset({"logits"})))
    own, other = images(0), images(1)
    logits = source.compute_outputs(batch(own, other=other)).logits
    assert logits is not None
    torch.testing.assert_close(logits, model(other))
    assert logits.requires_grad
    assert not list(source.parameters()), "the optimizer has them from the student"


def test_a_cached_teacher_returns_the_logits_of_the_view(tmp_path: Path) -> None:
    source = CachedTeacher(
        cache(tmp_path, ExactFormat(3), Outputs(logits=LOGITS)), build_frozen(Net())
    )
    cached = source.compute_outputs(batch(images(), view=1)).logits
    assert cached is not None
    assert torch.equal(cached, LOGITS)
    double = source.compute_outputs(batch(images().double(), view=1)).logits
    assert double is not None
    assert double.dtype == torch.float64


def test_a_cached_embedding_gives_the_logits_and_the_classifier_of_the_teacher(
    tmp_path: Path,
) -> None:
    model, fields = build_seeded(Net), frozenset({"logits", "embedding", "classifier"})
    teacher = build_frozen(model, reads=fields)
    live = teacher(images())
    source = CachedTeacher(cache(tmp_path, EmbeddingFormat(live.embedding.shape[1]), live), teacher)
    cached = source.compute_outputs(batch(images(), view=1))
    torch.testing.assert_close(cached.embedding, live.embedding, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cached.logits, live.logits, rtol=1e-2, atol=1e-2)
    assert cached.classifier is not None
    torch.testing.assert_close(cached.classifier(live.embedding), live.logits)
    assert list(source.parameters()) == []
    double = source.compute_outputs(batch(images().double(), view=1)).logits
    assert double is not None
    assert double.dtype == torch.float64


def test_no_source_adds_a_parameter_or_a_weight_to_a_checkpoint(tmp_path: Path) -> None:
    for source in (
        LiveTeacher(build_frozen(build_seeded(Net))),
        CachedTeacher(cache(tmp_path, ExactFormat(3), Outputs(logits=LOGITS)), build_frozen(Net())),
        StudentEma(build_frozen(build_seeded(Net)), decay=0.9),
    ):
        assert list(source.parameters()) == []
        assert source.state_dict() == {}
        assert deepcopy(source) is source


def test_only_an_average_has_a_training_state_and_restores_it() -> None:
    assert LiveTeacher(build_frozen(build_seeded(Net))).read_training_state() == {}
    student = build_seeded(Net, 1)
    source, restored = (StudentEma(build_frozen(build_seeded(Net)), decay=0.9) for _ in range(2))
    source.update_after_step(student, step=1)
    restored.load_training_state(deepcopy(source.read_training_state()))
    for name, tensor in source.read_training_state().items():
        assert torch.equal(restored.read_training_state()[name], tensor)


def test_a_live_teacher_does_not_change_after_a_step() -> None:
    model = build_seeded(Net)
    before = deepcopy(model.state_dict())
    LiveTeacher(build_frozen(model)).update_after_step(build_seeded(Net, 1), step=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_first_steps_check_the_terms_unless_the_teacher_equals_the_student() -> None:
    module = distillation()
    assert [module.is_checked(step) for step in range(4)] == [True, True, True, False]
    module.teacher = StudentEma(build_frozen(build_seeded(Net)), decay=0.9)
    assert [module.is_checked(step) for step in range(4)] == [False, True, True, False]


class Linear(nn.Sequential):
    """A net without BatchNorm: at first the average has the same outputs."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(36, 3))


@pytest.mark.parametrize("net", [Net, Linear])
def test_after_every_step_the_teacher_moves_toward_the_student(
    net: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = build_seeded(net)
    average = deepcopy(student)
    module = distillation(student=student)
    module.teacher = StudentEma(build_frozen(average), decay=0.6)
    steps: list[dict[str, Tensor]] = [deepcopy(dict(student.state_dict()))]
    plain = Distillation.optimizer_step

    def step(self: Distillation, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        steps.append(deepcopy(dict(self.student.state_dict())))

    monkeypatch.setattr(Distillation, "optimizer_step", step)
    with silence_lightning():
        plain_trainer(max_epochs=2, accumulate_grad_batches=2).fit(module, datamodule=OwnData())
    assert len(steps) == 7
    expected = steps[0]
    for number, after in enumerate(steps[1:], start=1):
        decay = min(0.6, 1 - 1 / (number + 1))
        expected = {
            name: (
                decay * tensor + (1 - decay) * after[name]
                if tensor.is_floating_point()
                else after[name]
            )
            for name, tensor in expected.items()
        }
    for name, tensor in average.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_a_resumed_run_with_an_ema_teacher_is_bit_identical(tmp_path: Path) -> None:
    words = [
        "teacher.decay=0.9",
        "student.name=resnet8_narrow",
        "data.batch_size=256",
        "trainer.max_epochs=2",
        "trainer.checkpoint_steps=1",
    ]
    whole = compare_resumed("ema", tmp_path, *words)
    assert all(row["train/soft_target"] > 0 for row in whole.curves if "train/soft_target" in row)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("teacher.decay=1", "teacher: decay=1 does not fit"),
        ("teacher.decay=0", "decay=0 does not fit"),
    ],
)
def test_a_decay_out_of_range_is_refused(words: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build_spec(compose_config("distill", ["teacher=ema", words]))
