"""How much a student's embedding agrees with the teacher's, on validation images."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics import Metric

from kd_app.metrics.embedding_shape import compute_effective_rank
from kd_app.metrics.neighbors import compute_overlap, compute_purity, find_neighbors

_MOST, _MOST_RANKED = 10_000, 1_000
"""Images among which neighbors are searched during a training."""


class EmbeddingAgreement(Metric):
    """``overlap``, the mean share of the `k` nearest validation images that student and
    teacher have in common, and ``distance``, ``mean_b 1 - cos(s_b - s, t_b - t)`` with
    the means s and t over these images.

    The overlap is of at most 10,000 images, each among the others; NaN for fewer than
    three. `k` is at most half of the others, since all of them are shared by any two
    embeddings. ``purity``, the mean share of the student's neighbors that have the
    image's label, is there if labels of at least two classes judge. ``effective_rank``,
    of at most 1,000 images of the student, shows a collapse before the training ends.
    Images without an output of the teacher (NaN) are left out.
    """

    is_differentiable = False
    full_state_update = False
    student: list[Tensor]
    teacher: list[Tensor]
    index: list[Tensor]
    target: list[Tensor]

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        for name in ("student", "teacher", "index", "target"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        student: Float[Tensor, "batch width"],
        teacher: Float[Tensor, "batch width"],
        index: Int64[Tensor, " batch"],
        target: Int64[Tensor, " batch"],
    ) -> None:
        """Add a batch, which may be empty. target: labels, -1: none."""
        known = teacher.isfinite().all(dim=1)
        self.student.append(student[known].detach())
        self.teacher.append(teacher[known].detach())
        self.index.append(index[known])
        self.target.append(target[known])

    def compute(self) -> dict[str, Tensor]:
        """Return the values by name."""
        student, teacher, index, target = (
            (torch.cat(state) if isinstance(state, list) else state).cpu()
            for state in (self.student, self.teacher, self.index, self.target)
        )
        # ranks add their images in another order
        order = index.argsort()[:_MOST]
        student, teacher, target = student[order].float(), teacher[order].float(), target[order]
        ours, theirs = (each - each.mean(dim=0) for each in (student, teacher))
        rank = compute_effective_rank(student[:_MOST_RANKED].numpy()) if len(order) else torch.nan
        values = {
            "overlap": torch.tensor(torch.nan),
            "distance": 1 - F.cosine_similarity(ours, theirs).mean(),
            "effective_rank": torch.tensor(rank),
        }
        if len(order) > 2:
            near, nearest = (self._find_neighbors(each) for each in (student, teacher))
            values["overlap"] = _average(compute_overlap(near, nearest))
            judged = target >= 0
            if len(target[judged].unique()) > 1:
                labels = target[judged].numpy()
                rows = near if judged.all() else self._find_neighbors(student[judged])
                values["purity"] = _average(compute_purity(labels[rows], labels))
        return values

    def _find_neighbors(self, images: Float[Tensor, "images width"]) -> Int64[np.ndarray, "_ _"]:
        k = min(self.k, (len(images) - 1) // 2 or 1)
        return find_neighbors(images.numpy(), images.numpy(), k, is_same=True).rows


def _average(values: Float[np.ndarray, " images"]) -> Tensor:
    return torch.tensor(values.mean(), dtype=torch.float32)
