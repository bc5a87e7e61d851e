"""Load the tensors of a checkpoint into a model by name."""

import hashlib
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.config.errors import list_some
from kd_app.models.checkpoint import Checkpoint

HEAD_DEVIATION = 0.01
"""Standard deviation of the weights of a new head on pretrained features. timm's
initialization of some families is meant for 1,000 classes: with 2 classes and trained
features the loss starts at 4 instead of 0.7.
"""
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)")
_COUNTERS = (
    "num_batches_tracked",
    "attn_mask",
    "relative_position_index",
    "relative_coords_table",
    "total_ops",
    "total_params",
)
"""Last parts of names that hold nothing learned: torch, timm and profilers compute
them.
"""
_OTHER_STATE = re.compile(r"^(opt|optim|optimizers?|lr_sched\w*|scheduler|scaler)([._]|$|_)")
_SHOWN = 3


@dataclass(frozen=True)
class WeightsReport:
    """The loaded weights: source, sha256, and number of matched entries.

    missing: entries of a new head. unexpected: entries of the checkpoint's state dict
    that the model does not have. notes: for the user, as predicates of a sentence about
    the model.
    """

    source: str
    sha256: str
    matched: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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


def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    head: Collection[str],
    source: str,
    sha256: str,
    first_conv: Collection[str] = (),
    rows: Sequence[int] | None = None,
    renew_head: bool = False,
) -> WeightsReport:
    """Load the tensors that belong to `model`, wherever they lie in the checkpoint.

    The classifiers named by `head` become new if the checkpoint lacks them, if they
    have another number of classes, or with `renew_head`. rows: for each class of the
    model the row of the checkpoint's classifiers. Layers named by `first_conv` are
    converted to the model's image channels, as timm does.

    Raises `RequestError` if any other entry is missing, of another shape or type, or
    not finite, or if the checkpoint has more layers: the weights belong to another
    model.
    """
    own = dict(model.state_dict())
    head_keys = {key for key in own if any(key.startswith(f"{name}.") for name in head)}
    place = find_place(checkpoint, own, head_keys)
    state = {key.removeprefix(place.prefix): checkpoint.tensors[key] for key in place.keys}
    for name in first_conv:
        key = f"{name}.weight"
        if key in own and key in state and own[key].dim() == state[key].dim() == 4:
            state[key] = _convert_channels(state[key], own[key].shape[1])
    mismatches = _list_mismatches(state, own, head_keys)
    if mismatches and (converted := _convert_names(state, model)):
        mismatches = _list_mismatches(converted, own, head_keys) and mismatches
        state = state if mismatches else converted
    if mismatches:
        raise RequestError(_explain_mismatches(mismatches, checkpoint, place, own, source))
    if rows is not None and not renew_head:
        state = _select_rows(state, own, head_keys, rows)
    has_head = all(key in state and state[key].shape == own[key].shape for key in head_keys)
    renewed = set() if has_head and not renew_head else head_keys
    chosen = {key: value for key, value in state.items() if key in own and key not in renewed}
    _check_finite(chosen, own, source)
    model.load_state_dict(chosen, strict=False)
    _initialize_head(model, renewed)
    report = WeightsReport(
        source, sha256, len(chosen), tuple(sorted(renewed)), place.list_left_out(checkpoint, own)
    )
    notes = (*checkpoint.notes, *place.notes, *_describe_report(report, state, head_keys, own))
    return replace(report, notes=notes)


@dataclass(frozen=True)
class Place:
    """Where the tensors of a model lie in a checkpoint: a prefix of their names, and
    the names with it.

    averaged: whether the prefix is that of averaged weights and others exist.
    """

    prefix: str
    keys: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def list_left_out(self, checkpoint: Checkpoint, own: Collection[str]) -> tuple[str, ...]:
        """Return the names that lie in the same state dict but not in the model."""
        used = {self.prefix + key for key in own}
        containers = {checkpoint.containers.get(key, "") for key in self.keys}
        return tuple(
            key
            for key in checkpoint.tensors
            if key not in used
            and checkpoint.containers.get(key, "") in containers
            and key.rpartition(".")[2] not in _COUNTERS
        )


def find_place(
    checkpoint: Checkpoint, own: Mapping[str, Tensor], head_keys: Collection[str]
) -> Place:
    """Return the place with all entries of the model but the head; if there is none,
    the place with the most of them.

    Of several places the one with a head, then the one with averaged weights is taken.
    A teacher beside a student counts only if it has no head: in self-supervised
    training the teacher is the average.
    """
    names = tuple(checkpoint.tensors)
    required = [key for key in own if key not in head_keys and not _is_optional(key, own)]
    required = required or list(own)
    step = max(1, len(required) // 4)
    prefixes = dict.fromkeys(
        name[: len(name) - len(anchor)]
        for anchor in required[::step]
        for name in names
        if name == anchor or name.endswith(f".{anchor}")
    )
    places = [
        Place(prefix, tuple(name for name in names if name.startswith(prefix)))
        for prefix in prefixes
    ]
    counts = [sum(place.prefix + key in checkpoint.tensors for key in required) for place in places]
    if max(counts, default=0) < len(required):
        best = max(zip(counts, range(len(places)), strict=True), default=(0, -1))[1]
        return places[best] if best >= 0 else Place("", names)
    whole = [place for place, count in zip(places, counts, strict=True) if count == len(required)]

    def rank(place: Place) -> tuple[int, bool, bool, bool, bool]:
        state = {key.removeprefix(place.prefix): checkpoint.tensors[key] for key in place.keys}
        parts = place.prefix.split(".")
        has_head = all(key in state for key in head_keys)
        return (
            sum(map(len, _list_mismatches(state, own, head_keys).values())),
            not has_head,
            not _AVERAGED.search(place.prefix),
            ("teacher" in parts) == has_head,
            parts[0] not in ("state_dict", "model", ""),
        )

    chosen, *others = sorted(whole, key=rank)
    if not others:
        return chosen
    sample = ", ".join(repr(other.prefix or "the top level") for other in others[:_SHOWN])
    note = f"is read from {chosen.prefix!r} of the checkpoint, which also has weights in {sample}"
    return replace(chosen, notes=(note,))


def _is_optional(key: str, own: Mapping[str, Tensor]) -> bool:
    return key.rpartition(".")[2] in _COUNTERS and not own[key].is_floating_point()


def _list_mismatches(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], head_keys: Collection[str]
) -> dict[str, list[str]]:
    """Return the entries, apart from a head of another size, that keep `state` from
    being the weights of the model, by kind.
    """
    has_part = any(key in state for key in head_keys)
    is_resized = any(key in state and state[key].shape != own[key].shape for key in head_keys)
    required = [
        key
        for key in own
        if not _is_optional(key, own) and (key not in head_keys or (has_part and not is_resized))
    ]
    children = {key.partition(".")[0] for key in own if key not in head_keys and "." in key}
    groups = {
        "missing": [key for key in required if key not in state],
        "unexpected": [
            key
            for key in state
            if key not in own
            and key.partition(".")[0] in children
            and key.rpartition(".")[2] not in _COUNTERS
        ],
        "of another shape": [
            key for key in required if key in state and state[key].shape != own[key].shape
        ],
        "of another type": [
            key
            for key in required
            if key in state
            and own[key].is_floating_point()
            and (state[key].is_quantized or not state[key].is_floating_point())
        ],
    }
    return {kind: keys for kind, keys in groups.items() if keys}


def _explain_mismatches(
    mismatches: Mapping[str, Sequence[str]],
    checkpoint: Checkpoint,
    place: Place,
    own: Mapping[str, Tensor],
    source: str,
) -> str:
    listed = ", ".join(
        f"{len(keys)} {kind} ({list_some(keys, _SHOWN)})" for kind, keys in mismatches.items()
    )
    tensors, prefix = checkpoint.tensors, place.prefix
    reshaped = mismatches.get("of another shape", ())
    shapes = "".join(
        f" {key} is {_format_shape(tensors[prefix + key])} in the file,"
        f" {_format_shape(own[key])} in the model."
        for key in reshaped[:1]
        if prefix + key in tensors
    )
    if not any(prefix + key in tensors for key in own):
        names = list_some(list(tensors), _SHOWN)
        where = f" None of the model's names was found: the file has {names}."
    else:
        where = f" The entries were looked for behind the prefix {prefix!r}." if prefix else ""
    return (
        f"The weights from {source} do not fit this model: of {len(own)} entries"
        f" {listed}.{shapes}{where} Nothing was loaded. Set the architecture and arguments of"
        " the saved model (teacher.name=, teacher.kwargs.*, or the same settings of the"
        " student)."
    )


def _format_shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def _convert_channels(weight: Tensor, channels: int) -> Tensor:
    """Convert a first convolution to another number of image channels, as timm does."""
    if weight.shape[1] == channels or weight.shape[1] != 3:
        return weight
    from timm.models import adapt_input_conv

    converted: Tensor = adapt_input_conv(channels, weight.clone())
    return converted


def _convert_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the entries as timm converts the published weights of this architecture
    (names of the original code, position grids of another image size); nothing if timm
    does not.
    """
    module = sys.modules.get(type(model).__module__)
    convert: Any = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return {}
    try:
        converted = convert(dict(state), model)
    except Exception:
        # timm's conversions index what they expect; any other content is not theirs.
        return {}
    is_state = isinstance(converted, dict) and all(
        isinstance(value, Tensor) for value in converted.values()
    )
    return converted if is_state else {}


def _select_rows(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    head_keys: Collection[str],
    rows: Sequence[int],
) -> dict[str, Tensor]:
    """Return the state with the `rows` of the classifiers, in this order."""
    return {
        key: value[list(rows)]
        if key in head_keys and value.dim() and value.shape[0] > max(rows) and own[key].dim()
        else value
        for key, value in state.items()
    }


def _check_finite(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Raise `RequestError` for NaN or infinite weights; masks of the architecture may
    be infinite.
    """
    broken = [
        key
        for key, value in state.items()
        if value.is_floating_point()
        and not value.sum().isfinite()
        and not value.isfinite().all()
        and own[key].isfinite().all()
    ]
    if broken:
        raise RequestError(
            f"The weights from {source} are not finite: {len(broken)} of {len(own)} entries"
            f" contain NaN or infinity ({list_some(broken, _SHOWN)}), so the model would predict"
            " the same class for every image. The training that wrote them diverged; use an earlier"
            " checkpoint."
        )


def _initialize_head(model: nn.Module, renewed: Collection[str]) -> None:
    """Draw small weights for the entries of a new head and set its biases to 0."""
    for name, parameter in model.named_parameters():
        if name in renewed:
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=HEAD_DEVIATION)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


def _describe_report(
    report: WeightsReport,
    state: Mapping[str, Tensor],
    head_keys: Collection[str],
    own: Mapping[str, Tensor],
) -> Iterable[str]:
    if report.missing:
        key = next((key for key in sorted(head_keys) if own[key].dim() > 1), min(head_keys))
        theirs = f"{len(state[key]):,} classes" if key in state else "no classifier"
        yield (
            f"gets a new classifier ({list_some(report.missing, _SHOWN)}): the weights from"
            f" {report.source} have {theirs}"
        )
    if report.unexpected:
        yield (
            f"leaves out {len(report.unexpected)} other entries of {report.source}"
            f" ({list_some(report.unexpected, _SHOWN)})"
        )
