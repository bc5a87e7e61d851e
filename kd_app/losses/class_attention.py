"""CAT-KD: where in the image each class is seen."""

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
    map, averaged down to at most `resolution` cells a side, and, if asked for, with L2
    norm 1 over the cells of each class.

    It is exact where nothing but an average lies between map and classifier (ResNet and
    its kin); where a norm lies there as well, it is left out. Guo et al., "Class
    Attention Transfer Based Knowledge Distillation", CVPR 2023, arXiv 2304.12777.
    """

    level: ClassVar[Level] = "attention"
    reads: frozenset[str] = frozenset({"features", "embedding", "classifier"})

    def __init__(self, *, resolution: PositiveInt, normalize: bool) -> None:
        super().__init__()
        self.resolution = resolution
        self.normalize = normalize

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` when a model's classifier can't be applied to the cells
        of its map, or when the classes differ in number.
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
                    "class_attention applies the classifier to every cell of the deepest map, and"
                    f" the {name}'s map has {map_width} channels, where it reads {head_width}."
                    f" Choose another {name}, one that classifies its averaged map, or another"
                    " term: attention_transfer, soft_target or feature_hint."
                )
        ours, theirs = (_compute_activation(outputs).shape[1] for outputs in (student, teacher))
        if ours != theirs:
            raise RequestError(
                f"class_attention compares class by class, and the student has {ours} classes, the"
                f" teacher {theirs}. Expected the same classes. Terms that read no classes:"
                " attention_transfer, feature_hint, embedding_mse."
            )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The mean squared difference; 0 when both see every class at the same places."""
        ours, theirs = _compute_activation(student), _compute_activation(teacher)
        height, width = (
            min(self.resolution, a, b)
            for a, b in zip(ours.shape[2:], theirs.shape[2:], strict=True)
        )
        pooled = (F.adaptive_avg_pool2d(x, (height, width)).flatten(2) for x in (ours, theirs))
        ours, theirs = (F.normalize(x, dim=2) if self.normalize else x for x in pooled)
        return F.mse_loss(ours, theirs)


def _compute_activation(outputs: Outputs) -> Float[Tensor, "batch classes height width"]:
    """What each cell would add to the logits, without the bias."""
    classifier: Callable[[Tensor], Tensor] | None = outputs.classifier
    assert classifier is not None
    feature = outputs.features[-1]
    cells = feature.movedim(1, -1)
    said = apply_classifier(classifier, cells.flatten(0, 2))
    bias = apply_classifier(classifier, cells.new_zeros(1, cells.shape[-1]))
    activation: Tensor = (said - bias).unflatten(0, cells.shape[:-1])
    return activation.movedim(-1, 1)
