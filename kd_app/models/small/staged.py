"""Base class of the small nets: sequential stages, pooling, a classifier, and the
interface of timm's models.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jaxtyping import Float
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.classifier import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._features import feature_take_indices
from torch import Tensor, nn

Images = Float[Tensor, "batch channels height width"]
Maps = Float[Tensor, "batch filters rows columns"]


def build_conv(
    inputs: int, outputs: int, stride: int = 1, kernel: int = 3, groups: int = 1
) -> nn.Conv2d:
    """Build a convolution without bias. At stride 1 the output has the size of the
    input.
    """
    return nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )


class StagedNet(nn.Module):
    """Sequential stages, `norm` (the layers between the last stage and the pooling),
    pooling and a linear classifier, with timm's interface.

    A subclass builds its modules, returns the stages from `list_stages`, fills
    `feature_info` (one entry per stage), and calls `finish` at the end.
    """

    feature_info: list[dict[str, Any]]
    num_features: int
    norm: nn.Module
    head_drop: nn.Module
    global_pool: SelectAdaptivePool2d
    fc: nn.Module

    def list_stages(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """Return the stages, shallow to deep: the first takes the image, each other
        takes the previous map.
        """
        raise NotImplementedError

    def finish(
        self, *, num_classes: int, in_chans: int, global_pool: str, drop_rate: float
    ) -> None:
        """Build the head and initialize the convolutions (He et al., ICCV 2015, arXiv
        1502.01852, fan-out).
        """
        self.in_chans = in_chans
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """Return the linear layer that computes the logits (an identity for 0
        classes).
        """
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new, random one of `num_classes` (0: none).
        `global_pool`: 'avg', 'max', 'avgmax', 'catavgmax', or None to keep the current
        pooling.
        """
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        parameter = next(self.parameters())
        self.global_pool, self.fc = create_classifier(
            self.num_features,
            num_classes,
            pool_type=pool,
            device=parameter.device,
            dtype=parameter.dtype,
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def forward_intermediates(
        self,
        x: Images,
        indices: int | list[int] | tuple[int, ...] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last map, after `norm`, and the maps after the stages in `indices`
        (an int: the last n; None: all).

        `norm` applies the final norm to the last stage's map; `stop_early` skips stages
        after the last index; `intermediates_only` returns only the list of maps. In a
        pre-activation net the maps are the raw sums.
        """
        assert output_fmt == "NCHW", "Convolutional maps are NCHW."
        stages = self.list_stages()
        chosen, deepest = feature_take_indices(
            len(stages), list(indices) if isinstance(indices, tuple) else indices
        )
        maps = []
        for number, stage in enumerate(stages[: deepest + 1] if stop_early else stages):
            x = stage(x)
            if number in chosen:
                maps.append(self.norm(x) if norm and number == len(stages) - 1 else x)
        return maps if intermediates_only else (self.norm(x), maps)

    def forward_features(self, x: Images) -> Maps:
        """Return the last map, the input of the pooling."""
        for stage in self.list_stages():
            x = stage(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Maps, pre_logits: bool = False) -> Float[Tensor, "batch ..."]:
        """Pool and classify the last map; with `pre_logits` return the classifier's
        input, ``[B, head_hidden_size]``.
        """
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Images) -> Float[Tensor, "batch ..."]:
        """Return logits ``[B, num_classes]`` of normalized images ``[B, in_chans, H,
        W]``.
        """
        return self.forward_head(self.forward_features(x))


def build_default_cfgs(names: Mapping[str, str], *, size: int = 8) -> Any:
    """Return timm's configurations of nets for 100 classes at 32 pixels. `names`: first
    convolution of each net; `size`: side of the last map.
    """
    common = {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (size, size),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    return generate_default_cfgs(
        {name: {**common, "first_conv": first, "classifier": "fc"} for name, first in names.items()}
    )


def build_with_timm(
    net: type[StagedNet], name: str, pretrained: bool, indices: Sequence[int], **kwargs: Any
) -> nn.Module:
    """Build a net with timm's builder. With ``features_only`` the net returns the
    stages in `indices`.
    """
    model: nn.Module = build_model_with_cfg(
        net, name, pretrained, feature_cfg={"out_indices": tuple(indices)}, **kwargs
    )
    return model
