"""VGG nets for small images: five stages of 3x3 convolutions, without shortcuts.

===========  ======================  ===========================================
name         convolutions per stage  paper
===========  ======================  ===========================================
vgg8         1, 1, 1, 1, 1           Simonyan & Zisserman, "Very deep
vgg13_small  2, 2, 2, 2, 2           convolutional networks", ICLR 2015, arXiv
                                     1409.1556, with BatchNorm and one linear
                                     layer as in Tian et al., ICLR 2020, arXiv
                                     1910.10699
===========  ======================  ===========================================

Widths 64, 128, 256, 512, 512, with a 2x2 max-pool before stages 2, 3 and 4: images of
32x32 pixels end as 4x4 maps. The literature's ``vgg13`` is called ``vgg13_small`` here,
because timm's `vgg13` is the ImageNet net with 133 million parameters.
"""

from collections.abc import Callable
from typing import Any

from timm.models import register_model
from torch import Tensor, nn

from kd_app.models.small.staged import StagedNet, build_default_cfgs, build_with_timm

_WIDTHS, _STRIDES = (64, 128, 256, 512, 512), (1, 2, 2, 2, 1)
_DEPTHS = {"vgg8": 1, "vgg13_small": 2}


class SmallVgg(StagedNet):
    """Five stages of `depth` convolutions, each with BatchNorm and ReLU; pooling; a
    linear classifier. The VGG depth is 5 * `depth` + 3.
    """

    def __init__(
        self,
        *,
        depth: int,
        in_chans: int = 3,
        num_classes: int = 100,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_features = _WIDTHS[-1]
        self.feature_info, reduction, inputs = [], 1, in_chans
        for number, (width, stride) in enumerate(zip(_WIDTHS, _STRIDES, strict=True)):
            layers: list[nn.Module] = [nn.MaxPool2d(stride)] if stride > 1 else []
            for _ in range(depth):
                layers += [
                    nn.Conv2d(inputs, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                inputs = width
            name, reduction = f"stage{number}", reduction * stride
            self.add_module(name, nn.Sequential(*layers))
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": name})
        self.norm = nn.Identity()
        self.finish(
            num_classes=num_classes, in_chans=in_chans, global_pool=global_pool, drop_rate=drop_rate
        )

    def list_stages(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        return tuple(self.get_submodule(info["module"]) for info in self.feature_info)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return regular expressions of the layers, for timm's layer-wise learning-rate
        decay.
        """
        return {"stem": r"^stage0", "blocks": r"^stage(\d+)" if coarse else r"^stage(\d+)\.(\d+)"}


default_cfgs = build_default_cfgs(dict.fromkeys(_DEPTHS, "stage0.0"), size=4)


@register_model
def vgg8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """vgg8 for images of 8 to 64 pixels; see the table above."""
    return build_with_timm(
        SmallVgg, "vgg8", pretrained, (1, 2, 3, 4), depth=_DEPTHS["vgg8"], **kwargs
    )


@register_model
def vgg13_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The literature's vgg13 for images of 8 to 64 pixels; see the table above."""
    return build_with_timm(
        SmallVgg, "vgg13_small", pretrained, (1, 2, 3, 4), depth=_DEPTHS["vgg13_small"], **kwargs
    )
