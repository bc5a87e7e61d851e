"""Inert objects in place of those of a pickle, so that reading it runs no code."""

import re
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

_INERT_MODULES = {
    "argparse",
    "collections",
    "copyreg",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "numbers",
    "pathlib",
    "random",
    "typing",
    "uuid",
}
_INERT_NAMES = {
    "functools.partial",
    "logging.getLogger",
    "logging.Logger",
    "types.SimpleNamespace",
    *("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "range", "slice"),
    *("str", "tuple"),
}
"""Names of Python's own modules that checkpoints contain as plain data. torch reports
names of `builtins` without their module.
"""
_NUMBERS = re.compile(r"[fi][248]|[iub]1")
"""numpy's names of the types that weights have."""


class Placeholder:
    """Stands for an object whose class is not loaded: keeps its attributes, and does
    nothing.
    """

    def __new__(cls, *_: Any, **__: Any) -> "Placeholder":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                vars(self).update({str(key): value for key, value in part.items()})

    def __setitem__(self, key: Any, value: Any) -> None:
        vars(self)[str(key)] = value


class DictPlaceholder(Placeholder):
    """Stands for a mapping."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        # The only mapping with attributes that torch's unpickler fills.
        return OrderedDict()


class ListPlaceholder(list[Any]):
    """Stands for a list."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None: ...


class DtypePlaceholder(Placeholder):
    """Stands for the type of numpy's numbers. name: such as '<f4'; order: '<', '>' or
    '|'.
    """

    name, order = "", "="

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = str(name)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|"):
            self.order = state[1]


class ArrayPlaceholder(Placeholder):
    """Stands for an array of numpy, whose bytes it holds."""

    shape: Any = ()
    dtype: Any = None
    content: Any = None
    is_transposed: Any = False

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.is_transposed, self.content = state

    def read(self) -> Tensor | None:
        """The array; None if it holds no numbers. Raises `ValueError` for damage."""
        # Pickles of Python 2 have text in place of bytes.
        text = self.content
        content = text.encode("latin1") if isinstance(text, str) else text
        if not isinstance(self.dtype, DtypePlaceholder) or not isinstance(content, bytes):
            return None
        if not _NUMBERS.fullmatch(self.dtype.name):
            return None
        stored = np.frombuffer(content, np.dtype(self.dtype.order + self.dtype.name))
        array = stored.reshape(self.shape, order="F" if self.is_transposed else "C")
        return convert_array(array)


def convert_array(array: np.ndarray) -> Tensor | None:
    """Return a copy of an array of numpy as a tensor; None for one without numbers."""
    if not _NUMBERS.fullmatch(f"{array.dtype.kind}{array.dtype.itemsize}"):
        return None
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


_NUMPY = {
    "numpy.dtype": DtypePlaceholder,
    "numpy.core.multiarray._reconstruct": ArrayPlaceholder,
    "numpy._core.multiarray._reconstruct": ArrayPlaceholder,
}


def choose_placeholder(name: str) -> type[Placeholder] | None:
    """Return the kind of placeholder for a class or function, by its full name; None
    for what a file of weights has no use for.
    """
    module, _, _ = name.rpartition(".")
    root = module.partition(".")[0]
    is_python = root in sys.stdlib_module_names or not root
    if is_python and root not in _INERT_MODULES and name not in _INERT_NAMES:
        return None
    return _NUMPY.get(name, Placeholder)


def build_placeholder(name: str, base: type) -> type:
    """Return a class that a message about it calls `name`."""
    return type(name, (base,), {"__module__": Placeholder.__name__})
