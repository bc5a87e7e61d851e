"""A model whose deepest map goes through a projector into another model's classifier."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from kd_app.config import RequestError, Typed
from kd_app.models.heads import Head

REUSED = "reused"
"""The entry of a model's config.json: the arguments of its `Projector`."""


class Projector(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each with batch norm and ReLU, from maps [B, C, H,
    W] to [B, C', H', W'].

    size: cells (height, width) that maps are averaged down to first; None: they stay as
    they are. relu: whether there is one at the end.
    """

    def __init__(
        self, channels: int, inside: int, out: int, *, size: tuple[int, int] | None, relu: bool
    ) -> None:
        super().__init__()
        self.made_of = {
            "channels": channels,
            "inside": inside,
            "out": out,
            "size": size,
            "relu": relu,
        }
        self.size = size
        shapes = ((channels, inside, 1), (inside, inside, 3), (inside, out, 1))
        layers = [
            (nn.Conv2d(a, b, k, padding=k // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b, k in shapes
        ]
        flat = [layer for some in layers for layer in some]
        self.transfer = nn.Sequential(*(flat if relu else flat[:-1]))

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out rows columns"]:
        """The projected map."""
        if self.size is not None and x.shape[2:] != self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        projected: Tensor = self.transfer(x)
        return projected


class _Recorded(Typed, called="the entry 'reused' of config.json"):
    """The arguments of a `Projector` as a file says them."""

    def __init__(
        self,
        *,
        channels: PositiveInt,
        inside: PositiveInt,
        out: PositiveInt,
        size: tuple[PositiveInt, PositiveInt] | None,
        relu: bool,
    ) -> None:
        self.settings: dict[str, Any] = {
            "channels": channels,
            "inside": inside,
            "out": out,
            "size": size,
            "relu": relu,
        }


class Reused(nn.Module):
    """``classifier(mean_cells projector(deepest map of backbone))``, with the face of a
    timm model; the backbone has no classifier any more.

    `classifier` is copied and frozen.
    """

    def __init__(self, backbone: nn.Module, projector: Projector, classifier: nn.Linear) -> None:
        super().__init__()
        own: Any = backbone
        own.reset_classifier(0)
        self.backbone = own
        self.projector = projector
        self.classifier = deepcopy(classifier).requires_grad_(False)
        self.feature_info = own.feature_info
        self.num_classes, self.num_features = classifier.out_features, classifier.in_features
        self.pretrained_cfg, self.default_cfg = own.pretrained_cfg, own.pretrained_cfg
        for name in (
            "in_chans",
            "_traits",
            "_model_args",
        ):  # by which timm writes down how to make the backbone again
            if hasattr(own, name):
                setattr(self, name, getattr(own, name))

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits."""
        (last,) = self.backbone.forward_intermediates(
            image, indices=1, output_fmt="NCHW", intermediates_only=True
        )
        return self.forward_head(last)

    def forward_head(self, last: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the backbone's deepest map."""
        embedding: Tensor = self.projector(last).mean((2, 3))
        logits: Tensor = self.classifier(embedding)
        return embedding if pre_logits else logits

    def forward_intermediates(self, image: Tensor, **asked: Any) -> Any:
        """Those of the backbone, with its deepest map as the last."""
        only = asked.pop("intermediates_only", False)
        maps = self.backbone.forward_intermediates(image, intermediates_only=True, **asked)
        if only:
            return maps
        last = maps[-1] if isinstance(maps[-1], Tensor) else maps[-1][0]
        return last, maps

    def get_classifier(self) -> nn.Module:
        """The classifier."""
        classifier: nn.Module = self.classifier
        return classifier


def find_linear_classifier(classifier: Any) -> nn.Linear | None:
    """A model's classifier as one linear map; None where it is none."""
    if (
        isinstance(classifier, Head)
        and classifier.convolutional
        and len(classifier.classifiers) == 1
    ):
        (classifier,) = classifier.classifiers
    if (
        isinstance(classifier, nn.Conv2d)
        and classifier.kernel_size == (1, 1)
        and classifier.groups == 1
    ):
        made = nn.Linear(
            classifier.in_channels,
            classifier.out_channels,
            classifier.bias is not None,
            device=classifier.weight.device,
        )
        state = {
            name: value.flatten(1) if value.dim() > 1 else value
            for name, value in classifier.state_dict().items()
        }
        made.to(classifier.weight.dtype).load_state_dict(state)
        return made
    return classifier if type(classifier) is nn.Linear else None


def with_projector(
    backbone: nn.Module,
    recorded: Any,
    state: Mapping[str, Tensor],
    num_classes: int,
    *,
    source: str,
) -> Reused:
    """A new model of `backbone` and what config.json records under 'reused'; the
    weights `state` are to be loaded afterwards.

    Raises `RequestError` where the record is not of these weights: what a folder says
    is checked before memory is taken for it.
    """
    settings = _Recorded(**recorded if isinstance(recorded, dict) else {REUSED: recorded}).settings
    first, head = state.get("projector.transfer.0.weight"), state.get("classifier.weight")
    inside, channels, out = settings["inside"], settings["channels"], settings["out"]
    if (
        first is None
        or head is None
        or first.shape[:2] != (inside, channels)
        or head.dim() != 2
        or head.shape[1] != out
    ):
        raise RequestError(
            f"The entry {REUSED!r} in the config.json of {source} is not of its weights: it says"
            f" {settings!r}. Expected what was written with them. Make the folder again."
        )
    return Reused(backbone, Projector(**settings), nn.Linear(out, num_classes)).eval()
