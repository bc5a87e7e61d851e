"""The metric by which the trials of a sweep are ranked, and methods are compared: that
of the best epoch.
"""

from typing import Any, Final, NamedTuple

from kd_app.reporting.embedding_results import EmbeddingSplit, EmbeddingVerdict
from kd_app.reporting.metrics import Split, Verdict
from kd_app.reporting.results import Results

SELECTION: Final = "selection"
"""Name of that metric among the objectives of a search."""
_STUDENT: Final = "student"


class SelectionMetric(NamedTuple):
    """The metric of a task, in 0..1, and what a student is compared with.

    title: the name in tables · short, phrase: its names in sentences · control: the
    role that was trained without the teacher, and its title · has_teacher: whether the
    teacher has a value of its own.
    """

    title: str
    short: str
    phrase: str
    control: str
    control_title: str
    has_teacher: bool


TOP1: Final = SelectionMetric(
    "top-1", "top-1", "top-1 accuracy", "labels_only", "labels-only", True
)
NEIGHBORS: Final = SelectionMetric(
    "teacher's neighbors",
    "share of the teacher's neighbors",
    "the share of the teacher's neighbors",
    "self_supervised",
    "self-supervised",
    False,
)


def select_metric(results: Results) -> SelectionMetric:
    """The metric that a run is ranked by."""
    return TOP1 if results.embedding is None else NEIGHBORS


def find_verdict(results: Results) -> Verdict | EmbeddingVerdict | None:
    """The verdict of a run."""
    return results.verdict if results.embedding is None else results.embedding.verdict


class Score(NamedTuple):
    """A model's metric on one split, with the ends of its interval.

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


def find_measured(results: Results, split: str) -> Split | EmbeddingSplit | None:
    """The metrics of a run on a split; None if it was not measured."""
    part: Any = results if results.embedding is None else results.embedding
    measured: Split | EmbeddingSplit | None = getattr(part, split)
    return measured


def read_selection(
    results: Results | None, split: str = "validation", role: str = _STUDENT
) -> Score | None:
    """Return the top-1 accuracy of the student (or of `role`) on validation (or
    `split`), or, of an embedding, the share of the teacher's neighbors; None if it is
    not measured.
    """
    measured = None if results is None else find_measured(results, split)
    if measured is None:
        return None
    if isinstance(measured, EmbeddingSplit):
        return _read_overlap(measured, role)
    return _read_top1(measured, role)


def _read_top1(split: Split, role: str) -> Score | None:
    model = getattr(split, role)
    if model is None or model.top1 is None:
        return None
    return Score(
        TOP1.title,
        "test top-1",
        model.top1,
        model.top1_low,
        model.top1_high,
        split.confidence,
        split.num_images,
    )


def _read_overlap(split: EmbeddingSplit, role: str) -> Score | None:
    model = split.models.get(role)
    if model is None or model.overlap.value is None:
        return None
    return Score(
        NEIGHBORS.title,
        "share of the teacher's neighbors on test",
        model.overlap.value,
        model.overlap.low,
        model.overlap.high,
        split.confidence,
        split.num_queries,
    )
