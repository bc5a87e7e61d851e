"""Residual nets for small images.

=========================  ================  ====================================
names                      widths            paper
                           (stem, stages)
=========================  ================  ====================================
resnet8 14 20 32 44 56     16, 16 32 64      He et al., "Deep residual learning",
110                                          CVPR 2016, arXiv 1512.03385
resnet8_narrow             3, 3 6 12         resnet8 at 3/16 of the width
resnet8x4 resnet32x4       32, 64 128 256    Tian et al., "Contrastive
                                             representation distillation",
                                             ICLR 2020, arXiv 1910.10699
wrn_{16,40}_{1,2},         16, 16k 32k 64k   Zagoruyko & Komodakis, "Wide
wrn_28_2 (depth, width k)                    residual networks", BMVC 2016,
                                             arXiv 1605.07146
=========================  ================  ====================================

The stem has stride 1 and the three stages have strides 1, 2, 2, so images of 8 to 64
pixels end in maps of useful size (8x8 -> 2x2, 32x32 -> 8x8). Shortcuts are the
identity, or a 1x1 projection if width or size changes (option B), as in all code of the
distillation literature.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from typing import Any, ClassVar

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


class BasicBlock(nn.Module):
    """Basic block: ``relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))``."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = build_conv(inputs, outputs, stride)
        self.bn1, self.act1 = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = build_conv(outputs, outputs), nn.BatchNorm2d(outputs)
        projects = stride != 1 or inputs != outputs
        self.shortcut = (
            nn.Sequential(build_conv(inputs, outputs, stride, kernel=1), nn.BatchNorm2d(outputs))
            if projects
            else nn.Identity()
        )
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Images) -> Maps:
        """``[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]``."""
        y: Tensor = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.act2(y)  # type: ignore[no-any-return]


class PreActBlock(nn.Module):
    """Pre-activation block: ``shortcut(x) + conv(relu(bn(conv(relu(bn(x))))))``. A
    projecting shortcut reads the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.act1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        self.conv1 = build_conv(inputs, outputs, stride)
        self.bn2, self.act2 = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.conv2 = build_conv(outputs, outputs)
        self.shortcut = (
            build_conv(inputs, outputs, stride, kernel=1)
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Images) -> Maps:
        """``[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]``."""
        active = self.act1(self.bn1(x))
        y: Tensor = self.conv2(self.act2(self.bn2(self.conv1(active))))
        y += x if self.shortcut is None else self.shortcut(active)
        return y


class SmallNet(StagedNet):
    """Stem, three stages of `num_blocks` blocks, pooling and a linear classifier, with
    the interface of timm's models.

    `widths`: of the stem and the three stages. `forward_intermediates` and
    ``features_only`` return four maps: stem, layer1, layer2, layer3 at strides 1, 1, 2,
    4. `drop_rate`: dropout before the classifier in training. `stem_kernel`,
    `stem_stride` and `strides` (of the stages) are for cheaper nets: 5, 2 and (2, 2, 2)
    take a twelfth of resnet8's multiply-adds.
    """

    block: ClassVar[type[nn.Module]]

    def __init__(
        self,
        *,
        num_blocks: int,
        widths: Sequence[int],
        in_chans: int = 3,
        num_classes: int = 100,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        stem_kernel: int = 3,
        stem_stride: int = 1,
        strides: Sequence[int] = (1, 2, 2),
    ) -> None:
        super().__init__()
        self.num_features = widths[-1]
        self.conv1 = build_conv(in_chans, widths[0], stem_stride, stem_kernel)
        self.stem = self._build_norm_act(first=True, width=widths[0])
        self.layer1 = self._build_stage(widths[0], widths[1], strides[0], num_blocks)
        self.layer2 = self._build_stage(widths[1], widths[2], strides[1], num_blocks)
        self.layer3 = self._build_stage(widths[2], widths[3], strides[2], num_blocks)
        self.norm = self._build_norm_act(first=False, width=widths[-1])
        names = ("stem", "layer1", "layer2", "layer3")
        reductions = accumulate((stem_stride, *strides), mul)
        self.feature_info = [
            {"num_chs": c, "reduction": r, "module": m}
            for c, r, m in zip(widths, reductions, names, strict=True)
        ]
        self.finish(
            num_classes=num_classes, in_chans=in_chans, global_pool=global_pool, drop_rate=drop_rate
        )

    def _build_stage(
        self, inputs: int, outputs: int, stride: int, num_blocks: int
    ) -> nn.Sequential:
        return nn.Sequential(
            self.block(inputs, outputs, stride),
            *(self.block(outputs, outputs, 1) for _ in range(num_blocks - 1)),
        )

    def _build_norm_act(self, *, first: bool, width: int) -> nn.Module:
        """Return the layers between the first convolution and the stages (`first`), or
        between the stages and the head.
        """
        raise NotImplementedError

    def _stem(self, x: Tensor) -> Tensor:
        return self.stem(self.conv1(x))  # type: ignore[no-any-return]

    def list_stages(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        return (self._stem, self.layer1, self.layer2, self.layer3)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return regular expressions of the layers, for timm's layer-wise learning-rate
        decay.
        """
        return {
            "stem": r"^conv1|^stem",
            "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)",
        }


class SmallResNet(SmallNet):
    """ResNet of basic blocks for small images; depth = 6 * num_blocks + 2. He et al.,
    CVPR 2016, arXiv 1512.03385.
    """

    block = BasicBlock

    def _build_norm_act(self, *, first: bool, width: int) -> nn.Module:
        return (
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True)) if first else nn.Identity()
        )


class WideResNet(SmallNet):
    """Wide, pre-activation ResNet; depth = 6 * num_blocks + 4. Zagoruyko & Komodakis,
    BMVC 2016, arXiv 1605.07146 (dropout only at the head).
    """

    block = PreActBlock

    def _build_norm_act(self, *, first: bool, width: int) -> nn.Module:
        return (
            nn.Identity() if first else nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        )


_ARCHITECTURES: dict[str, tuple[type[SmallNet], int, tuple[int, int, int, int]]] = {
    **{f"resnet{6 * n + 2}": (SmallResNet, n, (16, 16, 32, 64)) for n in (1, 2, 3, 5, 7, 9, 18)},
    "resnet8_narrow": (SmallResNet, 1, (3, 3, 6, 12)),
    **{f"resnet{6 * n + 2}x4": (SmallResNet, n, (32, 64, 128, 256)) for n in (1, 5)},
    **{
        f"wrn_{6 * n + 4}_{k}": (WideResNet, n, (16, 16 * k, 32 * k, 64 * k))
        for n, k in ((2, 1), (2, 2), (4, 2), (6, 1), (6, 2))
    },
}

default_cfgs = build_default_cfgs(dict.fromkeys(_ARCHITECTURES, "conv1"))


def _build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    net, num_blocks, widths = _ARCHITECTURES[name]
    return build_with_timm(
        net, name, pretrained, (1, 2, 3), **{"num_blocks": num_blocks, "widths": widths, **kwargs}
    )


@register_model
def resnet8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """resnet8 for images of 8 to 64 pixels; see the table above."""
    return _build("resnet8", pretrained, **kwargs)


@register_model
def resnet14(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """resnet14 for images of 8 to 64 pixels; see the table above."""
    return _build("resnet14", pretrained, **kwargs)


@register_model
def resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """resnet20 for images of 8 to 64 pixels; see the table above."""
    return _build("resnet20", pretrained, **kwargs)


@register_model
def resnet32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """resnet32 for images of 8 to 64 pixels; see the table above."""
    return _build("resnet32", pretrained, **kwargs)


@register_model
def resnet44(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """resnet44 for images of 8 to 64 pixels; see the table above."""
    return _build("resnet44", pretrained, **kwargs)


@register_model
def resnet56(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """resnet56 for images of 8 to 64 pixels; see the table above."""
    return _build("resnet56", pretrained, **kwargs)


@register_model
def resnet110(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """resnet110 for images of 8 to 64 pixels; see the table above."""
    return _build("resnet110", pretrained, **kwargs)


@register_model
def resnet8_narrow(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """resnet8_narrow for images of 8 to 64 pixels; see the table above."""
    return _build("resnet8_narrow", pretrained, **kwargs)


@register_model
def resnet8x4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """resnet8x4 for images of 8 to 64 pixels; see the table above."""
    return _build("resnet8x4", pretrained, **kwargs)


@register_model
def resnet32x4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """resnet32x4 for images of 8 to 64 pixels; see the table above."""
    return _build("resnet32x4", pretrained, **kwargs)


@register_model
def wrn_16_1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """wrn_16_1 for images of 8 to 64 pixels; see the table above."""
    return _build("wrn_16_1", pretrained, **kwargs)


@register_model
def wrn_16_2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """wrn_16_2 for images of 8 to 64 pixels; see the table above."""
    return _build("wrn_16_2", pretrained, **kwargs)


@register_model
def wrn_28_2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """wrn_28_2 for images of 8 to 64 pixels; see the table above."""
    return _build("wrn_28_2", pretrained, **kwargs)


@register_model
def wrn_40_1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """wrn_40_1 for images of 8 to 64 pixels; see the table above."""
    return _build("wrn_40_1", pretrained, **kwargs)


@register_model
def wrn_40_2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """wrn_40_2 for images of 8 to 64 pixels; see the table above."""
    return _build("wrn_40_2", pretrained, **kwargs)
