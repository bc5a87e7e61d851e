"""Checks of a teacher whose embedding a student learns, and of the images that judge
it.
"""

from collections.abc import Iterator
from typing import Final

from kd_app.checks.context import CheckContext
from kd_app.checks.finding import Finding, refuse, warn
from kd_app.metrics.embedding_report import COLLAPSED_RANK
from kd_app.metrics.embedding_shape import compute_effective_rank

_FEW_QUERIES: Final = 200
"""Held-out images below which an interval of the overlap is wider than the differences
between methods.
"""
_LOW_RANK: Final = 8.0


def check_teacher_embedding(context: CheckContext) -> Iterator[Finding]:
    """Find a teacher that gives all images nearly the same embedding."""
    if context.teacher is None:
        return
    embeddings = context.predictions.logits
    rank, name = compute_effective_rank(embeddings), context.teacher.spec.name
    measured = (
        f"the effective rank of its embedding is {rank:.1f} on {len(embeddings):,} images, of at"
        f" most {min(embeddings.shape)}"
    )
    if rank < COLLAPSED_RANK:
        yield refuse(
            "collapsed-teacher",
            f"The teacher {name} gives all images nearly the same embedding: {measured}. Expected:"
            " weights that tell these images apart. Check the weights, their normalization and"
            " teacher.image_size, or choose another teacher.",
        )
    elif rank < _LOW_RANK:
        yield warn(
            "flat-teacher",
            f"The teacher {name} hardly tells the images apart: {measured}. Its neighbors teach"
            " little. Larger images (teacher.image_size) or another teacher may help.",
        )


def check_num_queries(context: CheckContext) -> Iterator[Finding]:
    """Find a test set that is too small to judge by."""
    queries = context.workspace.data.sizes["test"]
    if queries < _FEW_QUERIES:
        yield warn(
            "few-queries",
            f"{queries:,} test images are few to judge an embedding by: intervals will be wide."
            f" Add images, or raise data.split.test; {_FEW_QUERIES} or more are better.",
        )
