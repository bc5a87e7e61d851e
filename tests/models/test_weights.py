"""Weights: loading the tensors of a checkpoint into a model by name."""

from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.models.checkpoint import Checkpoint
from kd_app.models.weights import HEAD_DEVIATION, WeightsReport, hash_state, load_weights
from tests.models.test_checkpoint import checkpoint_of, equal, net

State = dict[str, Tensor]


def load(
    model: nn.Module, content: Mapping[str, Any] | Checkpoint, *head: str, **more: Any
) -> WeightsReport:
    checkpoint = content if isinstance(content, Checkpoint) else checkpoint_of(content)
    return load_weights(model, checkpoint, head=head, source="file x", sha256="abc", **more)


def change_state(state: State) -> State:
    return {name: tensor + 1 for name, tensor in state.items()}


def test_all_entries_are_loaded_and_reported() -> None:
    model, state = net(), {name: tensor + 1 for name, tensor in net().state_dict().items()}
    report = load(model, state, "2")
    assert equal(model.state_dict(), state)
    assert (report.source, report.sha256, report.matched, report.missing, report.unexpected) == (
        "file x",
        "abc",
        len(state),
        (),
        (),
    )
    assert not report.new_head


def test_another_number_of_classes_gives_a_new_head_that_is_reported() -> None:
    """Fault 1 of other toolkits: a random head, with one log line."""
    model, state = (
        net(classes=5),
        {name: tensor + 1 for name, tensor in net(classes=3).state_dict().items()},
    )
    torch.manual_seed(1)
    report = load(model, state, "2")
    assert report.new_head
    assert report.missing == ("2.bias", "2.weight")
    assert report.matched == len(state) - 2
    head = model.state_dict()["2.weight"]
    torch.manual_seed(1)
    assert torch.equal(head, torch.randn(5, 4) * HEAD_DEVIATION)
    assert torch.equal(model.state_dict()["2.bias"], torch.zeros(5))
    assert torch.equal(model.state_dict()["0.weight"], state["0.weight"])


def test_rows_of_the_classifier_are_taken_in_the_order_of_the_classes() -> None:
    state = change_state(net(classes=5).state_dict())
    model = net(classes=3)
    report = load(model, state, "2", rows=(4, 0, 2))
    assert not report.new_head
    for name in ("2.weight", "2.bias"):
        assert torch.equal(model.state_dict()[name], state[name][[4, 0, 2]])
    assert load(net(classes=5), state, "2", renew_head=True).new_head


def test_weights_that_are_not_finite_are_refused() -> None:
    state = net().state_dict()
    state["0.weight"][0, 0] = float("nan")
    with pytest.raises(RequestError, match=r"not finite: 1 of 9 entries .*\(0.weight: 1 value\)"):
        load(net(), state, "2")
    state["0.weight"][0, 0] = 3e38
    state["0.weight"][1, 0] = 3e38  # the sum is infinite, the weights are not
    load(net(), state, "2")


def test_a_position_grid_of_another_size_and_gray_images_are_converted_as_timm_does() -> None:
    sizes: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    vit: Any = timm.create_model("vit_tiny_patch16_224", img_size=32, **sizes)
    smaller: Any = timm.create_model("vit_tiny_patch16_224", img_size=16, in_chans=1, **sizes)
    load(smaller, vit.state_dict(), "head", first_conv=["patch_embed.proj"])
    gray = smaller.state_dict()["patch_embed.proj.weight"]
    torch.testing.assert_close(gray, vit.patch_embed.proj.weight.detach().sum(1, keepdim=True))
    assert smaller.pos_embed.shape[1] == 5
    with pytest.raises(RequestError, match="do not fit this model"):
        load(timm.create_model("vit_tiny_patch16_224", **{**sizes, "depth": 2}), vit.state_dict())


def test_a_new_head_is_new_as_a_whole() -> None:
    """The old bias with a new weight would be meaningless."""
    state = net(classes=3).state_dict()
    state["2.bias"] = torch.zeros(5)  # fits by chance
    assert load(net(classes=5), state, "2").missing == ("2.bias", "2.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("0.weight"), r"of its 9 entries, 1 is missing \(0.weight\)"),
        (
            lambda state: state.update({"0.extra": torch.ones(1)}),
            r"1 of the file are left over \(0.extra\)",
        ),
        (
            lambda state: state.update({"0.weight": torch.ones(4, 2, dtype=torch.int8)}),
            r"1 is of another type \(0.weight is int8\)",
        ),
        (
            lambda state: state.update({"0.weight": torch.ones(7, 2)}),
            r"1 is of another shape \(0.weight is 7x2 in the file, 4x2 in the model\)",
        ),
        (
            lambda state: [state.pop(name) for name in list(state)[:5]],
            r"5 are missing \(0.weight, 0.bias, 1.weight and 2 more\)",
        ),
        (lambda state: state.pop("2.bias"), r"1 is missing \(2.bias\)"),
    ],
)
def test_weights_of_another_model_are_refused_by_name_and_nothing_is_loaded(
    change: Any, message: str
) -> None:
    model, state = net(), {name: tensor + 1 for name, tensor in net().state_dict().items()}
    change(state)
    with pytest.raises(
        RequestError,
        match=f"The weights from file x do not fit this model: .*{message}.*Nothing was loaded",
    ):
        load(model, state, "2")
    assert equal(model.state_dict(), net().state_dict())


def test_without_a_known_head_another_number_of_classes_is_refused() -> None:
    with pytest.raises(
        RequestError, match=r"2 are of another shape \(2.weight is 3x4 in the file, 5x4"
    ):
        load(net(classes=5), net(classes=3).state_dict())


def test_the_sha256_depends_on_names_types_shapes_and_values_alone() -> None:
    state = net().state_dict()
    same = {name: state[name].clone() for name in reversed(state)}
    assert hash_state(same) == hash_state(state)
    changes: list[State] = [
        {**state, "0.weight": state["0.weight"] + 1e-6},
        {**state, "0.weight": state["0.weight"].double()},
        {**state, "0.weight": state["0.weight"].T.contiguous()},
        {name.replace("0.weight", "0.heft"): tensor for name, tensor in state.items()},
    ]
    assert len({hash_state(each) for each in (state, *changes)}) == 1 + len(changes)
    assert hash_state({"x": torch.ones(4, 4).t()}) == hash_state({"x": torch.ones(4, 4)})


def test_the_sha256_of_channels_last_weights_is_that_of_plain_ones() -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    plain = hash_state(model.state_dict())
    assert hash_state(model.to(memory_format=torch.channels_last).state_dict()) == plain
