"""NST: match the distributions of the spatial patterns of channels."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import match_sizes, pair_spatial_stages
from kd_app.models.outputs import Outputs


class NeuronSelectivity(LossTerm):
    """``sum over stages of mean k(t, t) + mean k(s, s) - 2 mean k(s, t)``: the squared
    maximum mean discrepancy between the channels of two maps, each channel with L2 norm
    1 over its cells, for the kernel ``k(x, y) = <x, y>^2``; means over batch and pairs
    of channels.

    The larger of two maps is average-pooled to the size of the smaller; widths may
    differ. Pairs that share a single cell are skipped. Huang & Wang, "Like What You
    Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv 1707.01219.
    Implemented with matrix products, because the pairwise differences of the reference
    code need a thousand times the memory.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"features"})

    def __init__(self, *, stages: PositiveInt) -> None:
        super().__init__()
        self.stages = stages

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` if a model provides no feature maps, or none that share
        more than one cell.
        """
        self._pair_maps(student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum over the stages; 0 if the channels have the same
        distribution.
        """
        pairs = (match_sizes(*pair) for pair in self._pair_maps(student, teacher))
        return torch.stack([_compute_discrepancy(ours, theirs) for ours, theirs in pairs]).sum()

    def _pair_maps(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        return pair_spatial_stages(
            "neuron_selectivity",
            "the spatial patterns of channels",
            student,
            teacher,
            self.stages,
        )


def _compute_discrepancy(
    ours: Float[Tensor, "batch cs height width"], theirs: Float[Tensor, "batch ct height width"]
) -> Float[Tensor, ""]:
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (ours, theirs))
    return _compute_kernel(t, t) + _compute_kernel(s, s) - 2 * _compute_kernel(s, t)


def _compute_kernel(
    a: Float[Tensor, "batch ca cells"], b: Float[Tensor, "batch cb cells"]
) -> Float[Tensor, ""]:
    return (a @ b.transpose(1, 2)).square().mean()
