"""SimKD: match the student's map, after a projector, to the teacher's; the student
reuses the teacher's classifier.
"""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import match_sizes, pair_stages
from kd_app.models.outputs import Outputs
from kd_app.models.simkd_student import Projector, SimKDStudent, find_linear_classifier

_ALTERNATIVES = "Terms for any pair: softmax_regression, embedding_mse, feature_hint."


class SimKD(LossTerm):
    """``mean (projector(F_s) - F_t)^2`` for the deepest maps. The model that is
    trained, evaluated and shipped is ``W_t mean_cells projector(F_s) + b_t``: the
    student with the projector and the teacher's frozen classifier instead of its own.

    projector = 1x1 convolution to C_t / `reduction` channels, 3x3, 1x1 to C_t, each
    with batch norm and ReLU; the last ReLU is omitted if the teacher's map has negative
    values. The larger of two maps is average-pooled to the size of the smaller.
    Projector and classifier are parts of the student: they count in its size and
    multiply-adds, and it ships as an exported program. Chen et al., "Knowledge
    Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv 2203.14001. In
    the paper this is the whole loss.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"features"})

    projector: Projector

    def __init__(self, *, reduction: PositiveInt) -> None:
        super().__init__()
        self.reduction = reduction

    @property
    def teacher_reads(self) -> frozenset[str]:
        return frozenset({"features", "embedding", "classifier"})

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the projector. Raises `RequestError` for a model without maps, and for
        a teacher whose classifier is not a linear layer on the average-pooled map.
        """
        (ours, theirs), *_ = pair_stages("simkd", student, teacher)
        classifier = find_linear_classifier(teacher.classifier)
        pooled = theirs.mean((2, 3))
        if (
            classifier is None
            or teacher.embedding is None
            or not _is_equal(teacher.embedding, pooled)
        ):
            raise RequestError(
                "simkd reuses the teacher's classifier in the student. This needs a linear"
                " classifier on the average-pooled last feature map (as in ResNet, RegNet or"
                " DenseNet), but this teacher has another one. Choose another teacher."
                f" {_ALTERNATIVES}"
            )
        # In a tuple, because the teacher's module must not be trained, saved or moved
        # with the term.
        self._classifier = (classifier,)
        size = min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3])
        self.projector = Projector(
            ours.shape[1],
            max(theirs.shape[1] // self.reduction, 1),
            theirs.shape[1],
            size=size if size != tuple(ours.shape[2:]) else None,
            relu=bool((theirs >= 0).all()),
        ).to(ours.device)

    def wrap_student(self, student: nn.Module) -> nn.Module:
        """Return the student with projector and classifier. Raises `RequestError` for a
        model without timm's interface.
        """
        if not (hasattr(student, "forward_intermediates") and hasattr(student, "reset_classifier")):
            raise RequestError(
                "simkd replaces the student's classifier by a projector, but"
                f" {type(student).__name__} lacks forward_intermediates or reset_classifier."
                f" Choose a timm model. {_ALTERNATIVES}"
            )
        return SimKDStudent(student, self.projector, self._classifier[0])

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean over batch, channels and cells."""
        ours, theirs = pair_stages("simkd", student, teacher)[0]
        ours, theirs = match_sizes(ours, theirs)
        return F.mse_loss(self.projector(ours), theirs)


def _is_equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool(
        (ours - theirs).abs().max() <= 0.02 * theirs.abs().max() + 1e-6
    )
