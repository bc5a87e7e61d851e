"""Cross-entropy with the labels."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.models.outputs import Outputs

BALANCED, AUTO = "balanced", "auto"


class CrossEntropy(LossTerm):
    """``-sum_c y_c log softmax(z)_c``, averaged over the labeled images, as in
    `torch.nn.functional.cross_entropy`.

    Labels are class numbers [B] or class probabilities [B, K]. With class weights w and
    class numbers the mean is weighted (divided by the sum of ``w[y_b]``); with class
    probabilities each class's part is weighted, and the sum is divided by B. A run
    replaces the weights 'balanced' by ``N / (K n_c)``, with n_c of the N training
    images in class c. `smoothing` distributes this share of every label evenly over all
    K classes (Szegedy et al., CVPR 2016, arXiv 1512.00567). Rows that ``batch.labeled``
    marks as unlabeled do not count; without a labeled row the value is 0, still part of
    the graph.
    """

    level: ClassVar[Level] = "label"
    needs_teacher: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = True

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        smoothing: Annotated[float, Field(ge=0, lt=1)],
        class_weights: list[PositiveFloat] | Literal["auto", "balanced"] | None,
    ) -> None:
        super().__init__()
        self.smoothing = smoothing
        is_list = isinstance(class_weights, list)
        weights = torch.tensor(class_weights) if is_list else None
        # auto is equal weights where no run resolves it
        self._is_unresolved = class_weights == BALANCED
        self.register_buffer("class_weights", weights, persistent=False)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` if there is not one class weight per class."""
        assert student.logits is not None
        classes = student.logits.shape[1]
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise RequestError(
                f"cross_entropy: class_weights has {len(self.class_weights)} entries for"
                f" {classes} classes. Expected one positive number per class, in the order of the"
                " classes, 'auto', 'balanced', or null for equal weights."
            )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        assert student.logits is not None
        assert not self._is_unresolved, "class_weights=balanced is resolved by the run"
        logits, target = student.logits, batch.target
        if batch.labeled is not None:
            logits, target = logits[batch.labeled], target[batch.labeled]
        if len(logits) == 0:
            return logits.sum()
        target = target.to(logits.dtype) if target.is_floating_point() else target
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        return F.cross_entropy(logits, target, weights, label_smoothing=self.smoothing)
