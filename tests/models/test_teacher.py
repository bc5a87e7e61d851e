"""The frozen teacher: input conversion, and isolation from the student's training."""

import gc
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from kd_app.config import InputSpec, RequestError
from kd_app.data.normalize import normalize
from kd_app.models.outputs import Outputs
from kd_app.models.teacher import FrozenTeacher, InputAdapter

LOGITS = frozenset({"logits"})
SHARES = st.floats(min_value=0.05, max_value=0.95)
LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


class IdentityModel(nn.Module):
    """Returns its input pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1) * self.weight


def pixels(
    channels: int = 3,
    side: int = 8,
    mean: float = 0.5,
    std: float = 0.5,
    interpolation: str = "bilinear",
) -> InputSpec:
    return InputSpec(
        channels, side, side, (mean,) * channels, (std,) * channels, interpolation=interpolation
    )


@st.composite
def any_pixels(draw: st.DrawFn) -> InputSpec:
    channels = draw(st.sampled_from((1, 3)))
    mean, std = (tuple(draw(SHARES) for _ in range(channels)) for _ in range(2))
    return InputSpec(
        channels,
        draw(st.integers(4, 12)),
        draw(st.integers(4, 12)),
        mean,
        std,
        interpolation=draw(st.sampled_from(("bilinear", "bicubic"))),
    )


def raw(channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0,
        256,
        (2, channels, height, width),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed),
    )


def prepare(image: Tensor, target: InputSpec) -> Tensor:
    """Prepare a raw image for a model directly: channels, size, normalization."""
    image = image / 255
    if image.shape[1] != target.channels:
        image = (
            (image * LUMA).sum(dim=1, keepdim=True)
            if target.channels == 1
            else image.expand(-1, 3, -1, -1)
        )
    if image.shape[-2:] != (target.height, target.width):
        image = F.interpolate(
            image,
            (target.height, target.width),
            mode=target.interpolation,
            align_corners=False,
            antialias=image.shape[-2] > target.height,
        )
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (target.mean, target.std))
    return (image - mean) / std


@given(any_pixels(), any_pixels(), st.integers(0, 10))
def test_the_image_is_converted_as_if_prepared_for_the_teacher(
    sees: InputSpec, target: InputSpec, seed: int
) -> None:
    image = raw(sees.channels, sees.height, sees.width, seed)
    teacher = FrozenTeacher(IdentityModel(), reads=LOGITS, pixels=target, sees=sees)
    logits = teacher(normalize(image, sees, torch.contiguous_format)).logits
    torch.testing.assert_close(
        logits, prepare(image, target).flatten(1), rtol=1e-4, atol=1e-4 / min(target.std)
    )


def test_channels_that_can_not_be_converted_are_refused() -> None:
    four = InputSpec(4, 8, 8, (0.5,) * 4, (0.5,) * 4)
    three = InputSpec(3, 8, 8, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(RequestError, match=r"4 channels, the teacher takes 3\. .*in_chans=4"):
        InputAdapter(four, three)
    assert InputAdapter(four, four)(torch.zeros(1, 4, 8, 8)).shape == (1, 4, 8, 8)


def test_an_image_that_fits_already_is_not_touched() -> None:
    same = InputSpec(3, 8, 8, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    image = normalize(raw(3, 8, 8), same, torch.contiguous_format)
    teacher = FrozenTeacher(IdentityModel(), reads=LOGITS, pixels=same, sees=same)
    assert torch.equal(teacher(image).logits, image.flatten(1))


class Training(nn.Module):
    """A student and its teacher, as a LightningModule holds them."""

    def __init__(self, teacher: FrozenTeacher) -> None:
        super().__init__()
        self.student = nn.Linear(2, 2)
        self.teacher = teacher


def resnet(**kwargs: Any) -> nn.Module:
    model: nn.Module = timm.create_model(
        "test_resnet", num_classes=5, drop_rate=0.5, drop_path_rate=0.5, **kwargs
    )
    return model.train()


def build_frozen(model: nn.Module | None = None, reads: frozenset[str] = LOGITS) -> FrozenTeacher:
    return FrozenTeacher(
        model or resnet(), reads=reads, pixels=pixels(side=32), sees=pixels(side=32)
    )


def test_its_owner_has_none_of_its_parameters_or_state() -> None:
    training = Training(build_frozen())
    assert [name for name, _ in training.named_parameters()] == ["student.weight", "student.bias"]
    assert list(training.state_dict()) == ["student.weight", "student.bias"]
    assert list(training.buffers()) == []
    assert sum(1 for _ in training.modules()) == 3


def test_it_is_in_eval_mode_whatever_mode_is_set() -> None:
    """Fault 2 and 5 of other toolkits: ``.train()`` on the whole module switches on the
    teacher's dropout and drop-path.
    """
    training = Training(build_frozen()).train()
    image = torch.randn(4, 3, 32, 32)
    first = training.teacher(image).logits
    training.eval().train()
    assert not any(module.training for module in training.teacher.model.modules())
    assert torch.equal(training.teacher(image).logits, first)


def test_its_batch_norm_statistics_do_not_move() -> None:
    training = Training(build_frozen()).train()
    before = {name: tensor.clone() for name, tensor in training.teacher.model.state_dict().items()}
    for _ in range(3):
        training.teacher(torch.randn(4, 3, 32, 32) + 3)
    for name, tensor in training.teacher.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("reads", [LOGITS, frozenset({"logits", "features", "embedding"})])
def test_its_pass_builds_no_graph_and_its_outputs_can_be_used_in_one(reads: frozenset[str]) -> None:
    """Fault 7 of other toolkits: the teacher's forward pass builds a graph. Inference
    tensors, the other extreme, can't be saved for backward.
    """
    teacher = build_frozen(reads=reads)
    outputs: Outputs = teacher(torch.randn(2, 3, 32, 32, requires_grad=True))
    tensors = [
        outputs.logits,
        *outputs.features,
        *([outputs.embedding] if outputs.embedding is not None else []),
    ]
    assert len(tensors) == (1 if reads == LOGITS else 6)
    for tensor in tensors:
        assert tensor is not None
        assert not tensor.requires_grad
        weight = torch.ones(1, requires_grad=True)
        F.mse_loss(weight * tensor, tensor + 1).backward()
        assert weight.grad is not None


def test_copies_and_averages_share_it_and_leave_it_alone() -> None:
    training = Training(build_frozen())
    before = deepcopy(training.teacher.model.state_dict())
    copy, average = deepcopy(training), AveragedModel(training, use_buffers=True)
    average.update_parameters(training)
    assert copy.teacher is training.teacher
    assert average.module.teacher is training.teacher
    assert copy.student.weight is not training.student.weight
    assert all(
        torch.equal(tensor, before[name])
        for name, tensor in training.teacher.model.state_dict().items()
    )


def test_conversions_of_the_student_to_sync_batch_norm_do_not_reach_it() -> None:
    training = Training(build_frozen())
    nn.SyncBatchNorm.convert_sync_batchnorm(training)
    assert not any(
        isinstance(module, nn.SyncBatchNorm) for module in training.teacher.model.modules()
    )


def test_it_follows_to_another_type_and_device() -> None:
    training = Training(build_frozen()).to(torch.float64)
    assert (
        training.teacher(torch.randn(2, 3, 32, 32, dtype=torch.float64)).logits.dtype
        == torch.float64
    )
    training.to("meta")
    assert {tensor.device.type for tensor in training.teacher.model.state_dict().values()} == {
        "meta"
    }
    assert training.teacher(
        torch.empty(2, 3, 32, 32, device="meta", dtype=torch.float64)
    ).logits.shape == (2, 5)


def test_no_gradient_reaches_its_weights() -> None:
    teacher = build_frozen()
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_it_reads_the_requested_number_of_last_blocks() -> None:
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=4,
        num_heads=2,
        num_classes=5,
    )
    for blocks in (1, 3):
        teacher = FrozenTeacher(
            vit,
            reads=frozenset({"attention"}),
            pixels=pixels(side=32),
            sees=pixels(side=32),
            attention_blocks=blocks,
        )
        assert len(teacher(torch.randn(2, 3, 32, 32)).attention) == blocks


def test_two_teachers_share_nothing() -> None:
    """Fault 9 of other toolkits: settings on the class are shared by two instances."""
    one = FrozenTeacher(
        IdentityModel(), reads=LOGITS, pixels=pixels(mean=0.1), sees=pixels(mean=0.1)
    )
    other = FrozenTeacher(
        IdentityModel(), reads=LOGITS, pixels=pixels(mean=0.1), sees=pixels(mean=0.6)
    )
    image = torch.zeros(1, 3, 8, 8)
    assert torch.equal(one(image).logits, image.flatten(1))
    assert bool((other(image).logits > 0.9).all())


def test_it_is_freed_with_its_owner() -> None:
    """A teacher of gigabytes must not stay in memory after the training."""
    import weakref

    model = resnet()
    reference = weakref.ref(model)
    training = Training(build_frozen(model))
    training.teacher(torch.randn(2, 3, 32, 32))
    del model, training
    gc.collect()
    assert reference() is None
