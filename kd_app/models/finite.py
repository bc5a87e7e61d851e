"""Check that weights are finite."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var")


def find_nonfinite(model: nn.Module) -> list[str]:
    """Return the names of the parameters and statistics that hold NaN or infinity.

    Other buffers may hold infinity, as the masks of an attention do, but not NaN.
    """
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        return [
            name
            for name, tensor in {**parameters, **_list_saved_buffers(model)}.items()
            if not _is_finite(tensor, name in parameters or name.endswith(_STATISTICS))
        ]


def describe_nonfinite(names: list[str]) -> str:
    """Return a list of some names for a message."""
    more = ", ..." if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _list_saved_buffers(model: nn.Module) -> Mapping[str, Tensor]:
    saved = model.state_dict().keys()
    return {name: tensor for name, tensor in model.named_buffers() if name in saved}


def _is_finite(tensor: Tensor, infinity_counts: bool) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    is_wide = tensor.dtype in (torch.float32, torch.float64)
    low, high = torch.aminmax(tensor.detach() if is_wide else tensor.detach().float())
    return bool(low.isfinite() & high.isfinite() if infinity_counts else ~low.isnan())
