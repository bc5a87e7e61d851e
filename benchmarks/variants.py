"""One small variant of each of timm's model modules: the one with the fewest parameters
that accepts an image of at most 224 pixels.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from kd_app.models.cost import count_params

SIDES = (64, 96, 120, 128, 160, 192, 224)
"""Sides (pixels) to try, in this order. At 64 a net of stride 32 has a map of 2x2."""
CLASSES = 10


@dataclass(frozen=True)
class Variant:
    """The variant that represents a module: name, number of parameters at timm's
    default size, and the side of its images.
    """

    module: str
    name: str
    params: int
    side: int

    def build(self) -> nn.Module:
        """Build the model for `CLASSES` classes, with random weights, in eval mode."""
        return _build_model(self.name, self.side)


def list_modules() -> list[str]:
    """Return timm's own model modules, without nets that other packages registered."""
    return [
        module
        for module in timm.list_modules()
        if timm.models.model_entrypoint(_variants(module)[0]).__module__.startswith("timm.")
    ]


def find_smallest_variant(module: str) -> Variant:
    """Return the variant of a module with the fewest parameters (ties: by name) that
    accepts images of one of `SIDES`, with the first accepted side.

    Raises LookupError if there is none.
    """
    for params, name in sorted((_params(name), name) for name in _variants(module)):
        for side in SIDES:
            if _accepts_side(name, side):
                return Variant(module, name, params, side)
    raise LookupError(f"no variant of {module} accepts images of {SIDES}")


def _variants(module: str) -> list[str]:
    return list(timm.list_models(module=module))


def _params(name: str) -> int:
    with warnings.catch_warnings(action="ignore"), torch.device("meta"):
        return count_params(timm.create_model(name))


def _accepts_side(name: str, side: int) -> bool:
    """Whether the model can be built for images of this side, and returns finite
    logits.
    """
    try:
        model = _build_model(name, side)
        with torch.no_grad():
            logits = model(draw_images(side))
    except (RuntimeError, AssertionError, ValueError, TypeError, ZeroDivisionError, IndexError):
        return False
    return tuple(logits.shape) == (2, CLASSES) and bool(logits.isfinite().all())


def draw_images(side: int) -> torch.Tensor:
    """Return two images of noise."""
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def _build_model(name: str, side: int) -> nn.Module:
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=CLASSES, **_build_size_kwargs(name, side)).eval()


def _build_size_kwargs(name: str, side: int) -> dict[str, Any]:
    """Return the argument that sets the image size of a fixed-size net."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {"img_size": side} if cfg is not None and cfg.fixed_input_size else {}
