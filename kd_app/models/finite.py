"""Check that weights are finite."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var")


def find_nonfinite(model: nn.Module) -> dict[str, int]:
    """Return the parameters and statistics that hold NaN or infinity, with the number
    of such values.

    Other buffers may hold infinity, as the masks of an attention do, but not NaN.
    """
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        counts = {}
        for name, tensor in {**parameters, **_list_saved_buffers(model)}.items():
            infinity_counts = name in parameters or name.endswith(_STATISTICS)
            if not _is_finite(tensor, infinity_counts):
                wrong = ~tensor.isfinite() if infinity_counts else tensor.isnan()
                counts[name] = int(wrong.sum())
        return counts


def describe_nonfinite(counts: Mapping[str, int]) -> str:
    """Return some of the names with their counts, for a message."""
    listed = [
        f"{name}: {count:,} value{'s' if count > 1 else ''}" for name, count in counts.items()
    ]
    return f"{', '.join(listed[:3])}{', ...' if len(listed) > 3 else ''}"


def _list_saved_buffers(model: nn.Module) -> Mapping[str, Tensor]:
    saved = model.state_dict().keys()
    return {name: tensor for name, tensor in model.named_buffers() if name in saved}


def _is_finite(tensor: Tensor, infinity_counts: bool) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    is_wide = tensor.dtype in (torch.float32, torch.float64)
    low, high = torch.aminmax(tensor.detach() if is_wide else tensor.detach().float())
    return bool(low.isfinite() & high.isfinite() if infinity_counts else ~low.isnan())
