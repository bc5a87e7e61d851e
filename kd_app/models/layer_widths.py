"""Models with layers of other widths than their architecture says: what differs,
written down, and put back into a new model.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from kd_app.config import RequestError

WIDTHS = "widths"
"""The entry of a model's config.json: ``{module: {size: int | [int]}}``, only what
differs from the architecture.
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
    """The sizes of every layer: its channels, groups, features; of a module of another
    kind, the shapes of the tensors that it holds itself.
    """
    found = {
        name: {key: _to_list(value) for key, value in _own(module).items()}
        for name, module in model.named_modules()
    }
    return {name: own for name, own in found.items() if own}


def find_changes(before: Widths, after: Widths) -> Widths:
    """What of `after` differs from `before`."""
    differing = {
        name: {key: value for key, value in own.items() if before[name].get(key) != value}
        for name, own in after.items()
    }
    return {name: own for name, own in differing.items() if own}


def resize(model: nn.Module, widths: Mapping[str, Any], *, source: str) -> None:
    """Give the layers of a new model the recorded `widths`; its weights are to be
    loaded afterwards.

    Raises `RequestError` for widths of another model, or that are no smaller: what a
    folder says is checked before memory is taken for it.
    """
    try:
        modules = dict(model.named_modules())
        for name, own in widths.items():
            _resize(modules[name], own)
    except (KeyError, AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise RequestError(
            f"The {WIDTHS} in the config.json of {source} are not of this model"
            f" ({type(error).__name__}: {error}). Expected what kd-compress wrote: sizes of its"
            " layers, none larger than the architecture's. Make the folder again."
        ) from None


def _resize(module: nn.Module, own: Mapping[str, Any]) -> None:
    known = _own(module)
    for key, value in own.items():
        old, new = _to_numbers(known[key]), _to_numbers(value)
        if len(new) != len(old) or not all(
            isinstance(n, int) and 0 < n <= o for n, o in zip(new, old, strict=True)
        ):
            raise ValueError(f"{key}={value!r} where the architecture has {_to_list(known[key])!r}")
        if not isinstance(getattr(module, key), torch.Tensor):
            setattr(module, key, tuple(new) if isinstance(known[key], tuple) else new[0])
    shape = _find_kind(_SHAPES, module)
    for name, tensor in [
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    ]:
        empty = tensor.new_zeros(
            shape(module, name) if shape else tuple(own.get(name, tensor.shape))
        )
        setattr(
            module,
            name,
            (
                nn.Parameter(empty, tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else empty
            ),
        )


def _own(module: nn.Module) -> dict[str, Any]:
    names = _find_kind(_SIZES, module)
    if names is not None:
        return {name: getattr(module, name) for name in names}
    return {name: tuple(tensor.shape) for name, tensor in module.named_parameters(recurse=False)}


def _find_kind(table: Mapping[type[nn.Module], Any], module: nn.Module) -> Any:
    return next((value for kind, value in table.items() if isinstance(module, kind)), None)


def _to_numbers(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _to_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
