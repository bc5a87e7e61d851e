"""Layer widths that differ from the architecture (pruned models): read, compare,
restore.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from kd_app.config import RequestError
from kd_app.models.attention_heads import fit_heads

WIDTHS = "widths"
"""Entry of a model's config.json: ``{module: {size: int | [int]}}``. Only sizes that
differ from the architecture are recorded.
"""
Widths = dict[str, dict[str, Any]]
_SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.modules.batchnorm._BatchNorm: ("num_features",),
    nn.LayerNorm: ("normalized_shape",),
    nn.GroupNorm: ("num_channels", "num_groups"),
}
_SHAPES: dict[type[nn.Module], Callable[[Any, str], tuple[int, ...]]] = {
    nn.Conv2d: lambda m, name: (
        (m.out_channels, m.in_channels // m.groups, *m.kernel_size)
        if name == "weight"
        else (m.out_channels,)
    ),
    nn.Linear: lambda m, name: (
        (m.out_features, m.in_features) if name == "weight" else (m.out_features,)
    ),
    nn.modules.batchnorm._BatchNorm: lambda m, name: (
        () if name == "num_batches_tracked" else (m.num_features,)
    ),
    nn.LayerNorm: lambda m, name: tuple(m.normalized_shape),
    nn.GroupNorm: lambda m, name: (m.num_channels,),
}


def read_layer_sizes(model: nn.Module) -> Widths:
    """Return the sizes of every layer: channels, groups, features. For other module
    types, return the shapes of the module's own parameters.
    """
    widths = {
        name: {key: _to_list(value) for key, value in _read_sizes(module).items()}
        for name, module in model.named_modules()
    }
    return {name: sizes for name, sizes in widths.items() if sizes}


def find_changes(before: Widths, after: Widths) -> Widths:
    """Return the sizes in `after` that differ from `before`."""
    changes = {
        name: {key: value for key, value in sizes.items() if before[name].get(key) != value}
        for name, sizes in after.items()
    }
    return {name: sizes for name, sizes in changes.items() if sizes}


def resize(model: nn.Module, widths: Mapping[str, Any], *, source: str) -> None:
    """Resize the layers of a new model to the recorded `widths`. The weights are loaded
    afterwards.

    Raises `RequestError` for widths of another model, and for widths larger than the
    architecture's: sizes from a file are checked before memory is allocated.
    """
    try:
        modules = dict(model.named_modules())
        for name, sizes in widths.items():
            _resize(modules[name], sizes)
        fit_heads(model)
    except (KeyError, AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise RequestError(
            f"The {WIDTHS} in the config.json of {source} do not fit this model"
            f" ({type(error).__name__}: {error}). Expected the layer sizes that kd-compress wrote,"
            " none larger than in the architecture. Run kd-compress again."
        ) from None


def _resize(module: nn.Module, sizes: Mapping[str, Any]) -> None:
    current = _read_sizes(module)
    for key, value in sizes.items():
        old, new = _to_numbers(current[key]), _to_numbers(value)
        if len(new) != len(old) or not all(
            isinstance(n, int) and 0 < n <= o for n, o in zip(new, old, strict=True)
        ):
            size = _to_list(current[key])
            raise ValueError(f"{key}={value!r} where the architecture has {size!r}")
        if not isinstance(getattr(module, key), torch.Tensor):
            setattr(module, key, tuple(new) if isinstance(current[key], tuple) else new[0])
    shape = _find_for_type(_SHAPES, module)
    for name, tensor in [
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    ]:
        empty = tensor.new_zeros(
            shape(module, name) if shape else tuple(sizes.get(name, tensor.shape))
        )
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(module, name, nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty)


def _read_sizes(module: nn.Module) -> dict[str, Any]:
    names = _find_for_type(_SIZES, module)
    if names is not None:
        return {name: getattr(module, name) for name in names}
    return {name: tuple(tensor.shape) for name, tensor in module.named_parameters(recurse=False)}


def _find_for_type(table: Mapping[type[nn.Module], Any], module: nn.Module) -> Any:
    return next((value for kind, value in table.items() if isinstance(module, kind)), None)


def _to_numbers(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _to_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
