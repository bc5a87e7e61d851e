"""How much each of several teachers decides about the neighbors of all together."""

from kd_app.metrics.embedding_report import TEACHER, EmbeddingComparison
from kd_app.metrics.neighbors import compute_overlap, find_neighbors
from kd_app.models.embedding_ensemble import EmbeddingEnsemble, read_moments
from kd_app.models.spec import ModelSpec


def measure_members(teacher: ModelSpec, comparison: EmbeddingComparison) -> dict[str, float | None]:
    """By member, the mean share of the joint embedding's neighbors that the member's
    part of it has alone; empty for one teacher, and for members that are averaged.
    """
    if not isinstance(teacher, EmbeddingEnsemble) or teacher.combination != "concatenate":
        return {}
    assert teacher.moments is not None, "measure_moments comes first"
    model, joint = comparison.models[TEACHER], comparison.find_neighbors(TEACHER).rows
    overlaps: dict[str, float | None] = {}
    start = 0
    for name, moments in read_moments(teacher.moments, teacher.members).items():
        part = slice(start, start := start + len(moments.mean))
        queries, gallery = (each[:, part] for each in (model.queries, model.gallery))
        near = find_neighbors(queries, gallery, comparison.k, is_same=comparison.is_same).rows
        overlaps[name] = float(compute_overlap(near, joint).mean())
    return overlaps
