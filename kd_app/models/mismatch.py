"""Why the entries of a checkpoint are not the weights of a model."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import Tensor

from kd_app.config.errors import list_some

COUNTERS = (
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
_SHOWN = 3


def is_optional(key: str, own: Mapping[str, Tensor]) -> bool:
    """Whether the model works without this entry of a checkpoint."""
    return is_counter(key) and not own[key].is_floating_point()


def is_counter(key: str) -> bool:
    """Whether an entry has the name of one of the `COUNTERS`."""
    return key.rpartition(".")[2] in COUNTERS


def list_mismatches(
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
        if not is_optional(key, own) and (key not in head_keys or (has_part and not is_resized))
    ]
    children = {key.partition(".")[0] for key in own if key not in head_keys and "." in key}
    groups = {
        "missing": [key for key in required if key not in state],
        "unexpected": [
            key
            for key in state
            if key not in own
            and not is_counter(key)
            and (key.partition(".")[0] in children or state[key].is_quantized)
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


def explain_mismatch(
    mismatches: Mapping[str, Sequence[str]],
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    *,
    left_over: Sequence[str],
    source: str,
    prefix: str,
) -> str:
    """Return the message about weights that do not fit a model: the entries that differ
    by kind, with those that are `left_over` in the file.

    state: the entries of the file behind `prefix`.
    """
    parts = list(_describe_differences(mismatches, state, own)) or ["all are in the file"]
    if left_over:
        parts.append(f"{len(left_over)} of the file are left over ({list_some(left_over, _SHOWN)})")
    where = f", behind the prefix {prefix!r}" if prefix else ""
    fix = (
        "Set the architecture and arguments of the saved model (teacher.name=, teacher.kwargs.*,"
        " or the same settings of the student)."
    )
    if not any(key in state for key in own):
        where = ", none of whose names is in the file"
        fix += (
            " If it is the same architecture in another library, name weights for timm's, or use"
            " the original module as your own (teacher._target_=<the function that builds it>)."
        )
    elif "of another type" in mismatches or any(each.is_quantized for each in state.values()):
        fix = "It holds a quantized model: save the weights of the model before its quantization."
    return (
        f"The weights from {source} do not fit this model: of its {len(own)} entries{where},"
        f" {'; '.join(parts)}. Nothing was loaded. {fix}"
    )


def _describe_differences(
    mismatches: Mapping[str, Sequence[str]],
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
) -> Iterator[str]:
    for kind, keys in mismatches.items():
        if kind == "unexpected":
            continue  # these are among the entries that are left over
        details = list(keys)
        if kind == "of another shape":
            details = [
                f"{key} is {_format_shape(state[key])} in the file, {_format_shape(own[key])} in"
                " the model"
                for key in keys
            ]
        elif kind == "of another type":
            details = [f"{key} is {str(state[key].dtype).removeprefix('torch.')}" for key in keys]
        verb = "are" if len(keys) > 1 else "is"
        yield f"{len(keys)} {verb} {kind} ({list_some(details, _SHOWN)})"


def _format_shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
