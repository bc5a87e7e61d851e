"""NST: which patterns of places the channels answer to, as distributions."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import common_size, same_size, stage_pairs
from kd_app.models.outputs import Outputs


class NeuronSelectivity(LossTerm):
    """``sum over stages of mean k(t, t) + mean k(s, s) - 2 mean k(s, t)``: the squared maximum mean discrepancy between the channels of two maps,
    each channel with L2 norm 1 over its cells, for the kernel ``k(x, y) = <x, y>^2``; means over batch and pairs of channels.

    The larger of two maps is averaged down to the size of the smaller; widths are free. Pairs that share a single cell are left out.
    Huang & Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv 1707.01219. Products of matrices take the
    place of the reference's differences of all pairs, which need a thousand times the memory.
    """

    level: ClassVar[Level] = "feature"
    reads: ClassVar[frozenset[str]] = frozenset({"features"})

    def __init__(self, *, stages: PositiveInt) -> None:
        super().__init__()
        self.stages = stages

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` when a model gives no feature maps, or none that share more than one cell."""
        if not self._pairs(student, teacher):
            ours, theirs = ([tuple(x.shape[-2:]) for x in outputs.features] for outputs in (student, teacher))
            raise RequestError(
                f"neuron_selectivity compares the places that channels answer to, and no stages of student and teacher share more than one cell: "
                f"the student's maps have {ours} cells, the teacher's {theirs}. Use larger images or models with a smaller stride, or another "
                f"term: soft_target, decoupled or feature_hint."
            )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The sum over the stages; 0 when the channels have the same distribution."""
        pairs = (same_size(*pair) for pair in self._pairs(student, teacher))
        return torch.stack([_discrepancy(ours, theirs) for ours, theirs in pairs]).sum()

    def _pairs(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        pairs = stage_pairs("neuron_selectivity", student, teacher)
        return [pair for pair in pairs if common_size(*pair) != (1, 1)][: self.stages]


def _discrepancy(ours: Float[Tensor, "batch cs height width"], theirs: Float[Tensor, "batch ct height width"]) -> Float[Tensor, ""]:
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (ours, theirs))
    return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a: Float[Tensor, "batch ca cells"], b: Float[Tensor, "batch cb cells"]) -> Float[Tensor, ""]:
    return (a @ b.transpose(1, 2)).square().mean()
