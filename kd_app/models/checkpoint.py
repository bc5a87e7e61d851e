"""Read files of weights without running code: the tensors of a checkpoint by name, and
what the checkpoint records about its classes and its input.
"""

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import TypedDict

from kd_app.config import RequestError
from kd_app.config.errors import take_first_line
from kd_app.config.records import parse_values, read_record
from kd_app.models.class_names import find_names
from kd_app.models.placeholders import (
    ArrayPlaceholder,
    DictPlaceholder,
    ListPlaceholder,
    Placeholder,
    build_placeholder,
    choose_placeholder,
)
from kd_app.models.plain_pickle import is_npz, is_plain_pickle, read_npz, read_plain_pickle
from kd_app.models.weights_metadata import read_metadata

INDEX = ".safetensors.index.json"
"""Ending of the file that lists the parts of weights in several files."""
_FAILURES = (
    pickle.UnpicklingError,
    SafetensorError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
)
_MAX_NAMES, _MAX_DEPTH = 150, 100
_OTHER_ARCHIVES = ("locating file data.pkl", "file in archive is not in a subdirectory")
"""Parts of torch's messages about archives that are no files of tensors."""
_MODULE_KEYS = ("_modules", "_parameters", "_buffers")
"""The attributes in which a pickled module keeps its tensors."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file.

    tensors: by name; the keys of nested dicts are joined by dots, so the wrappers of a
    training script and the prefixes of a module are the same. containers: for each
    tensor, the joined keys of the dict that it lies in. class_names: in the order of
    the outputs, empty if the file does not name its classes. arguments: of the training
    script, if the file records them. notes: for the user.
    """

    tensors: Mapping[str, Tensor]
    containers: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a .safetensors file, the index of several, a torch file, or arrays of numpy
    (.npz, or a pickled dict).

    Objects that are not tensors or plain data are replaced by inert placeholders; code
    from the file never runs. Raises `RequestError` if the file is missing, damaged,
    contains no tensors, or is a pickle that calls functions of Python itself.
    """
    if not path.is_file():
        raise RequestError(
            f"There is no checkpoint file {str(path)!r}. Expected a .safetensors or torch file of"
            " weights."
        )
    try:
        # torch warns about pickles that it then rejects.
        with warnings.catch_warnings(action="ignore"):
            content = _read_content(path)
            tensors, containers, is_module = _collect(content)
    except RequestError:
        raise
    except _FAILURES as error:
        raise RequestError(
            f"The checkpoint {str(path)!r} can't be read as weights: {_explain_failure(error)} The"
            " file is truncated, has another format, or is a pickle that would run code, which is"
            " never done. Expected a state dict of tensors: save the weights with safetensors or"
            " torch.save(model.state_dict(), ...), or arrays with numpy.savez."
        ) from None
    if not tensors:
        raise RequestError(
            f"The checkpoint {str(path)!r} contains no state dict of tensors. Expected a state"
            " dict, alone or inside the dict that a training script saves ('state_dict', 'model',"
            " ...)."
        )
    note = f"is pickled whole in {path.name}; only its tensors were read, its code was not run"
    return Checkpoint(
        tensors,
        containers,
        find_names(_read_header(path) if path.suffix in (".safetensors", ".json") else content),
        _find_arguments(content),
        (note,) if is_module else (),
    )


def _read_header(path: Path) -> dict[str, Any]:
    """Return what a .safetensors file and the config.json beside it record."""
    header: dict[str, Any] = {}
    for key, text in read_metadata(path).items():
        try:
            header[key] = parse_values(text)
        except RequestError:
            header[key] = text
    if find_names(header) or not path.name.startswith("model"):
        return header
    try:
        return read_record(path.parent / "config.json", dict[str, Any], expected="")
    except RequestError:
        return header


def _read_content(path: Path) -> Any:
    if path.name.endswith(INDEX):
        return _read_parts(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    if is_npz(path):
        return read_npz(path)
    return read_plain_pickle(path) if is_plain_pickle(path) else _read_pickle(path)


class _Index(TypedDict):
    weight_map: dict[str, str]


def _read_parts(index: Path) -> dict[str, Tensor]:
    """Read all files that an index lists; they lie beside the index."""
    record = read_record(index, _Index, expected="Expected the index of .safetensors files.")
    state: dict[str, Tensor] = {}
    for name in sorted(set(record["weight_map"].values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"the part {name!r} is not a .safetensors file in the same folder.")
        if not (index.parent / name).is_file():
            raise ValueError(f"the part {name!r} is missing, or not a regular file.")
        state |= load_file(index.parent / name)
    return state


def _read_pickle(path: Path) -> Any:
    """Read a torch file. Each object that torch's safe unpickler refuses by its class
    is replaced by a placeholder of that name.
    """
    placeholders: dict[str, Any] = {}
    while True:
        try:
            with torch.serialization.safe_globals(
                [(placeholder, name) for name, placeholder in placeholders.items()]
            ):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name, base = _parse_refusal(str(error))
            if base is None or len(placeholders) > _MAX_NAMES:
                raise
            if name in placeholders and issubclass(placeholders[name], base):
                raise
            placeholders[name] = build_placeholder(name, base)


def _parse_refusal(message: str) -> tuple[str, type | None]:
    """Return the name that torch's unpickler refused and the kind of its placeholder;
    None for what a file of weights has no use for.
    """
    if match := re.search(r"SETITEMS? for dict.* got <class '\w+\.(\S+)'>", message):
        return match[1], DictPlaceholder
    if match := re.search(r"append to lists.* got <class '\w+\.(\S+)'>", message):
        return match[1], ListPlaceholder
    match = re.search(r"Unsupported global: GLOBAL (\S+) was not", message)
    if match is None:
        return "", None
    name = match[1]
    return name if "." in name else f"builtins.{name}", choose_placeholder(name)


def _explain_failure(error: Exception) -> str:
    """Explain why a file can't be read. torch's own message about pickles is dropped:
    it advises to load the file anyway.
    """
    if isinstance(error, pickle.UnpicklingError):
        match = re.search(r"GLOBAL (\S+)", str(error))
        if match and match[1].startswith("torch."):
            return "it holds tensors of torch, but was written by pickle.dump, not by torch.save."
        if match:
            return f"it contains {match[1]}, which is not a tensor."
        return "it is not a file of tensors."
    if any(text in str(error) for text in _OTHER_ARCHIVES):
        return "it is an archive of another kind, such as a torch.export program (.pt2)."
    if "TorchScript" in str(error):
        return "it is a TorchScript program. Open it with torch.jit.load and save its state_dict()."
    return take_first_line(error)[:200]


def _collect(content: Any) -> tuple[dict[str, Tensor], dict[str, str], bool]:
    """Return the tensors by name, the container of each, and whether one belongs to a
    pickled module. Arrays of numpy are tensors if there are no others.
    """
    tensors, containers, is_module = {}, {}, False
    items = list(_walk(content, (), None, set()))
    has_tensors = any(isinstance(value, Tensor) for _, _, value in items)
    for parts, container, value in items:
        tensor = value if isinstance(value, Tensor) else None if has_tensors else value.read()
        if tensor is None:
            continue
        name = ".".join(part for part in parts if part not in _MODULE_KEYS)
        is_module |= container is not None
        tensors[name] = _convert_to_plain(tensor, name)
        containers[name] = ".".join(parts[:-1] if container is None else container)
    return tensors, containers, is_module


def _convert_to_plain(tensor: Tensor, name: str) -> Tensor:
    """Return sparse tensors as dense ones, and those of 8-bit floats, with which torch
    does not compute, in 32 bits.
    """
    if tensor.is_meta:
        raise ValueError(
            f"{name} has a shape and no values (a tensor on the 'meta' device): the model was"
            " saved before its weights were loaded."
        )
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    is_small = tensor.is_floating_point() and tensor.element_size() == 1
    return tensor.float() if is_small else tensor


def _walk(
    node: Any, parts: tuple[str, ...], container: tuple[str, ...] | None, visited: set[int]
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...] | None, Tensor | ArrayPlaceholder]]:
    """Yield the keys, the keys of the pickled object around it, and the tensor."""
    if isinstance(node, Tensor | ArrayPlaceholder):
        yield parts, container, node
        return
    if isinstance(node, Placeholder):
        node, container = vars(node), parts if container is None else container
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list | tuple)
        else ()
    )
    if not items or id(node) in visited or len(parts) > _MAX_DEPTH:
        return
    visited.add(id(node))
    for key, value in items:
        yield from _walk(value, (*parts, str(key)), container, visited)


def _find_arguments(content: Any) -> dict[str, Any]:
    """Return the arguments of the training script, as timm's train.py saves them."""
    arguments = content.get("args") if isinstance(content, dict) else None
    if isinstance(arguments, Placeholder):
        arguments = vars(arguments)
    return dict(arguments) if isinstance(arguments, dict) else {}
