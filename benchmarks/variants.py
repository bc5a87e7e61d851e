"""One small variant of each of timm's model modules, chosen by a rule: the fewest
parameters that take an image of at most 224 pixels.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from kd_app.models.cost import count_params

SIDES = (64, 96, 120, 128, 160, 192, 224)
"""Sides (pixels) that are tried, in this order; at 64 a net of stride 32 keeps a map of
2x2.
"""
CLASSES = 10


@dataclass(frozen=True)
class Variant:
    """The variant that stands for a module: its name, parameters as timm makes it, and
    the side of the images that it takes.
    """

    module: str
    name: str
    params: int
    side: int

    def make(self) -> nn.Module:
        """It, for `CLASSES` classes, with random weights, in eval mode."""
        return _made(self.name, self.side)


def modules() -> list[str]:
    """timm's model modules; nets that others registered with it are not in one."""
    return [
        module
        for module in timm.list_modules()
        if timm.models.model_entrypoint(_variants(module)[0]).__module__.startswith("timm.")
    ]


def smallest(module: str) -> Variant:
    """The variant of a module with the fewest parameters (by name where there are
    several) that takes images of one of `SIDES`, the first it takes.

    Raises LookupError where none does.
    """
    for params, name in sorted((_params(name), name) for name in _variants(module)):
        for side in SIDES:
            if _takes(name, side):
                return Variant(module, name, params, side)
    raise LookupError(f"no variant of {module} takes images of {SIDES}")


def _variants(module: str) -> list[str]:
    return list(timm.list_models(module=module))


def _params(name: str) -> int:
    with warnings.catch_warnings(action="ignore"), torch.device("meta"):
        return count_params(timm.create_model(name))


def _takes(name: str, side: int) -> bool:
    """It can be made for images of this side, and gives finite logits of two."""
    try:
        model = _made(name, side)
        with torch.no_grad():
            logits = model(images(side))
    except (RuntimeError, AssertionError, ValueError, TypeError, ZeroDivisionError, IndexError):
        return False
    return tuple(logits.shape) == (2, CLASSES) and bool(logits.isfinite().all())


def images(side: int) -> torch.Tensor:
    """Two images of noise."""
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def _made(name: str, side: int) -> nn.Module:
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=CLASSES, **_sized(name, side)).eval()


def _sized(name: str, side: int) -> dict[str, Any]:
    """The argument by which a net of a fixed size is made for another."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {"img_size": side} if cfg is not None and cfg.fixed_input_size else {}


def every() -> Iterator[Variant]:
    """The variant of each module."""
    return (smallest(module) for module in modules())
