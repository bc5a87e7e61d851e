"""Weights: reading without running code, and loading by name."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.models.weights import hash_state, load_weights, read_state

State = dict[str, Tensor]


def net(classes: int = 3, width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, classes))


def put(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {
            "state_dict": {name: tensor + 1 for name, tensor in state.items()},
            "state_dict_ema": state,
        },
        lambda state: prefixed("module.", state),
        lambda state: prefixed("_orig_mod.", state),
        lambda state: {
            "state_dict": prefixed("model.", state),
            "pytorch-lightning_version": "2.6.6",
        },
        lambda state: {
            "state_dict": {
                **prefixed("student.", state),
                "terms.terms.hint.adapter.conv.weight": torch.ones(1),
            }
        },
        lambda state: {"state_dict": prefixed("student._orig_mod.", state)},
    ],
    ids=[
        "plain",
        "state_dict",
        "timm",
        "averaged first",
        "DataParallel",
        "compiled",
        "Lightning",
        "our checkpoint",
        "our compiled checkpoint",
    ],
)
def test_the_usual_wrappers_and_prefixes_are_taken_off(tmp_path: Path, wrap: Any) -> None:
    state = net().state_dict()
    assert equal(read_state(put(tmp_path / "file.pth", wrap(state))), state)


def test_safetensors_are_read(tmp_path: Path) -> None:
    state = net().state_dict()
    save_file(state, tmp_path / "file.safetensors")
    assert equal(read_state(tmp_path / "file.safetensors"), state)


class Payload:
    """A pickle that would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    file = put(tmp_path / "file.pth", {"state_dict": net().state_dict(), "hyper": Payload(mark)})
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Payload(mark)))
    for path in (file, tmp_path / "plain.pkl"):
        with pytest.raises(
            RequestError, match="a pickle that would run code, which is never done"
        ) as raised:
            read_state(path)
        assert "weights_only" not in str(raised.value)  # torch's advice to load it anyway
    assert not mark.exists()


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    (
        save_file(net().state_dict(), path)
        if name.endswith("safetensors")
        else put(path, net().state_dict())
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RequestError, match=rf"{name}' can't be read as weights.*truncated"):
        read_state(path)


def test_a_file_that_is_not_there_or_holds_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"There is no checkpoint file .*none.pth"):
        read_state(tmp_path / "none.pth")
    empty: tuple[Any, ...] = ({"epoch": 3}, [1, 2], {"state_dict": {}})
    for content in empty:
        with pytest.raises(RequestError, match="contains no state dict of tensors"):
            read_state(put(tmp_path / "file.pth", content))


def load(model: nn.Module, state: State, *head: str) -> Any:
    return load_weights(model, state, head=head, source="file x", sha256="abc")


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
    head = model.state_dict()["2.weight"].clone()
    report = load(model, state, "2")
    assert report.new_head
    assert report.missing == ("2.bias", "2.weight")
    assert report.matched == len(state) - 2
    assert torch.equal(model.state_dict()["2.weight"], head)
    assert torch.equal(model.state_dict()["0.weight"], state["0.weight"])


def test_a_new_head_is_new_as_a_whole() -> None:
    """The old bias with a new weight would be meaningless."""
    state = net(classes=3).state_dict()
    state["2.bias"] = torch.zeros(5)  # fits by chance
    assert load(net(classes=5), state, "2").missing == ("2.bias", "2.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("0.weight"), r"of 9 entries 1 missing \(0.weight\)"),
        (lambda state: state.update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
        (
            lambda state: state.update({"0.weight": torch.ones(7, 2)}),
            r"1 of another shape \(0.weight\)",
        ),
        (
            lambda state: [state.pop(name) for name in list(state)[:5]],
            r"5 missing \(0.weight, 0.bias, 1.weight ...\)",
        ),
        (lambda state: state.pop("2.bias"), r"1 missing \(2.bias\)"),
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
    with pytest.raises(RequestError, match=r"2 of another shape \(2.weight, 2.bias\)"):
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
