"""How much a student's embedding agrees with the teacher's, on validation images."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics import Metric

from kd_app.metrics.embedding_shape import compute_effective_rank
from kd_app.metrics.neighbors import compute_overlap, find_neighbors

_MOST, _MOST_RANKED = 10_000, 1_000
"""Images among which neighbors are searched during a training."""


class EmbeddingAgreement(Metric):
    """``overlap``, the mean share of the `k` nearest validation images that student and
    teacher have in common, and ``distance``, ``mean_b 1 - cos(s_b, t_b)``.

    The overlap is of at most 10,000 images, each among the others; NaN for fewer than
    three. ``effective_rank``, of at most 1,000 images of the student, shows a collapse
    before the training ends. Images without an output of the teacher (NaN) are left
    out.
    """

    is_differentiable = False
    full_state_update = False
    student: list[Tensor]
    teacher: list[Tensor]
    index: list[Tensor]

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        for name in ("student", "teacher", "index"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        student: Float[Tensor, "batch width"],
        teacher: Float[Tensor, "batch width"],
        index: Int64[Tensor, " batch"],
    ) -> None:
        """Add a batch, which may be empty."""
        known = teacher.isfinite().all(dim=1)
        self.student.append(student[known].detach())
        self.teacher.append(teacher[known].detach())
        self.index.append(index[known])

    def compute(self) -> dict[str, Tensor]:
        """Return both values."""
        student, teacher, index = (
            (torch.cat(state) if isinstance(state, list) else state).cpu()
            for state in (self.student, self.teacher, self.index)
        )
        # ranks add their images in another order
        order = index.argsort()[:_MOST]
        student, teacher = student[order].float(), teacher[order].float()
        distance = 1 - F.cosine_similarity(student, teacher).mean()
        overlap = torch.tensor(torch.nan)
        if len(order) > 2:
            k = min(self.k, len(order) - 1)
            ours, theirs = (
                find_neighbors(each.numpy(), each.numpy(), k, is_same=True).rows
                for each in (student, teacher)
            )
            overlap = torch.tensor(compute_overlap(ours, theirs).mean(), dtype=torch.float32)
        rank = compute_effective_rank(student[:_MOST_RANKED].numpy()) if len(order) else torch.nan
        return {"overlap": overlap, "distance": distance, "effective_rank": torch.tensor(rank)}
