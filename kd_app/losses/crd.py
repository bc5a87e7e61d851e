"""CRD: contrast the student's embedding of an image with the teacher's embeddings of
other classes, and vice versa.
"""

import math
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm, TermPart
from kd_app.losses.noise import draw_noise
from kd_app.losses.pairing import require_embeddings
from kd_app.models.outputs import Outputs

_EPSILON = 1e-7


class CRD(LossTerm):
    """``-mean_b [log P+ / (P+ + c) + sum_k log c / (P-_k + c)]``, c = K / N, summed
    over the student's and the teacher's side.

    v is the embedding f after a linear map, with norm 1. A memory M [N, D] per model
    stores one vector per image. Student's side: ``P_j = exp(M_t[j] . v_s / temperature)
    / Z``, with the image itself as the positive j, and K negatives drawn from images of
    other classes. Teacher's side: the same with M_s and v_t. Z is N times the mean of
    the exponentials of the first batch. Afterwards ``M[i] <- norm(momentum M[i] + (1 -
    momentum) v)``.

    The memory is part of the term's state, so checkpoints include it. With several
    ranks, each rank gets the global batch and draws the same negatives, so all memories
    stay equal. Negatives are drawn in every step, with repetition. An image without a
    label, or not yet seen, counts as a class of its own. Images that are not training
    images are ignored. Tian, Krishnan, Isola, "Contrastive Representation
    Distillation", ICLR 2020, arXiv 1910.10699.
    """

    level: ClassVar[Level] = "relation"
    reads: frozenset[str] = frozenset({"embedding"})
    needs_global_batch: bool = True

    embed_s: nn.Linear
    embed_t: nn.Linear
    memory_s: Tensor
    memory_t: Tensor
    partition: Tensor
    classes: Tensor
    numbers: Tensor

    def __init__(
        self,
        *,
        width: PositiveInt,
        negatives: PositiveInt,
        temperature: Annotated[float, Field(ge=0.02, le=10)],
        momentum: Annotated[float, Field(ge=0, lt=1)],
        most_images: PositiveInt,
    ) -> None:
        super().__init__()
        self.width = width
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.most_images = most_images
        self.draw = draw_noise

    def list_parts(self) -> tuple[TermPart, ...]:
        return (TermPart(min_images=2),)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the linear maps and the memory. Raises `RequestError` for a model
        without embedding, and for images without indices or too many of them.
        """
        ours, theirs = require_embeddings("crd", student, teacher)
        if self.images is None:
            raise RequestError(
                "crd stores a vector per image by its index, but these data have no image indices."
                " Use data=folder or data=csv, or choose another term: rkd, pkt or sp."
            )
        count = len(self.images)
        if count > self.most_images:
            megabytes = 2 * 4 * count * self.width / 1e6
            raise RequestError(
                f"crd would store vectors of {count:,} images ({megabytes:,.0f} MB), more than"
                f" loss.crd.most_images={self.most_images:,} allows. Raise the limit, lower"
                " loss.crd.width, or choose another term: rkd, pkt or sp."
            )
        device = ours.device
        self.embed_s, self.embed_t = (
            nn.Linear(x.shape[1], self.width).to(device) for x in (ours, theirs)
        )
        bound = 1 / math.sqrt(self.width / 3)
        for name in ("memory_s", "memory_t"):
            self.register_buffer(
                name, torch.empty(count, self.width, device=device).uniform_(-bound, bound)
            )
        self.register_buffer("partition", torch.zeros(2, device=device))
        self.register_buffer("classes", -1 - torch.arange(count, device=device))
        self.register_buffer("numbers", self.images.to(device), persistent=False)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean over the batch, summed over both sides. Updates the memory in
        training.
        """
        ours, theirs = require_embeddings("crd", student, teacher)
        rows = torch.searchsorted(self.numbers, batch.index).clamp(max=len(self.numbers) - 1)
        is_stored = self.numbers[rows] == batch.index
        rows = rows[is_stored]
        s, t = (
            F.normalize(embed(x[is_stored]), dim=1)
            for embed, x in ((self.embed_s, ours), (self.embed_t, theirs))
        )
        labeled = is_stored if batch.labeled is None else is_stored & batch.labeled
        self.classes[rows[labeled[is_stored]]] = batch.to_hard_target()[labeled]
        chosen = torch.cat((rows[:, None], self._draw_negatives(batch, rows, is_stored)), dim=1)
        value = self._score_side(s, self.memory_t, 0, chosen) + self._score_side(
            t, self.memory_s, 1, chosen
        )
        if self.training:
            self._update_memory(rows, s, t)
        return value / max(len(rows), 1)

    def _draw_negatives(
        self, batch: Batch, rows: Int64[Tensor, " batch"], is_stored: Tensor
    ) -> Int64[Tensor, "batch negatives"]:
        """Return rows of images of other classes, or of any class if there is no
        other.
        """
        ordered, order = self.classes.sort(stable=True)
        own = self.classes[rows]
        first, behind = (
            torch.searchsorted(ordered, own, right=right)[:, None] for right in (False, True)
        )
        size = behind - first
        others = len(order) - size
        size = torch.where(others > 0, size, 0)
        noise = self.draw(batch, min(self.negatives, len(order)))[is_stored]
        place = (noise * (len(order) - size)).long()
        return order[place + torch.where(place >= first, size, 0)]

    def _score_side(self, v: Tensor, memory: Tensor, number: int, chosen: Tensor) -> Tensor:
        images = len(memory)
        similarity = (v @ memory.T.clone()).gather(1, chosen).div(self.temperature).exp()
        if len(v) and self.partition[number] == 0:
            self.partition[number] = similarity.detach().mean() * images
        # Cloned: the other side updates the same tensor in place before backward.
        p = similarity / self.partition[number].clone()
        c = (chosen.shape[1] - 1) / images
        negatives = (c / (p[:, 1:] + c + _EPSILON)).log().sum()
        return -(p[:, 0] / (p[:, 0] + c + _EPSILON)).log().sum() - negatives

    @torch.no_grad()
    def _update_memory(self, rows: Tensor, s: Tensor, t: Tensor) -> None:
        """Update the memory. Vectors that are not finite are ignored: the step may be
        skipped and training continue.
        """
        for memory, v in ((self.memory_s, s), (self.memory_t, t)):
            moved = F.normalize(self.momentum * memory[rows] + (1 - self.momentum) * v, dim=1)
            memory[rows] = torch.where(
                moved.isfinite().all(dim=1, keepdim=True), moved, memory[rows]
            )
