"""Which feature maps of two models are compared, and at which size."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kd_app.config import RequestError
from kd_app.models.outputs import Outputs

Map = Float[Tensor, "batch channels height width"]
Smaller = Float[Tensor, "batch channels smaller_height smaller_width"]


def stage_pairs(term: str, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
    """(student's map, teacher's map) from the deepest stage upward, as many as both models have.

    Raises `RequestError`, in the name of `term`, when one of the models gives no feature maps.
    """
    for name, outputs in (("student", student), ("teacher", teacher)):
        if not outputs.features:
            raise RequestError(
                f"{term} compares feature maps, and the {name} gives none that can be read. Expected: a model whose stages give maps or tokens, as "
                f"timm's do. Choose another {name}, or leave {term} out: soft_target and decoupled need only the logits."
            )
    return list(zip(reversed(student.features), reversed(teacher.features), strict=False))


def embedding_pair(term: str, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """The pooled features [B, D] of student and teacher.

    Raises `RequestError`, in the name of `term`, when one of the models gives none.
    """
    for name, outputs in (("student", student), ("teacher", teacher)):
        if outputs.embedding is None:
            raise RequestError(
                f"{term} compares the features before the classifier, and the {name} gives none that can be read. Choose another {name}, as timm's "
                f"models are, or leave {term} out: soft_target, decoupled and dist need only the logits."
            )
    assert student.embedding is not None
    assert teacher.embedding is not None
    return student.embedding, teacher.embedding


def common_size(a: Tensor, b: Tensor) -> tuple[int, int]:
    """The smaller height and the smaller width of two maps."""
    return min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1])


def same_size(a: Float[Tensor, "batch ca ha wa"], b: Float[Tensor, "batch cb hb wb"]) -> tuple[Tensor, Tensor]:
    """Both maps at their common size: the larger is averaged over cells (whole or fractional numbers of them), the smaller stays as it is."""
    size = common_size(a, b)
    return _averaged(a, size), _averaged(b, size)


def _averaged(x: Map, size: tuple[int, int]) -> Smaller:
    return x if x.shape[-2:] == size else F.adaptive_avg_pool2d(x, size)


def embeddings(term: str, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Both embeddings, [B, D_s] and [B, D_t].

    Raises `RequestError`, in the name of `term`, when one of the models gives none.
    """
    for name, outputs in (("student", student), ("teacher", teacher)):
        if outputs.embedding is None:
            raise RequestError(
                f"{term} compares embeddings, and the {name} gives none that can be read. Expected: a model with a classifier that reads one vector "
                f"an image, as timm's have. Choose another {name}, or another term: soft_target, decoupled or feature_hint."
            )
    assert student.embedding is not None
    assert teacher.embedding is not None
    return student.embedding, teacher.embedding
