"""Class numbers in the folder of a stage that somebody changed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_app.config import RequestError
from kd_app.data.stage_array import read_classes


def read(path: Path) -> list[int]:
    return list(read_classes(path, images=3, least=-1, classes=4))


def test_class_numbers_are_read_back(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([-1, 0, 3]))
    assert read(tmp_path / "x.npy") == [-1, 0, 3]


@pytest.mark.parametrize(
    "content",
    [
        np.zeros((3, 2), np.int64),
        np.zeros(2, np.int64),
        np.zeros(3),
        np.array([0, 1, 4]),
        np.array([0, 1, -2]),
        np.array([{}, {}, {}]),
        b"",
        b"garbage",
        b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (9**15,), }",
    ],
)
def test_anything_else_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(RequestError, match=r"x\.npy' can't be read: .*Remove the folder"):
        read(path)
