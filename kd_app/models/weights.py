"""Read weights without running code, and load them into a model by name."""

import hashlib
import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.config.errors import take_first_line

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module")
_PREFIXES = ("student.", "_orig_mod.", "module.", "model.")


@dataclass(frozen=True)
class WeightsReport:
    """The loaded weights: source, number of matched entries, missing and unexpected
    entries, and sha256.
    """

    source: str
    sha256: str
    matched: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    @property
    def new_head(self) -> bool:
        """Whether the classifier has random weights, so that the model must be trained
        before use.
        """
        return bool(self.missing)


def hash_state(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, types, shapes and bytes of a state dict, independent
    of the order of the entries.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(
            tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict from a .safetensors or torch file. Only tensors are read;
    pickled code never runs.

    Common wrappers ('state_dict', 'model', ...; averaged weights first) and prefixes
    are removed; from a Lightning checkpoint of kd_app the student is read. Raises
    `RequestError` if the file is missing, truncated, or contains anything but tensors.
    """
    if not path.is_file():
        raise RequestError(
            f"There is no checkpoint file {str(path)!r}. Expected a .safetensors or torch file of"
            " weights."
        )
    try:
        # torch warns about pickles that it then rejects.
        with warnings.catch_warnings(action="ignore"):
            content: Any = (
                load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True)
            )
    except (
        pickle.UnpicklingError,
        SafetensorError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
    ) as error:
        raise RequestError(
            f"The checkpoint {str(path)!r} can't be read as weights: {_explain_failure(error)} The"
            " file is truncated, has another format, or is a pickle that would run code, which is"
            " never done. Expected a state dict of tensors: save the weights with safetensors or"
            " torch.save(model.state_dict(), ...)."
        ) from None
    return _unwrap(content, path)


def _explain_failure(error: Exception) -> str:
    """Explain why a file can't be read. torch's own message about pickles is dropped:
    it advises to load the file anyway.
    """
    if isinstance(error, pickle.UnpicklingError):
        match = re.search(r"GLOBAL (\S+)", str(error))
        if match:
            return f"it contains {match[1]}, which is not a tensor."
        return "it is not a file of tensors."
    return take_first_line(error)[:200]


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    state = (
        {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not state:
        raise RequestError(
            f"The checkpoint {str(path)!r} contains no state dict of tensors. Expected a state"
            f" dict, or a dict with a state dict under {', '.join(_WRAPPERS)}."
        )
    for prefix in _PREFIXES:
        chosen = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if chosen and (len(chosen) == len(state) or prefix == "student."):
            state = chosen
    return state


def load_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    head: Collection[str],
    source: str,
    sha256: str,
) -> WeightsReport:
    """Load `state` into `model`. If the number of classes differs, the classifiers
    named by `head` are skipped.

    Raises `RequestError` if any other entry is missing, unexpected or of another shape:
    the weights belong to another model.
    """
    own = model.state_dict()
    head_keys = {key for key in own if any(key.startswith(f"{name}.") for name in head)}
    resized = any(key in state and state[key].shape != own[key].shape for key in head_keys)
    renewed: set[str] = head_keys if resized else set()
    missing = [k for k in own if k not in state and k not in renewed]
    unexpected = [k for k in state if k not in own]
    reshaped = [
        k for k in own if k in state and k not in renewed and state[k].shape != own[k].shape
    ]
    if missing or unexpected or reshaped:
        groups = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
        mismatches = [
            f"{len(keys)} {group} ({', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''})"
            for group, keys in groups.items()
            if keys
        ]
        raise RequestError(
            f"The weights from {source} do not fit this model: of {len(own)} entries"
            f" {', '.join(mismatches)}. Nothing was loaded. Set the architecture and arguments of"
            " the saved model (teacher.name=, teacher.kwargs.*, or the same settings of the"
            " student)."
        )
    chosen = {k: v for k, v in state.items() if k not in renewed}
    model.load_state_dict(chosen, strict=False)
    return WeightsReport(source, sha256, len(chosen), missing=tuple(sorted(renewed)))
