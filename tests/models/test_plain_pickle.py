"""Weights as arrays of numpy are read, whoever wrote them, and no code is run."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_app.config import RequestError
from kd_app.models.checkpoint import read_checkpoint
from tests.models.test_checkpoint import STATE, equal
from tests.security.payloads import Touch

ARRAYS = {name: tensor.numpy() for name, tensor in STATE.items()}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda state: {"model": state, "author": "x"}])
def test_a_pickled_dict_of_arrays_is_read(tmp_path: Path, protocol: int, wrap: Any) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(wrap(ARRAYS), protocol))
    tensors = read_checkpoint(path).tensors
    assert equal({name.removeprefix("model."): each for name, each in tensors.items()}, STATE)


def test_arrays_of_python_2_are_read(tmp_path: Path) -> None:
    array = np.array([1, -2, 3, 250], np.float32)
    content = pickle.dumps({"w": array}, 3)
    # Python 2 marks these 16 bytes as text.
    assert b"C\x10" in content
    (tmp_path / "model.pkl").write_bytes(content.replace(b"C\x10", b"U\x10"))
    assert read_checkpoint(tmp_path / "model.pkl").tensors["w"].tolist() == array.tolist()


@pytest.mark.parametrize("is_zip", [True, False])
def test_arrays_that_torch_saved_are_read(tmp_path: Path, is_zip: bool) -> None:
    torch.save(ARRAYS, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    assert equal(dict(read_checkpoint(tmp_path / "a.pth").tensors), STATE)


def test_an_npz_file_is_read(tmp_path: Path) -> None:
    big_endian = {name: each.astype(each.dtype.newbyteorder(">")) for name, each in ARRAYS.items()}
    for save, arrays in ((np.savez, ARRAYS), (np.savez_compressed, big_endian)):
        save(tmp_path / "a.npz", names=np.array(["x"]), **arrays)
        assert equal(dict(read_checkpoint(tmp_path / "a.npz").tensors), STATE)


def test_arrays_beside_tensors_are_no_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "confusion": np.zeros((3, 3))}, tmp_path / "a.pth")
    assert len(read_checkpoint(tmp_path / "a.pth").tensors) == len(STATE)


def test_transposed_arrays_keep_their_order(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": np.asfortranarray(array)}, 4))
    assert read_checkpoint(tmp_path / "a.pkl").tensors["w"].tolist() == array.tolist()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps(STATE), "holds tensors of torch, but was written by pickle.dump"),
        (pickle.dumps({"a": np.array(["x", None])}), "contains no state dict of tensors"),
        (pickle.dumps([1, "x"]), "contains no state dict of tensors"),
        (pickle.dumps(ARRAYS)[:-40], "is not a file of tensors"),
        (b"\x93NUMPY\x01\x00", "is not a file of tensors"),
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(RequestError, match=reason):
        read_checkpoint(tmp_path / "a.pkl")


def test_no_code_of_a_pickle_is_run(tmp_path: Path) -> None:
    content = {**ARRAYS, "payload": Touch(tmp_path / "mark")}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, 4))
    (tmp_path / "b.pkl").write_bytes(b"cos\nsystem\n(S'touch mark'\ntR.")
    (tmp_path / "c.pkl").write_bytes(b"\x80\x02" + (tmp_path / "b.pkl").read_bytes())
    reasons = {"a": "it contains pathlib.Path.touch", "b": "read as", "c": "it contains os.system"}
    for name, reason in reasons.items():
        with pytest.raises(RequestError, match=reason):
            read_checkpoint(tmp_path / f"{name}.pkl")
    assert not (tmp_path / "mark").exists()


def test_damaged_arrays_are_refused(tmp_path: Path) -> None:
    content = pickle.dumps({"w": np.zeros(4, np.float32)}, 4)
    (tmp_path / "a.pkl").write_bytes(content.replace(b"K\x04\x85", b"K\x05\x85"))
    with pytest.raises(RequestError, match="cannot reshape array of size 4"):
        read_checkpoint(tmp_path / "a.pkl")
    np.savez(tmp_path / "a.npz", w=np.array([{}]))
    with pytest.raises(RequestError, match="can't be read as weights"):
        read_checkpoint(tmp_path / "a.npz")
