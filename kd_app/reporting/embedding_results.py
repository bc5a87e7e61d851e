"""The part of ``results.json`` about embeddings."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from kd_app.reporting.constraints import Count, Finite, Number, Part, Probability
from kd_app.reporting.metrics import Estimate

Outcome = Literal["kept", "lost", "not shown"]


class EmbeddingMetrics(Part):
    """Metrics of one model's embedding.

    overlap: mean share of a query's nearest gallery images that are also nearest for
    the teacher · knn_top1: accuracy of the most frequent label of the nearest images ·
    purity: mean share of the nearest images with the query's label · probe_top1:
    accuracy of a linear classifier on the embeddings of the gallery; these three are
    null without labels · cka: debiased linear CKA with the teacher · uniformity: lower
    is more even · effective_rank: between 1 and the width · width: of the embedding.
    """

    width: Count
    overlap: Estimate
    knn_top1: Estimate | None = None
    purity: Estimate | None = None
    probe_top1: Estimate | None = None
    cka: Number = None
    uniformity: Number = None
    effective_rank: Number = None


def _require_models(models: dict[str, EmbeddingMetrics]) -> dict[str, EmbeddingMetrics]:
    needed = {"teacher", "student", *(("untouched",) if "random" in models else ())}
    if missing := sorted(needed - models.keys()):
        raise ValueError(f"lacks {' and '.join(missing)}")
    return models


class EmbeddingSplit(Part):
    """Metrics of all models on the queries of one split.

    models: in the order of the table · gallery: the images among which neighbors are
    searched: train, or others (the other images of the split) · num_labeled: queries
    with a label · k: nearest images of a query · gap_closed: by metric, (student -
    untouched) / (teacher - untouched); null if the interval of the denominator holds 0
    · gains: by model and metric, student - model, on the same queries.
    """

    num_queries: Count
    num_gallery: Count
    gallery: Literal["train", "others"] = "train"
    num_labeled: Count
    k: Annotated[int, Field(ge=1)]
    confidence: Probability
    models: Annotated[dict[str, EmbeddingMetrics], AfterValidator(_require_models)]
    gap_closed: dict[str, Estimate] = {}
    gains: dict[str, dict[str, Estimate]] = {}


class EmbeddingVerdict(Part):
    """Whether the student has the teacher's neighbors.

    outcome: kept, if the interval of the student's overlap lies at ``1 - margin`` or
    above; lost, if it lies below; else not shown.
    """

    outcome: Outcome
    metric: Literal["overlap"] = "overlap"
    margin: Probability
    confidence: Probability
    overlap: Finite
    low: Finite
    high: Finite
    num_images: Count
    split: str


class EmbeddingRecord(Part):
    """The evaluation of an embedding.

    teacher_embedding: which output of the teacher · ships: what the student outputs:
    the projector's output, or the backbone's · candidates: overlap of both on
    validation, by name · controls: the better output of each control on validation ·
    members: of several teachers, the share of the neighbors of all together that one
    has alone · untouched: how the untouched student started.
    """

    teacher_embedding: str
    ships: Literal["projector", "backbone"]
    candidates: dict[str, Number] = {}
    members: dict[str, Number] = {}
    controls: dict[str, Literal["projector", "backbone"]] = {}
    untouched: str
    validation: EmbeddingSplit | None = None
    test: EmbeddingSplit | None = None
    verdict: EmbeddingVerdict | None = None

    @property
    def last(self) -> tuple[str, EmbeddingSplit] | None:
        """Name and metrics of the split that is reported: test, if it was measured."""
        for name in ("test", "validation"):
            split: Any = getattr(self, name)
            if split is not None:
                return name, split
        return None
