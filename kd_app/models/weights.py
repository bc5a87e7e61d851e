"""Load the tensors of a checkpoint into a model by name."""

import hashlib
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.config.errors import list_some
from kd_app.models.checkpoint import Checkpoint
from kd_app.models.finite import describe_nonfinite
from kd_app.models.mismatch import explain_mismatch, list_mismatches
from kd_app.models.place import find_place

_SHOWN = 3

HEAD_DEVIATION = 0.01
"""Standard deviation of the weights of a new head on pretrained features. timm's
initialization of some families is meant for 1,000 classes: with 2 classes and trained
features the loss starts at 4 instead of 0.7.
"""


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
    role: str = "student",
) -> WeightsReport:
    """Load the tensors that belong to `model`, wherever they lie in the checkpoint.

    The classifiers named by `head` become new if the checkpoint lacks them, if they
    have another number of classes, or with `renew_head`. rows: for each class of the
    model the row of the checkpoint's classifiers. Layers named by `first_conv` are
    converted to the model's image channels, as timm does. role: decides between a
    student and a teacher in one checkpoint.

    Raises `RequestError` if any other entry is missing, of another shape or type, or
    not finite, or if the checkpoint has more layers: the weights belong to another
    model.
    """
    own = dict(model.state_dict())
    head_keys = {key for key in own if any(key.startswith(f"{name}.") for name in head)}
    place = find_place(checkpoint, own, head_keys, role=role)
    state = place.select_state(checkpoint)
    if not head_keys:
        # a model without a classifier
        state = {
            key: value
            for key, value in state.items()
            if key in own or not any(key.startswith(f"{name}.") for name in head)
        }
    for name in first_conv:
        key = f"{name}.weight"
        if key in own and key in state and own[key].dim() == state[key].dim() == 4:
            state[key] = _convert_channels(state[key], own[key].shape[1])
    mismatches = list_mismatches(state, own, head_keys)
    resized: list[str] = []
    if mismatches and (converted := _convert_names(state, model)):
        mismatches = list_mismatches(converted, own, head_keys) and mismatches
        resized = _list_resized(state, converted)
        state = state if mismatches else converted
    if mismatches:
        raise RequestError(
            explain_mismatch(
                mismatches,
                state,
                own,
                left_over=place.list_left_out(checkpoint, own),
                source=source,
                prefix=place.prefix,
            )
        )
    if rows is not None and not renew_head:
        state = _select_rows(state, own, head_keys, rows)
    has_head = all(key in state and state[key].shape == own[key].shape for key in head_keys)
    renewed = set() if has_head and not renew_head else head_keys
    chosen = {key: value for key, value in state.items() if key in own and key not in renewed}
    _check_finite(chosen, own, source)
    try:
        model.load_state_dict(chosen, strict=False)
    except RuntimeError as error:  # tensor subclasses of other libraries
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            f"The weights from {source} can't be loaded into this model: {reason}. Expected a"
            " state dict of plain tensors. Save it again with torch.save(model.state_dict(), ...)."
        ) from None
    _initialize_head(model, renewed)
    report = WeightsReport(
        source, sha256, len(chosen), tuple(sorted(renewed)), place.list_left_out(checkpoint, own)
    )
    notes = (
        *checkpoint.notes,
        *resized,
        *place.notes,
        *_describe_report(report, state, head_keys, own),
    )
    return replace(report, notes=notes)


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


def _list_resized(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Notes about entries that were resampled for another image size."""
    return [
        f"has {key} resampled from {tuple(before[key].shape)} to {tuple(tensor.shape)} for images"
        " of another size than in its training, which costs some accuracy"
        for key, tensor in after.items()
        if "pos" in key and key in before and before[key].shape != tensor.shape
    ]


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
    broken = {
        key: int((~value.isfinite()).sum())
        for key, value in state.items()
        if value.is_floating_point()
        and not value.sum().isfinite()
        and not value.isfinite().all()
        and own[key].isfinite().all()
    }
    if broken:
        raise RequestError(
            f"The weights from {source} are not finite: {len(broken)} of {len(own)} entries"
            f" contain NaN or infinity ({describe_nonfinite(broken)}), so the model would predict"
            " the same class for every image. Their training diverged, or the file was damaged or"
            " converted to a type that is too small for them. Use an earlier checkpoint, or the"
            " original file."
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
