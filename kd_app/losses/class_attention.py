"""CAT-KD: compare where in the image each class is detected."""

from collections.abc import Callable
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.losses.adapters import apply_classifier
from kd_app.losses.base import Level, LossTerm
from kd_app.models.outputs import Outputs


class ClassAttention(LossTerm):
    """``mean (C_s - C_t)^2`` over batch, classes and cells, for the class activation
    maps C [B, K, r, r]: the classifier's weights applied to every cell of the deepest
    map, average-pooled to at most `resolution` cells per side, and with `normalize`
    scaled to L2 norm 1 over the cells of each class.

    The map is exact for models with only an average pool between last map and
    classifier (ResNet and similar); a norm in between is left out. Guo et al., "Class
    Attention Transfer Based Knowledge Distillation", CVPR 2023, arXiv 2304.12777.
    """

    level: ClassVar[Level] = "attention"
    reads: frozenset[str] = frozenset({"features", "embedding", "classifier"})

    def __init__(self, *, resolution: PositiveInt, normalize: bool) -> None:
        super().__init__()
        self.resolution = resolution
        self.normalize = normalize

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` if a model's classifier can't be applied to the cells
        of its map, or if the numbers of classes differ.
        """
        for name, outputs in (("student", student), ("teacher", teacher)):
            map_width = outputs.features[-1].shape[1] if outputs.features else 0
            head_width = (
                outputs.embedding.shape[1]
                if outputs.embedding is not None and outputs.classifier is not None
                else 0
            )
            if not map_width or map_width != head_width:
                raise RequestError(
                    "class_attention applies the classifier to every cell of the deepest map, but"
                    f" the {name}'s map has {map_width} channels, and the classifier reads"
                    f" {head_width}. Choose a {name} that classifies its average-pooled map, or"
                    " another term: attention_transfer, soft_target or feature_hint."
                )
        ours, theirs = (_compute_activation(outputs).shape[1] for outputs in (student, teacher))
        if ours != theirs:
            raise RequestError(
                f"class_attention compares class by class, but the student has {ours} classes, and"
                f" the teacher {theirs}. Expected the same classes. Terms that read no classes:"
                " attention_transfer, feature_hint, embedding_mse."
            )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean squared difference; 0 for equal class activation maps."""
        ours, theirs = _compute_activation(student), _compute_activation(teacher)
        height, width = (
            min(self.resolution, a, b)
            for a, b in zip(ours.shape[2:], theirs.shape[2:], strict=True)
        )
        pooled = (F.adaptive_avg_pool2d(x, (height, width)).flatten(2) for x in (ours, theirs))
        ours, theirs = (F.normalize(x, dim=2) if self.normalize else x for x in pooled)
        return F.mse_loss(ours, theirs)


def _compute_activation(outputs: Outputs) -> Float[Tensor, "batch classes height width"]:
    """Return the contribution of each cell to the logits, without the bias."""
    classifier: Callable[[Tensor], Tensor] | None = outputs.classifier
    assert classifier is not None
    feature = outputs.features[-1]
    cells = feature.movedim(1, -1)
    logits = apply_classifier(classifier, cells.flatten(0, 2))
    bias = apply_classifier(classifier, cells.new_zeros(1, cells.shape[-1]))
    activation: Tensor = (logits - bias).unflatten(0, cells.shape[:-1])
    return activation.movedim(-1, 1)
