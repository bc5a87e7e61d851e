"""Read weights as arrays of numpy: .npz files, and pickles that torch did not write."""

import pickle
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from kd_app.models.placeholders import build_placeholder, choose_placeholder, convert_array

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number with which torch's files began before they were archives."""


class _Reader(pickle.Unpickler):
    """Reads a pickle with placeholders for all classes and functions."""

    def __init__(self, file: IO[bytes]) -> None:
        # Pickles of Python 2 hold the bytes of arrays as text.
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        full = name if module in ("builtins", "__builtin__") else f"{module}.{name}"
        if full == "_codecs.encode":
            # Old protocols hold bytes as text.
            return lambda text, _: text.encode("latin1")
        root = module.partition(".")[0]
        is_method = "." in name and root in sys.stdlib_module_names
        base = None if is_method or root == "torch" else choose_placeholder(full)
        if base is None:
            raise pickle.UnpicklingError(f"GLOBAL {full}")
        return build_placeholder(full, base)


def read_npz(path: Path) -> dict[str, Tensor]:
    """Read the arrays of numbers of an .npz file.

    Raises `ValueError` for a file of another kind and for pickled objects.
    """
    with np.load(path, allow_pickle=False) as file:
        tensors = {name: convert_array(file[name]) for name in file.files}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def is_npz(path: Path) -> bool:
    """Whether the file has the ending and the beginning of an .npz file."""
    return path.suffix == ".npz" and _read_start(path).startswith(_ZIP)


def is_plain_pickle(path: Path) -> bool:
    """Whether the file is a pickle that torch did not write."""
    start = _read_start(path)
    return start.startswith(_PICKLE) and _TORCH not in start


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle that torch did not write; its code is not run.

    Raises `pickle.UnpicklingError` for damaged files, and for pickles that call
    functions of Python itself or hold tensors of torch.
    """
    with path.open("rb") as file:
        return _Reader(file).load()


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)
