"""Checkpoints: what the tools of the field write is read without running code, and the
weights of a model are found wherever they lie.
"""

import argparse
import json
import pickle
import warnings
from collections import defaultdict, namedtuple
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.models.checkpoint import Checkpoint, read_checkpoint
from kd_app.models.weights import WeightsReport, load_weights

State = dict[str, Tensor]
Split = namedtuple("Split", "train test")


def net(classes: int = 3, width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, classes))


def write_file(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def prefix_keys(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def checkpoint_of(content: Any) -> Checkpoint:
    """The checkpoint of a file with this content."""
    from kd_app.models.checkpoint import _collect

    tensors, containers, _ = _collect(content)
    return Checkpoint(tensors, containers)


def load(content: Any, classes: int = 3, role: str = "student") -> tuple[nn.Module, WeightsReport]:
    """Load a model of random weights from a checkpoint with this content."""
    model = net(classes)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    report = load_weights(
        model, checkpoint_of(content), head=["2"], source="file x", sha256="abc", role=role
    )
    return model, report


STATE = {name: tensor + 0 for name, tensor in net().state_dict().items()}
RAW = {name: tensor + 1 for name, tensor in STATE.items()}
BODY = {name: tensor for name, tensor in STATE.items() if not name.startswith("2.")}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(STATE, id="plain"),
        pytest.param({"state_dict": STATE, "epoch": 3}, id="state_dict"),
        pytest.param({"model": STATE, "optimizer": {"state": {0: {"exp": RAW["0.weight"]}}}}),
        pytest.param({"net": {"weights": STATE}}, id="nested"),
        pytest.param({"state_dict": RAW, "state_dict_ema": STATE}, id="timm's average"),
        pytest.param(
            {
                "model": RAW,
                "model_ema": {"n_averaged": torch.tensor(3), **prefix_keys("module.", STATE)},
            },
            id="torchvision's average",
        ),
        pytest.param({"ema": STATE, "model": RAW}, id="average first"),
        pytest.param({"state_dict": STATE, "current_model_state": RAW}, id="Lightning's average"),
        pytest.param(prefix_keys("module.", STATE), id="DataParallel"),
        pytest.param(prefix_keys("_orig_mod.", STATE), id="compiled"),
        pytest.param(prefix_keys("module._orig_mod.", STATE), id="compiled in parallel"),
        pytest.param(prefix_keys("_orig_mod.module.model.", STATE), id="all of them"),
        pytest.param({"state_dict": prefix_keys("model.", STATE), "hparams": {}}, id="Lightning"),
        pytest.param({"state_dict": prefix_keys("net.backbone.", STATE)}, id="own wrapper"),
        pytest.param(
            {
                "state_dict": {
                    **prefix_keys("model.", STATE),
                    "criterion.weight": torch.ones(3),
                    "train_acc.correct": torch.tensor(1),
                }
            },
            id="Lightning with a criterion",
        ),
        pytest.param(
            {"state_dict": {**prefix_keys("student.", STATE), "terms.hint.weight": torch.ones(1)}},
            id="our checkpoint",
        ),
        pytest.param(
            {"state_dict": {**prefix_keys("teacher.", RAW), **prefix_keys("student.", STATE)}},
            id="student and teacher",
        ),
        pytest.param(prefix_keys("timm_model.", STATE), id="Hugging Face"),
        pytest.param([{"epoch": 1}, STATE], id="a tuple"),
        pytest.param(
            {k: v for k, v in STATE.items() if "num_batches" not in k}, id="without counters"
        ),
        pytest.param(
            STATE | {"total_ops": torch.zeros(1), "0.total_ops": torch.zeros(1)}, id="a profiler"
        ),
        pytest.param({k: v.half() if v.is_floating_point() else v for k, v in STATE.items()}),
    ],
)
def test_weights_are_found_behind_any_prefix(content: Any) -> None:
    model, report = load(content)
    assert not report.new_head
    for name, tensor in model.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(tensor, STATE[name], rtol=1e-3, atol=1e-3)


def test_what_was_chosen_and_left_out_is_reported() -> None:
    content = {
        "state_dict": {**prefix_keys("model.", STATE), "criterion.weight": torch.ones(3)},
        "optimizer": {"state": [torch.ones(2)]},
    }
    _, report = load(content)
    assert report.unexpected == ("state_dict.criterion.weight",)
    assert report.notes == ("leaves out 1 other entries of file x (state_dict.criterion.weight)",)
    _, report = load({"state_dict": RAW, "state_dict_ema": STATE})
    assert report.unexpected == ()
    assert report.notes == (
        "is read from 'state_dict_ema.' of the checkpoint, which also has weights in 'state_dict.'",
    )


STUDENT, TEACHER, AVERAGE = (
    prefix_keys("student.", RAW),
    prefix_keys("teacher.", STATE),
    "ema_student.",
)
WIDE = {name: tensor + 0 for name, tensor in net(width=5).state_dict().items()}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"state_dict": {**STUDENT, **TEACHER}}, id="Lightning"),
        pytest.param({"student": prefix_keys("module.", RAW), "teacher_model": STATE}, id="apart"),
        pytest.param({"model": RAW, "teacher": STATE}, id="a teacher beside the model"),
        pytest.param({**STUDENT, **prefix_keys(AVERAGE, RAW), **TEACHER}, id="an average"),
        pytest.param({**prefix_keys("student.", WIDE), **TEACHER}, id="another student"),
        pytest.param(
            {**prefix_keys("teacher.", WIDE), **prefix_keys("student.", STATE)}, id="fits"
        ),
        pytest.param(prefix_keys("student.", STATE), id="student alone"),
    ],
)
def test_a_teacher_is_read_from_the_teacher_of_a_distillers_checkpoint(content: Any) -> None:
    model, report = load(content, role="teacher")
    assert equal(model.state_dict(), STATE)
    assert not report.new_head
    assert any("of the checkpoint" in note for note in report.notes)


def test_a_student_read_as_a_teacher_is_reported() -> None:
    content = {**prefix_keys("teacher.", WIDE), **prefix_keys("student.", STATE)}
    (note,) = [note for note in load(content, role="teacher")[1].notes if "read from" in note]
    assert note == (
        "is read from 'student.' of the checkpoint, which also has weights in 'teacher.'"
    )
    (note, *_) = load(prefix_keys("student.", STATE), role="teacher")[1].notes
    assert "the weights of a student" in note


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(BODY, id="without a head"),
        pytest.param(
            {
                "student": prefix_keys("module.backbone.", {k: v + 1 for k, v in BODY.items()}),
                "teacher": {**prefix_keys("backbone.", BODY), "head.mlp.0.weight": torch.ones(1)},
                "dino_loss": {"center": torch.ones(1)},
            },
            id="DINO",
        ),
        pytest.param({**BODY, "2.0.weight": torch.ones(4, 4)}, id="another kind of head"),
    ],
)
def test_a_backbone_gets_a_small_new_head_that_is_reported(content: Any) -> None:
    model, report = load(content)
    assert report.missing == ("2.bias", "2.weight")
    assert torch.equal(model.state_dict()["0.weight"], STATE["0.weight"])
    assert 0 < model.state_dict()["2.weight"].std() < 0.03
    assert "gets a new classifier (2.bias, 2.weight)" in " ".join(report.notes)
    assert "no classifier" in " ".join(report.notes)


def test_a_misfit_names_the_prefix_and_the_shapes() -> None:
    content = {"state_dict": prefix_keys("model.", STATE | {"0.weight": torch.ones(7, 2)})}
    with pytest.raises(RequestError) as raised:
        load(content)
    assert (
        "of its 9 entries, behind the prefix 'state_dict.model.', 1 is of another shape (0.weight"
        " is 7x2 in the file, 4x2 in the model). Nothing was loaded" in str(raised.value)
    )
    with pytest.raises(RequestError, match=r"none of whose .* 2 of the file are left over \(f.a"):
        load({"f": {"a": torch.ones(1), "b": torch.ones(1)}})


def test_a_misfit_lists_what_the_file_has_instead() -> None:
    renamed = {name.replace("1.", "norm."): tensor for name, tensor in STATE.items()}
    content = {
        "state_dict": {**prefix_keys("net.", renamed), "criterion.weight": torch.ones(3)},
        "optimizer": {"exp_avg": torch.ones(1)},
    }
    with pytest.raises(RequestError, match=r"behind the prefix 'state_dict.net.', 4 are missing"):
        load(content)
    with pytest.raises(
        RequestError,
        match=r"; 5 of the file are left over \(state_dict.net.norm.weight, .*Nothing was loaded",
    ):
        load(content)


class Settings:
    """A class of a user's training script."""

    def __init__(self) -> None:
        self.lr, self.classes = 0.1, ["cat", "dog", "eel"]


class Boxes(list[int]):
    """A list of a user's own class."""


@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(model="test_resnet", lr=0.1),
        SimpleNamespace(lr=0.1),
        {"metric": np.float64(0.5), "array": np.arange(3), "names": np.array(["a", "b"])},
        OmegaConf.create({"optimizer": {"lr": 0.1}, "stages": [1, 2]}),
        partial(torch.optim.Adam, lr=0.1),
        {"path": Path("x"), "window": defaultdict(list, {1: [2]}), "split": Split(1, 2)},
        Settings(),
        Boxes([1, 2]),
        {"dtype": torch.float16, "device": torch.device("cpu"), "set": {1, 2}, "b": frozenset({1})},
        torch.nn.functional.relu,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_weights_are_not_needed(
    zipped: bool, beside: Any, tmp_path: Path
) -> None:
    """Fault F2: timm's train.py saves its arguments."""
    content = {"arch": "x", "args": beside, "state_dict": STATE}
    path = write_file(tmp_path / "x.pth.tar", content, _use_new_zipfile_serialization=zipped)
    assert equal(read_checkpoint(path).tensors, prefix_keys("state_dict.", STATE))


def test_a_whole_pickled_model_gives_its_tensors(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    checkpoint = read_checkpoint(write_file(tmp_path / "x.pt", {"model": model, "epoch": 3}))
    again = timm.create_model("test_resnet", num_classes=3)
    report = load_weights(again, checkpoint, head=["fc"], source="x", sha256="")
    assert equal(again.state_dict(), model.state_dict())
    assert report.unexpected == ()
    assert "its code was not run" in report.notes[0]


def test_safetensors_and_their_parts_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "file.safetensors")
    assert equal(read_checkpoint(tmp_path / "file.safetensors").tensors, STATE)
    parts = {"a.safetensors": BODY, "b.safetensors": {k: STATE[k] for k in STATE if k not in BODY}}
    for name, part in parts.items():
        save_file(part, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {k: n for n, p in parts.items() for k in p}}))
    assert equal(read_checkpoint(index).tensors, STATE)
    index.write_text(json.dumps({"weight_map": {"x": "../a.safetensors"}}))
    with pytest.raises(RequestError, match=r"'../a.safetensors' is not .* in the same folder"):
        read_checkpoint(index)


class Payload:
    """A pickle that would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


class Forged:
    """A pickle that would call a function of a package that is installed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.save, ({}, "PWNED")


def test_pickled_code_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "mark"
    file = write_file(tmp_path / "file.pth", {"state_dict": STATE, "hyper": Payload(mark)})
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Payload(mark)))
    for path in (file, tmp_path / "plain.pkl"):
        with pytest.raises(
            RequestError, match="a pickle that would run code, which is never done"
        ) as raised:
            read_checkpoint(path)
        assert "weights_only" not in str(raised.value)  # torch's advice to load it anyway
    assert not mark.exists()
    forged = read_checkpoint(
        write_file(tmp_path / "forged.pth", {"a": Forged(), "state_dict": STATE})
    )
    assert len(forged.tensors) == len(STATE)
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("convert", [lambda t: t.to(torch.float8_e4m3fn), lambda t: t.to_sparse()])
def test_weights_of_unusual_types_are_read(convert: Any, tmp_path: Path) -> None:
    state = {**STATE, "0.weight": convert(STATE["0.weight"])}
    model, _ = load(read_content(write_file(tmp_path / "net.pth", state)))
    expected = STATE["0.weight"]
    torch.testing.assert_close(model.state_dict()["0.weight"], expected, rtol=0.1, atol=0.02)


def read_content(path: Path) -> dict[str, Tensor]:
    return dict(read_checkpoint(path).tensors)


def test_files_that_hold_no_usable_weights_are_refused_with_the_reason(tmp_path: Path) -> None:
    empty = {name: tensor.to("meta") for name, tensor in STATE.items()}
    with pytest.raises(RequestError, match=r"0.weight has a shape and no values"):
        read_checkpoint(write_file(tmp_path / "meta.pth", empty))
    np.savez(tmp_path / "arrays.zip.npz", a=np.zeros(3))
    (tmp_path / "arrays.zip.npz").rename(tmp_path / "arrays.zip")
    with pytest.raises(RequestError, match=r"an archive of another kind, such as a torch.export"):
        read_checkpoint(tmp_path / "arrays.zip")


def test_a_quantized_model_is_refused_as_a_whole() -> None:
    with warnings.catch_warnings(action="ignore"):  # deprecated, but in files of users
        quantized = torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8)
    content = {**BODY, "2.scale": torch.ones(1), "2._packed_params._packed_params.0": quantized}
    with pytest.raises(RequestError, match="It holds a quantized model: save the weights of"):
        load(content)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    save_file(STATE, path) if name.endswith("safetensors") else write_file(path, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RequestError, match=rf"{name}' can't be read as weights.*truncated"):
        read_checkpoint(path)


def test_a_file_that_is_not_there_or_holds_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"There is no checkpoint file .*none.pth"):
        read_checkpoint(tmp_path / "none.pth")
    empty: tuple[Any, ...] = ({"epoch": 3}, [1, 2], {"state_dict": {}})
    for content in empty:
        with pytest.raises(RequestError, match="contains no state dict of tensors"):
            read_checkpoint(write_file(tmp_path / "file.pth", content))
    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(net().eval(), torch.ones(1, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(RequestError, match=r"TorchScript program. Open it with torch.jit.load"):
        read_checkpoint(tmp_path / "script.pt")


NAMES = ("cat", "dog", "eel")


@pytest.mark.parametrize(
    "record",
    [
        {"label_names": list(NAMES)},
        {"classes": NAMES},
        {"class_to_idx": {"eel": 2, "cat": 0, "dog": 1}},
        {"idx_to_class": {2: "eel", 0: "cat", 1: "dog"}},
        {"config": {"id2label": {"0": "cat", "1": "dog", "2": "eel"}}},
        {"args": argparse.Namespace(label_names=list(NAMES))},
        {"hyper_parameters": {"cfg": OmegaConf.create({"data": {"classes": list(NAMES)}})}},
        {"settings": Settings()},
    ],
)
def test_recorded_class_names_are_found(record: dict[str, Any], tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.pth", {"state_dict": STATE, **record})
    assert read_checkpoint(path).class_names == NAMES


def test_safetensors_name_their_classes_in_the_header_or_in_the_config_beside(
    tmp_path: Path,
) -> None:
    save_file(STATE, tmp_path / "x.safetensors", metadata={"classes": json.dumps(NAMES)})
    assert read_checkpoint(tmp_path / "x.safetensors").class_names == NAMES
    save_file(STATE, tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path / "model.safetensors").class_names == ()
    (tmp_path / "config.json").write_text('{"id2label": {"0": "cat", "1": "dog", "2": "eel"}}')
    assert read_checkpoint(tmp_path / "model.safetensors").class_names == NAMES


def test_nested_lists_cost_no_more_than_they_hold(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    many: list[Any] = [0] * 10
    for _ in range(30):
        many = [many] * 10  # 10^31 items, if each was visited
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {"w": torch.ones(1)}, "a": endless, "b": many}, path)
    assert set(read_checkpoint(path).tensors) == {"state_dict.w"}
