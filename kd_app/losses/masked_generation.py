"""MGD: generate the teacher's map from the student's map with masked channels."""

from typing import Annotated, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.noise import draw_noise
from kd_app.losses.pairing import match_sizes, pair_stages
from kd_app.models.outputs import Outputs


class MaskedGeneration(LossTerm):
    """``sum (g(m * r(F_s)) - F_t)^2 / B`` for the deepest maps: r = a 1x1 convolution,
    m = 0 for a share `masked` of an image's channels, drawn in every step, g = 3x3
    convolution, ReLU, 3x3 convolution. Sum over channels and cells.

    The larger of two maps is average-pooled to the size of the smaller. The mask
    depends on image and step only, so it is the same in any order of the images and on
    any number of ranks. Yang et al., "Masked Generative Distillation", ECCV 2022, arXiv
    2205.01529, as in the authors' code for classification.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"features"})

    align: nn.Conv2d
    generation: nn.Sequential

    def __init__(self, *, masked: Annotated[float, Field(ge=0, lt=1)]) -> None:
        super().__init__()
        self.masked = masked
        self.draw = draw_noise

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the three convolutions. Raises `RequestError` if one of the models
        provides no feature maps.
        """
        (ours, theirs), *_ = pair_stages("masked_generation", student, teacher)
        width = theirs.shape[1]
        self.align = nn.Conv2d(ours.shape[1], width, 1).to(ours.device)
        first, second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.generation = nn.Sequential(first, nn.ReLU(), second).to(ours.device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the sum of squares, averaged over the batch."""
        ours, theirs = match_sizes(*pair_stages("masked_generation", student, teacher)[0])
        aligned = self.align(ours)
        visible = self.draw(batch, aligned.shape[1]) >= self.masked
        generated = self.generation(aligned * visible[:, :, None, None])
        return F.mse_loss(generated, theirs, reduction="sum") / len(generated)
