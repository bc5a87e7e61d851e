"""How alike two models' embeddings of the same images are, whatever their widths."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torchmetrics import Metric

_NOTHING = 1e-12
"""Share of a Gram matrix below which what is left after centering is rounding."""


class CKA(Metric):
    """Linear centered kernel alignment: ``|Yc' Xc|^2 / (|Xc' Xc| |Yc' Yc|)``, Frobenius
    norms, Xc and Yc the embeddings minus their means.

    1 for embeddings that differ by a rotation, a scale or a shift. Few images beside
    the width push it up: compare values of equally many images. Sums of cross-products
    in float64 are all that is kept, so that ranks and batches add up exactly (a device
    without float64 can't hold it). Kornblith, Norouzi, Lee, Hinton, 'Similarity of
    Neural Network Representations Revisited', ICML 2019, arXiv:1905.00414.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = True
    seen: Tensor
    first_sum: Tensor
    second_sum: Tensor
    first: Tensor
    second: Tensor
    cross: Tensor

    def __init__(self, first_width: int, second_width: int) -> None:
        super().__init__()
        self.add_state("seen", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        shapes = {
            "first_sum": (first_width,),
            "second_sum": (second_width,),
            "first": (first_width, first_width),
            "second": (second_width, second_width),
            "cross": (first_width, second_width),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, first: Float[Tensor, "batch first_width"], second: Float[Tensor, "batch second_width"]
    ) -> None:
        """Add the embeddings of a batch, which may be empty."""
        x, y = first.double(), second.double()
        self.seen = self.seen + len(x)
        self.first_sum, self.second_sum = (
            self.first_sum + x.sum(dim=0),
            self.second_sum + y.sum(dim=0),
        )
        self.first, self.second, self.cross = (
            self.first + x.T @ x,
            self.second + y.T @ y,
            self.cross + x.T @ y,
        )

    def compute(self) -> Float64[Tensor, ""]:
        """In 0..1; NaN where one model gives all images the same embedding, or there
        are fewer than two images.
        """
        first, second = (
            self._centered(self.first, self.first_sum),
            self._centered(self.second, self.second_sum),
        )
        cross = self.cross - torch.outer(self.first_sum, self.second_sum) / self.seen
        return (cross.square().sum() / (first * second)).clamp(max=1)

    def _centered(self, gram: Tensor, total: Tensor) -> Tensor:
        """Norm of the cross-products of the embeddings minus their mean; NaN where they
        do not vary.
        """
        norm: Tensor = torch.linalg.matrix_norm(gram - torch.outer(total, total) / self.seen)
        return norm.where(norm > _NOTHING * torch.linalg.matrix_norm(gram), torch.nan)
