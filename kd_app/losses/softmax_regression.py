"""SRRL: the teacher's classifier must predict the same from the student's features as
from its own.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.losses.adapters import BatchNorm, apply_classifier
from kd_app.losses.base import Level, LossTerm, TermPart
from kd_app.losses.pairing import pair_stages, require_embeddings
from kd_app.models.outputs import Outputs


class SoftmaxRegression(LossTerm):
    """``mean (f' - f_t)^2 + regression x mean (h_t(f') - z_t)^2``, means over batch and
    features, and batch and classes; f' [B, D_t] = the average over the cells of
    ReLU(BN(conv1x1(F_s))) for the student's deepest map, f_t the teacher's embedding,
    h_t the teacher's frozen classifier.

    With 'auto' the ReLU is omitted if the teacher's embedding has negative values. The
    teacher's embedding replaces the teacher's averaged map. Both are the same in nets
    that average before the classifier; in other nets the classifier thus reads the
    input it was trained on. Yang et al., "Knowledge Distillation via Softmax Regression
    Representation Learning", ICLR 2021.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"logits", "features", "embedding", "classifier"})

    adapter: nn.Sequential

    def __init__(
        self, *, regression: NonNegativeFloat, activation: Literal["auto", "relu", "none"]
    ) -> None:
        super().__init__()
        self.regression = regression
        self.activation = activation

    @property
    def teacher_reads(self) -> frozenset[str]:
        return frozenset({"logits", "embedding", "classifier"})

    def list_parts(self) -> tuple[TermPart, ...]:
        # The average of one normalized map without ReLU is always 0.
        return (TermPart(min_images=2 if self.activation == "none" else 1),)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the connector. Raises `RequestError` if the student provides no maps,
        or the teacher no embedding or classifier.
        """
        (ours, _), *_ = pair_stages("softmax_regression", student, student)
        _, theirs = require_embeddings("softmax_regression", student, teacher)
        if teacher.classifier is None:
            raise RequestError(
                "softmax_regression applies the teacher's classifier to the student's features, but"
                " the teacher provides no classifier. Choose another teacher, or another term:"
                " soft_target, feature_hint or embedding_mse."
            )
        relu = bool((theirs >= 0).all()) if self.activation == "auto" else self.activation == "relu"
        layers = [
            nn.Conv2d(ours.shape[1], theirs.shape[1], 1, bias=False),
            BatchNorm(theirs.shape[1]),
            *([nn.ReLU()] if relu else []),
        ]
        self.adapter = nn.Sequential(*layers).to(ours.device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        assert teacher.embedding is not None
        assert teacher.logits is not None
        assert teacher.classifier is not None
        connected = self.adapter(student.features[-1]).mean((2, 3))
        logits = apply_classifier(teacher.classifier, connected)
        feature_loss = F.mse_loss(connected, teacher.embedding)
        return feature_loss + self.regression * F.mse_loss(logits, teacher.logits)
