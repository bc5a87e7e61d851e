"""The metric by which the trials of a sweep are ranked: that of the best epoch."""

from typing import Final, NamedTuple

from kd_app.reporting.embedding_results import EmbeddingSplit
from kd_app.reporting.measurement_results import Split
from kd_app.reporting.results import Results

SELECTION: Final = "selection"
"""Name of that metric among the objectives of a search."""
_STUDENT: Final = "student"


class Score(NamedTuple):
    """A student's metric on one split, in 0..1, with the ends of its interval.

    title: the name in tables · phrase: the name of the metric on test in a sentence ·
    confidence, num_images: of the split.
    """

    title: str
    phrase: str
    value: float
    low: float | None
    high: float | None
    confidence: float
    num_images: int


def read_selection(results: Results | None, split: str = "validation") -> Score | None:
    """Return the student's top-1 accuracy on validation (or `split`), or, of an
    embedding, the share of the teacher's neighbors; None if it is not measured.
    """
    if results is None:
        return None
    if results.embedding is not None:
        return _read_overlap(getattr(results.embedding, split))
    return _read_top1(getattr(results, split))


def _read_top1(split: Split | None) -> Score | None:
    if split is None or split.student.top1 is None:
        return None
    student = split.student
    assert student.top1 is not None
    return Score(
        "top-1",
        "test top-1",
        student.top1,
        student.top1_low,
        student.top1_high,
        split.confidence,
        split.num_images,
    )


def _read_overlap(split: EmbeddingSplit | None) -> Score | None:
    if split is None or split.models[_STUDENT].overlap.value is None:
        return None
    overlap = split.models[_STUDENT].overlap
    assert overlap.value is not None
    return Score(
        "teacher's neighbors",
        "share of the teacher's neighbors on test",
        overlap.value,
        overlap.low,
        overlap.high,
        split.confidence,
        split.num_queries,
    )
