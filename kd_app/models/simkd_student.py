"""The student of SimKD: a backbone, a projector, and the classifier of the teacher."""

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
"""Entry of a model's config.json: the arguments of its `Projector`."""


class Projector(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each with batch norm and ReLU, from maps [B, C, H,
    W] to [B, C', H', W'].

    size: cells (height, width) to which maps are average-pooled first; None: no
    pooling. relu: whether the last layer has a ReLU.
    """

    def __init__(
        self, channels: int, inside: int, out: int, *, size: tuple[int, int] | None, relu: bool
    ) -> None:
        super().__init__()
        self.arguments = {
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
        if self.size is not None and x.shape[2:] != self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        projected: Tensor = self.transfer(x)
        return projected


class _ProjectorConfig(Typed, called="the entry 'reused' of config.json"):
    """The arguments of a `Projector`, read from a file."""

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


class SimKDStudent(nn.Module):
    """``classifier(mean_cells projector(deepest map of backbone))``, with timm's model
    interface. The backbone's own classifier is removed.

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
        # timm records from these attributes how to rebuild the backbone.
        for name in ("in_chans", "_traits", "_model_args"):
            if hasattr(own, name):
                setattr(self, name, getattr(own, name))

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        (last,) = self.backbone.forward_intermediates(
            image, indices=1, output_fmt="NCHW", intermediates_only=True
        )
        return self.forward_head(last)

    def forward_head(self, last: Tensor, pre_logits: bool = False) -> Tensor:
        embedding: Tensor = self.projector(last).mean((2, 3))
        logits: Tensor = self.classifier(embedding)
        return embedding if pre_logits else logits

    def forward_intermediates(self, image: Tensor, **options: Any) -> Any:
        """Return the maps of the backbone; the last result is the deepest map."""
        intermediates_only = options.pop("intermediates_only", False)
        maps = self.backbone.forward_intermediates(image, intermediates_only=True, **options)
        if intermediates_only:
            return maps
        last = maps[-1] if isinstance(maps[-1], Tensor) else maps[-1][0]
        return last, maps

    def get_classifier(self) -> nn.Module:
        classifier: nn.Module = self.classifier
        return classifier


def find_linear_classifier(classifier: Any) -> nn.Linear | None:
    """Return a model's classifier as one linear layer, or None if the classifier is not
    linear.
    """
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
        linear = nn.Linear(
            classifier.in_channels,
            classifier.out_channels,
            classifier.bias is not None,
            device=classifier.weight.device,
        )
        state = {
            name: value.flatten(1) if value.dim() > 1 else value
            for name, value in classifier.state_dict().items()
        }
        linear.to(classifier.weight.dtype).load_state_dict(state)
        return linear
    return classifier if type(classifier) is nn.Linear else None


def build_simkd_student(
    backbone: nn.Module,
    config: Any,
    state: Mapping[str, Tensor],
    num_classes: int,
    *,
    source: str,
) -> SimKDStudent:
    """Build a student from `backbone` and the entry 'reused' of config.json. The
    weights `state` are loaded afterwards.

    Raises `RequestError` if the entry does not match the weights: sizes from a file are
    checked before memory is allocated.
    """
    settings = _ProjectorConfig(**config if isinstance(config, dict) else {REUSED: config}).settings
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
            f"The entry {REUSED!r} in the config.json of {source} does not match the weights:"
            f" {settings!r}. Expected the entry that was written together with the weights. Save"
            " the model again."
        )
    return SimKDStudent(backbone, Projector(**settings), nn.Linear(out, num_classes)).eval()
