"""Mobile nets, in the small-image variants of the distillation literature (Tian et al.,
ICLR 2020, arXiv 1910.10699).

================  =============================  =================================
name              widths                         paper
================  =============================  =================================
mobilenetv2_half  16, 8 12 16 32 48 80 160,      Sandler et al., "MobileNetV2",
                  1280                           CVPR 2018, arXiv 1801.04381, at
                                                 half the width
shufflenet_v1     24, 240 480 960, in 3 groups   Zhang et al., "ShuffleNet",
                                                 CVPR 2018, arXiv 1707.01083
shufflenet_v2     24, 116 232 464, 1024          Ma et al., "ShuffleNet V2",
                                                 ECCV 2018, arXiv 1807.11164
================  =============================  =================================

Differences from the ImageNet nets of the papers: MobileNetV2 has ReLU instead of ReLU6,
and stride 1 instead of 2 in the second group of blocks. The ShuffleNets start with a
1x1 convolution of stride 1 and without max-pool, and V1 has an additional ReLU after
the 3x3 convolutions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn

from kd_app.models.small.staged import (
    Images,
    Maps,
    StagedNet,
    build_conv,
    build_default_cfgs,
    build_with_timm,
)

Block = Callable[[int, int, int], nn.Module]
Group = tuple[Block, Block, int, int, int]

_GROUPS = 3
"""Number of groups of ShuffleNet's grouped convolutions."""
_EXPANSION = 6
"""Expansion factor of MobileNetV2's blocks."""


def _build_norm_act(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(width), nn.ReLU(inplace=True)


def _build_depthwise(width: int, stride: int) -> nn.Conv2d:
    return build_conv(width, width, stride, groups=width)


def shuffle(x: Maps, groups: int) -> Maps:
    """Move channel ``g * n + i`` to ``i * groups + g``, for `groups` groups of n
    channels, so that the next grouped convolution reads channels of every group.
    """
    batch, channels, height, width = x.shape
    return (
        x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)
    )


class InvertedResidual(nn.Module):
    """Inverted residual block: 1x1 convolution to `expansion` times the width, 3x3
    depthwise, 1x1 without activation. The input is added if the shape does not change.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, expansion: int = _EXPANSION
    ) -> None:
        super().__init__()
        wide = expansion * inputs
        self.body = nn.Sequential(
            build_conv(inputs, wide, kernel=1),
            *_build_norm_act(wide),
            _build_depthwise(wide, stride),
            *_build_norm_act(wide),
            build_conv(wide, outputs, kernel=1),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Images) -> Maps:
        """``[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]``."""
        y: Tensor = self.body(x)
        return x + y if self.adds else y


class ShuffleUnit(nn.Module):
    """Unit of ShuffleNet: 1x1 in `first` groups, shuffle, 3x3 depthwise, grouped 1x1.
    The input is added; at stride 2 the pooled input is concatenated instead.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, first: int = _GROUPS, groups: int = _GROUPS
    ) -> None:
        super().__init__()
        residual_width = outputs - inputs if stride == 2 else outputs
        middle, self.groups = residual_width // 4, first
        self.conv1 = nn.Sequential(
            build_conv(inputs, middle, kernel=1, groups=self.groups), *_build_norm_act(middle)
        )
        self.conv2 = nn.Sequential(_build_depthwise(middle, stride), *_build_norm_act(middle))
        self.conv3 = nn.Sequential(
            build_conv(middle, residual_width, kernel=1, groups=groups),
            nn.BatchNorm2d(residual_width),
        )
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Images) -> Maps:
        """``[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]``."""
        y: Tensor = self.conv3(self.conv2(shuffle(self.conv1(x), self.groups)))
        mixed = x + y if self.pool is None else torch.cat([y, self.pool(x)], dim=1)
        return self.act(mixed)  # type: ignore[no-any-return]


class ShuffleUnitV2(nn.Module):
    """Unit of ShuffleNet V2: half of the channels stay unchanged, the other half passes
    1x1, 3x3 depthwise and 1x1 convolutions; then channels are shuffled. At stride 2
    both halves are computed from all channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        width = inputs if stride == 2 else half
        self.near = (
            nn.Sequential(
                _build_depthwise(width, 2),
                nn.BatchNorm2d(width),
                build_conv(width, half, kernel=1),
                *_build_norm_act(half),
            )
            if stride == 2
            else None
        )
        self.far = nn.Sequential(
            build_conv(width, half, kernel=1),
            *_build_norm_act(half),
            _build_depthwise(half, stride),
            nn.BatchNorm2d(half),
            build_conv(half, half, kernel=1),
            *_build_norm_act(half),
        )

    def forward(self, x: Images) -> Maps:
        """``[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]``."""
        near, far = x.chunk(2, dim=1) if self.near is None else (self.near(x), x)
        return shuffle(torch.cat([near, self.far(far)], dim=1), 2)


class MobileNet(StagedNet):
    """A convolution, groups of blocks, an optional 1x1 convolution to `last` channels
    (0: none), pooling and a linear classifier.

    stem: width, kernel and stride of the first convolution. groups: per group, the
    constructors of the first block and of the other blocks (inputs, outputs, stride),
    the width, the number of blocks, and the stride of the first block.
    """

    def __init__(
        self,
        *,
        stem: tuple[int, int, int],
        groups: tuple[Group, ...],
        last: int,
        in_chans: int = 3,
        num_classes: int = 100,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        inputs, kernel, reduction = stem
        self.conv1 = build_conv(in_chans, inputs, reduction, kernel)
        self.stem = nn.Sequential(*_build_norm_act(inputs))
        self.feature_info = [{"num_chs": inputs, "reduction": reduction, "module": "stem"}]
        for number, (first, other, width, count, stride) in enumerate(groups, start=1):
            name, reduction = f"layer{number}", reduction * stride
            self.add_module(
                name,
                nn.Sequential(
                    first(inputs, width, stride),
                    *(other(width, width, 1) for _ in range(count - 1)),
                ),
            )
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": name})
            inputs = width
        self.norm = (
            nn.Sequential(build_conv(inputs, last, kernel=1), *_build_norm_act(last))
            if last
            else nn.Identity()
        )
        self.num_features = last or inputs
        self.finish(
            num_classes=num_classes, in_chans=in_chans, global_pool=global_pool, drop_rate=drop_rate
        )

    def _stem(self, x: Tensor) -> Tensor:
        return self.stem(self.conv1(x))  # type: ignore[no-any-return]

    def list_stages(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        return (self._stem, *(self.get_submodule(info["module"]) for info in self.feature_info[1:]))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return regular expressions of the layers, for timm's layer-wise learning-rate
        decay.
        """
        return {
            "stem": r"^conv1|^stem",
            "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)",
        }


_NARROW = partial(InvertedResidual, expansion=1)
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mobilenetv2_half": {
        "stem": (16, 3, 2),
        "groups": (
            (_NARROW, _NARROW, 8, 1, 1),
            (InvertedResidual, InvertedResidual, 12, 2, 1),
            (InvertedResidual, InvertedResidual, 16, 3, 2),
            (InvertedResidual, InvertedResidual, 32, 4, 2),
            (InvertedResidual, InvertedResidual, 48, 3, 1),
            (InvertedResidual, InvertedResidual, 80, 3, 2),
            (InvertedResidual, InvertedResidual, 160, 1, 1),
        ),
        "last": 1280,
    },
    "shufflenet_v1": {
        "stem": (24, 1, 1),
        "groups": (
            (partial(ShuffleUnit, first=1), ShuffleUnit, 240, 4, 2),
            (ShuffleUnit, ShuffleUnit, 480, 8, 2),
            (ShuffleUnit, ShuffleUnit, 960, 4, 2),
        ),
        "last": 0,
    },
    "shufflenet_v2": {
        "stem": (24, 1, 1),
        "groups": (
            (ShuffleUnitV2, ShuffleUnitV2, 116, 4, 2),
            (ShuffleUnitV2, ShuffleUnitV2, 232, 8, 2),
            (ShuffleUnitV2, ShuffleUnitV2, 464, 4, 2),
        ),
        "last": 1024,
    },
}

default_cfgs = build_default_cfgs(dict.fromkeys(_ARCHITECTURES, "conv1"), size=4)


@register_model
def mobilenetv2_half(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 at half the width, for images of 16 to 64 pixels; see the table
    above.
    """
    return build_with_timm(
        MobileNet,
        "mobilenetv2_half",
        pretrained,
        (2, 3, 5, 7),
        **_ARCHITECTURES["mobilenetv2_half"],
        **kwargs,
    )


@register_model
def shufflenet_v1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNet for images of 8 to 64 pixels; see the table above."""
    return build_with_timm(
        MobileNet,
        "shufflenet_v1",
        pretrained,
        (1, 2, 3),
        **_ARCHITECTURES["shufflenet_v1"],
        **kwargs,
    )


@register_model
def shufflenet_v2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNet V2 for images of 8 to 64 pixels; see the table above."""
    return build_with_timm(
        MobileNet,
        "shufflenet_v2",
        pretrained,
        (1, 2, 3),
        **_ARCHITECTURES["shufflenet_v2"],
        **kwargs,
    )
