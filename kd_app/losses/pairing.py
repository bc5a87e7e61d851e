"""Which feature maps of two models are compared, and at which size."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kd_app.config import RequestError
from kd_app.models.outputs import Outputs

Map = Float[Tensor, "batch channels height width"]
Smaller = Float[Tensor, "batch channels smaller_height smaller_width"]


def pair_stages(term: str, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
    """(student's map, teacher's map) from the deepest stage upward, as many as both
    models have.

    Raises `RequestError`, in the name of `term`, when one of the models gives no
    feature maps.
    """
    for name, outputs in (("student", student), ("teacher", teacher)):
        if not outputs.features:
            raise RequestError(
                f"{term} compares feature maps, and the {name} gives none that can be read."
                " Expected: a model whose stages give maps or tokens, as timm's do. Choose another"
                f" {name}, or another term: soft_target, decoupled and dist need only the logits."
            )
    return list(zip(reversed(student.features), reversed(teacher.features), strict=False))


def pair_stage(term: str, student: Outputs, teacher: Outputs, stage: int) -> tuple[Tensor, Tensor]:
    """The maps of one stage, -1 the deepest; the shallowest there is where `stage` lies
    further up. Errors as `pair_stages`.
    """
    pairs = pair_stages(term, student, teacher)
    return pairs[min(-stage, len(pairs)) - 1]


def pair_spatial_stages(
    term: str, compares: str, student: Outputs, teacher: Outputs, stages: int
) -> list[tuple[Tensor, Tensor]]:
    """As `pair_stages`, the `stages` deepest of those that share more than one cell.

    Raises `RequestError`, in the name of `term` which `compares` something, when there
    are none.
    """
    pairs = [
        pair for pair in pair_stages(term, student, teacher) if compute_common_size(*pair) != (1, 1)
    ][:stages]
    if not pairs:
        ours, theirs = (
            [tuple(x.shape[-2:]) for x in outputs.features] for outputs in (student, teacher)
        )
        raise RequestError(
            f"{term} compares {compares}, and no stages of student and teacher share more than one"
            f" cell: the student's maps have {ours} cells, the teacher's {theirs}. Use larger"
            " images or models with a smaller stride, or another term: soft_target, decoupled or"
            " feature_hint."
        )
    return pairs


def compute_common_size(a: Tensor, b: Tensor) -> tuple[int, int]:
    """The smaller height and the smaller width of two maps."""
    return min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1])


def match_sizes(
    a: Float[Tensor, "batch ca ha wa"], b: Float[Tensor, "batch cb hb wb"]
) -> tuple[Tensor, Tensor]:
    """Both maps at their common size: the larger is averaged over cells (whole or
    fractional numbers of them), the smaller stays as it is.
    """
    size = compute_common_size(a, b)
    return _average_cells(a, size), _average_cells(b, size)


def _average_cells(x: Map, size: tuple[int, int]) -> Smaller:
    return x if x.shape[-2:] == size else F.adaptive_avg_pool2d(x, size)


def require_embeddings(term: str, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Both embeddings, [B, D_s] and [B, D_t].

    Raises `RequestError`, in the name of `term`, when one of the models gives none.
    """
    for name, outputs in (("student", student), ("teacher", teacher)):
        if outputs.embedding is None:
            raise RequestError(
                f"{term} compares embeddings, and the {name} gives none that can be read. Expected:"
                " a model with a classifier that reads one vector an image, as timm's have. Choose"
                f" another {name}, or another term: soft_target, decoupled or feature_hint."
            )
    assert student.embedding is not None
    assert teacher.embedding is not None
    return student.embedding, teacher.embedding
