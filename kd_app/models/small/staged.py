"""What the small nets have in common: stages in a row, pooling, a classifier, and the
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
    """A convolution without bias that keeps the size but for its stride."""
    return nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )


class StagedNet(nn.Module):
    """Stages in a row, `norm` (what stands between the last stage and the pooling),
    pooling and a linear classifier, with timm's interface.

    A subclass makes its modules, says by `stages` how they run, fills in `feature_info`
    (one entry a stage), and ends with `finish`.
    """

    feature_info: list[dict[str, Any]]
    num_features: int
    norm: nn.Module
    head_drop: nn.Module
    global_pool: SelectAdaptivePool2d
    fc: nn.Module

    def list_stages(self) -> tuple[Callable[[Tensor], Tensor], ...]:
        """The stages, shallow to deep: the first takes the image, each other the map
        before it.
        """
        raise NotImplementedError

    def finish(
        self, *, num_classes: int, in_chans: int, global_pool: str, drop_rate: float
    ) -> None:
        """Make the head, and draw the weights of the convolutions (He et al., ICCV
        2015, arXiv 1502.01852, by the outputs).
        """
        self.in_chans = in_chans
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """The linear layer (or identity, with no classes) that gives the logits."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, random classifier of `num_classes` (0: none); `global_pool` is 'avg',
        'max', 'avgmax', 'catavgmax', or None for the one it has.
        """
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        where = next(self.parameters())
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=pool, device=where.device, dtype=where.dtype
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
        """The last map as the head wants it, and the maps after those stages that
        `indices` names (an int: the last n; None: all).

        `norm` sends the last stage's map through the final norm; `stop_early` computes
        no stage behind the last index; `intermediates_only` gives the list of maps
        alone. In a pre-activation net the maps are the raw sums.
        """
        assert output_fmt == "NCHW", "Convolutional maps come as NCHW."
        stages = self.list_stages()
        wanted, deepest = feature_take_indices(
            len(stages), list(indices) if isinstance(indices, tuple) else indices
        )
        maps = []
        for number, stage in enumerate(stages[: deepest + 1] if stop_early else stages):
            x = stage(x)
            if number in wanted:
                maps.append(self.norm(x) if norm and number == len(stages) - 1 else x)
        return maps if intermediates_only else (self.norm(x), maps)

    def forward_features(self, x: Images) -> Maps:
        """The last map, as the pooling wants it."""
        for stage in self.list_stages():
            x = stage(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Maps, pre_logits: bool = False) -> Float[Tensor, "batch ..."]:
        """Pool and classify the last map; with `pre_logits` the classifier's input,
        ``[B, head_hidden_size]``.
        """
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Images) -> Float[Tensor, "batch ..."]:
        """Logits ``[B, num_classes]`` of normalized images ``[B, in_chans, H, W]``."""
        return self.forward_head(self.forward_features(x))


def default_cfgs_of(names: Mapping[str, str], *, size: int = 8) -> Any:
    """timm's configurations of nets for 100 classes of 32 pixels; `names` holds the
    first convolution of each, `size` is the side of the last map.
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
    """A net by timm's own builder; ``features_only`` gives the stages of `indices`."""
    made: nn.Module = build_model_with_cfg(
        net, name, pretrained, feature_cfg={"out_indices": tuple(indices)}, **kwargs
    )
    return made
