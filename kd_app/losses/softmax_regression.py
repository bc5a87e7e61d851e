"""SRRL: the teacher's classifier is to say of the student's features what it says of
its own.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.losses.adapters import BatchNorm, apply_classifier
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import pair_stages, require_embeddings
from kd_app.models.outputs import Outputs


class SoftmaxRegression(LossTerm):
    """``mean (f' - f_t)^2 + regression x mean (h_t(f') - z_t)^2``, means over batch and
    features, and batch and classes; f' [B, D_t] = the average over the cells of
    ReLU(BN(conv1x1(F_s))) for the student's deepest map, f_t the teacher's embedding,
    h_t its frozen classifier.

    The ReLU is left out where the teacher's embedding has negative values ('auto'). The
    teacher's embedding takes the place of its averaged map, which are the same in nets
    that average before the classifier, so the classifier reads what it was trained on
    in every other net too. Yang et al., "Knowledge Distillation via Softmax Regression
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

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Make the connector. Raises `RequestError` when the student gives no maps, or
        the teacher no embedding or classifier.
        """
        (ours, _), *_ = pair_stages("softmax_regression", student, teacher)
        _, theirs = require_embeddings("softmax_regression", student, teacher)
        if teacher.classifier is None:
            raise RequestError(
                "softmax_regression asks the teacher's classifier about the student's features, and"
                " none can be read. Choose another teacher, or another term: soft_target,"
                " feature_hint or embedding_mse."
            )
        relu = bool((theirs >= 0).all()) if self.activation == "auto" else self.activation == "relu"
        layers = [
            nn.Conv2d(ours.shape[1], theirs.shape[1], 1, bias=False),
            BatchNorm(theirs.shape[1]),
            *([nn.ReLU()] if relu else []),
        ]
        self.adapter = nn.Sequential(*layers).to(ours.device)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The sum of both; needs `build` first."""
        assert teacher.embedding is not None
        assert teacher.logits is not None
        assert teacher.classifier is not None
        connected = self.adapter(student.features[-1]).mean((2, 3))
        said = apply_classifier(teacher.classifier, connected)
        return F.mse_loss(connected, teacher.embedding) + self.regression * F.mse_loss(
            said, teacher.logits
        )
