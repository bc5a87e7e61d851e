"""Weights: read without running code, put into a model by name, and told of what was
loaded.
"""

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
    """What was loaded: from where, how many entries matched, which were missing or
    unexpected, and the sha256 of the weights.
    """

    source: str
    sha256: str
    matched: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    @property
    def new_head(self) -> bool:
        """The classifier starts from random weights, so the model has to be trained
        before it can be used.
        """
        return bool(self.missing)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of a state dict, independent of the
    order of its entries.
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
    """The state dict in a .safetensors or torch file; only tensors are read, pickled
    code never runs.

    Unpacks the usual wrappers ('state_dict', 'model', ...; averaged weights first) and
    prefixes (a Lightning checkpoint of kd_app gives its student). Raises `RequestError`
    when the file is missing, truncated, or holds more than tensors.
    """
    if not path.is_file():
        raise RequestError(
            f"There is no checkpoint file {str(path)!r}. Expected a .safetensors or torch file of"
            " weights."
        )
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # of torch, about pickles that it goes on to refuse
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
            f"The checkpoint {str(path)!r} can't be read as weights: {_explain_failure(error)} It is"
            " truncated, of another format, or a pickle that would run code, which is never done."
            " Expected a state dict of tensors; save it again with safetensors or"
            " torch.save(model.state_dict(), ...)."
        ) from None
    return _unwrap(content, path)


def _explain_failure(error: Exception) -> str:
    """What is wrong with a file; not in torch's words for a pickle, which advise to run
    it all the same.
    """
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL (\S+)", str(error))
        return f"it holds {found[1]}, which is no tensor." if found else "it is no file of tensors."
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
            f"The checkpoint {str(path)!r} holds no state dict of tensors. Expected one, or a dict"
            f" with it under {', '.join(_WRAPPERS)}."
        )
    for prefix in _PREFIXES:
        chosen = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if chosen and (len(chosen) == len(state) or prefix == "student."):
            state = chosen
    return state


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    head: Collection[str],
    source: str,
    sha256: str,
) -> WeightsReport:
    """Put `state` into `model`, all of it or, where the number of classes differs, all
    but the classifiers named by `head`.

    Raises `RequestError` when anything else is missing, unexpected or of another shape:
    these are weights of another model.
    """
    own = model.state_dict()
    head_keys = {key for key in own if any(key.startswith(f"{name}.") for name in head)}
    renewed = {key for key in head_keys if key in state and state[key].shape != own[key].shape}
    renewed = head_keys if renewed else renewed
    missing = [k for k in own if k not in state and k not in renewed]
    unexpected = [k for k in state if k not in own]
    reshaped = [
        k for k in own if k in state and k not in renewed and state[k].shape != own[k].shape
    ]
    if missing or unexpected or reshaped:
        said = [f"{len(keys)} {what} ({', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''})"
                for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)) if keys]  # fmt: skip
        raise RequestError(
            f"The weights from {source} are not of this model: of its {len(own)} entries"
            f" {', '.join(said)}. Nothing was loaded. Name the architecture and arguments that the"
            " weights were saved from (teacher.name=, teacher.kwargs.*, or the same of the"
            " student)."
        )
    chosen = {k: v for k, v in state.items() if k not in renewed}
    model.load_state_dict(chosen, strict=False)
    return WeightsReport(source, sha256, len(chosen), missing=tuple(sorted(renewed)))
