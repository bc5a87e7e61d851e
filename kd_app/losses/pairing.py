"""Pair the outputs of two models for comparison, and match the sizes of maps."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kd_app.config import RequestError
from kd_app.models.outputs import Outputs

Map = Float[Tensor, "batch channels height width"]
Smaller = Float[Tensor, "batch channels smaller_height smaller_width"]


def pair_stages(term: str, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
    """Return pairs (student's map, teacher's map) from the deepest stage upward, as
    many as both models have.

    `term` is named in errors. Raises `RequestError` if one of the models provides no
    feature maps.
    """
    for name, outputs in (("student", student), ("teacher", teacher)):
        if not outputs.features:
            raise RequestError(
                f"{term} compares feature maps, but the {name} provides none. Expected a model"
                f" with maps or tokens per stage, as timm's models have. Choose another {name}, or"
                " another term: soft_target, decoupled and dist read only logits."
            )
    return list(zip(reversed(student.features), reversed(teacher.features), strict=False))


def pair_stage(term: str, student: Outputs, teacher: Outputs, stage: int) -> tuple[Tensor, Tensor]:
    """Return the maps of one stage, -1 is the deepest. If a model has fewer stages,
    return the shallowest common one. Raises the errors of `pair_stages`.
    """
    pairs = pair_stages(term, student, teacher)
    return pairs[min(-stage, len(pairs)) - 1]


def pair_spatial_stages(
    term: str, compares: str, student: Outputs, teacher: Outputs, stages: int
) -> list[tuple[Tensor, Tensor]]:
    """Return the `stages` deepest pairs of `pair_stages` that share more than one cell.

    Raises `RequestError` if there are none. `term` and `compares` (what the term
    compares) are named in the message.
    """
    pairs = [
        pair for pair in pair_stages(term, student, teacher) if compute_common_size(*pair) != (1, 1)
    ][:stages]
    if not pairs:
        ours, theirs = (
            [tuple(x.shape[-2:]) for x in outputs.features] for outputs in (student, teacher)
        )
        raise RequestError(
            f"{term} compares {compares}, but no stages of student and teacher share more than one"
            f" cell: the student's maps have {ours} cells, the teacher's {theirs}. Use larger"
            " images or models with a smaller stride, or another term: soft_target, decoupled or"
            " feature_hint."
        )
    return pairs


def compute_common_size(a: Tensor, b: Tensor) -> tuple[int, int]:
    """Return the smaller height and the smaller width of two maps."""
    return min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1])


def match_sizes(
    a: Float[Tensor, "batch ca ha wa"], b: Float[Tensor, "batch cb hb wb"]
) -> tuple[Tensor, Tensor]:
    """Return both maps at their common size: the larger is average-pooled (over whole
    or fractional cells), the smaller stays unchanged.
    """
    size = compute_common_size(a, b)
    return _average_cells(a, size), _average_cells(b, size)


def _average_cells(x: Map, size: tuple[int, int]) -> Smaller:
    return x if x.shape[-2:] == size else F.adaptive_avg_pool2d(x, size)


def require_embeddings(term: str, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Return both embeddings, [B, D_s] and [B, D_t].

    `term` is named in errors. Raises `RequestError` if one of the models provides no
    embedding.
    """
    for name, outputs in (("student", student), ("teacher", teacher)):
        if outputs.embedding is None:
            raise RequestError(
                f"{term} compares embeddings, but the {name} provides none. Expected a model with"
                " a classifier that reads one vector per image, as timm's models have. Choose"
                f" another {name}, or another term: soft_target, decoupled or feature_hint."
            )
    assert student.embedding is not None
    assert teacher.embedding is not None
    return student.embedding, teacher.embedding
