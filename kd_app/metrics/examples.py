"""Selection of the images that show best what a student kept of its teacher."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from kd_app.metrics.per_image import iterate_blocks
from kd_app.metrics.record import Predictions
from kd_app.metrics.scores import to_float32

Reason = Literal["negative_flip", "positive_flip", "most_different", "similar_pair", "typical"]
SHARES: Final[dict[Reason, float]] = {
    "negative_flip": 0.25,
    "positive_flip": 0.125,
    "most_different": 0.25,
    "similar_pair": 0.25,
    "typical": 0.125,
}
"""Share of the rows for each reason. A reason with too few images gets fewer rows; the
other reasons do not fill the gap.
"""

Rows = Int64[np.ndarray, " rows"]
_CLASSES = 5
_CHUNK = 2**19
_PER_DIRECTION = 2
"""Images from each of the two classes of a similar pair."""


@dataclass(frozen=True)
class ExampleRow:
    """One selected image.

    row: index of the image in the arrays · classes: up to 5 relevant class numbers: the
    label, for a similar pair the other class, the top classes of teacher and student,
    then the most likely other classes · divergence: ``KL(p_teacher || p_student)``,
    nats; None without a teacher.
    """

    row: int
    why: Reason
    classes: tuple[int, ...]
    divergence: float | None


@dataclass(frozen=True)
class _ImageResults:
    """Results of both models on each image.

    student, teacher: whether the model is right · confidence: the largest probability
    of the teacher, or of the student if there is no teacher.
    """

    records: Mapping[str, Predictions]
    target: Int64[np.ndarray, " images"]
    student: Bool[np.ndarray, " images"]
    teacher: Bool[np.ndarray, " images"]
    confidence: Float[np.ndarray, " images"]
    kl: Float[np.ndarray, " images"] | None


def choose_examples(
    records: Mapping[str, Predictions], *, pairs: Sequence[tuple[int, int]], count: int
) -> list[ExampleRow]:
    """Choose at most `count` images from the `records` of 'student' and 'teacher'.

    - negative_flip: teacher right, student wrong; positive_flip: the opposite. Both
      list the images on which the teacher is most confident.
    - most_different: the largest KL divergences.
    - similar_pair: for each of `pairs` (class numbers, most similar first), the images
      of one class to which the teacher gives the highest probability of the other.
    - typical: images that both models get right, with the median confidence of their
      class. Without a teacher only this list exists, based on the student.

    Each list is sorted, most informative image first. An image can be in several lists.
    The selection is deterministic.
    """
    results = _collect_results(records)
    room = {why: int(share * count) for why, share in SHARES.items()}
    chosen: dict[Reason, Iterable[int]] = {"typical": _select_typical(results, room["typical"])}
    if results.kl is not None:
        order = np.argsort(-results.confidence, kind="stable")
        negative, positive = results.teacher & ~results.student, results.student & ~results.teacher
        chosen = {
            "negative_flip": order[negative[order]][: room["negative_flip"]],
            "positive_flip": order[positive[order]][: room["positive_flip"]],
            "most_different": np.argsort(-results.kl, kind="stable")[: room["most_different"]],
            **chosen,
        }
    examples = [
        _build_example(int(row), why, (), results) for why, rows in chosen.items() for row in rows
    ]
    if results.kl is not None:
        similar = itertools.islice(_select_similar(records["teacher"], pairs), room["similar_pair"])
        examples += [
            _build_example(row, "similar_pair", (other,), results) for row, other in similar
        ]
    return examples


def _collect_results(records: Mapping[str, Predictions]) -> _ImageResults:
    student = records["student"]
    judge = records.get("teacher", student)
    kl = _compute_divergences(student, judge) if "teacher" in records else None
    confidence = judge.scores.confidence
    return _ImageResults(records, student.target, student.hits, judge.hits, confidence, kl)


def _compute_divergences(
    student: Predictions, teacher: Predictions
) -> Float[np.ndarray, " images"]:
    """``KL(p_teacher || p_student)`` of each image, nats."""
    rows = max(1, _CHUNK // student.num_classes)
    parts = []
    for block in iterate_blocks(student.logits, teacher.logits):
        chunks = (to_float32(each).split(rows) for each in block)
        for student_logits, teacher_logits in zip(*chunks, strict=True):
            log_s, log_t = student_logits.log_softmax(dim=1), teacher_logits.log_softmax(dim=1)
            parts.append(torch.linalg.vecdot(log_t.exp(), log_t - log_s).clamp(min=0))
    return torch.cat(parts).numpy()


def _select_typical(results: _ImageResults, count: int) -> list[int]:
    """One image of each class; of `count` evenly spread classes if there are more."""
    right = np.flatnonzero(results.student & results.teacher)
    classes = np.unique(results.target[right])
    if len(classes) > count:
        classes = classes[np.linspace(0, len(classes) - 1, count).round().astype(np.int64)]
    return [
        _select_median(right[results.target[right] == each], results.confidence) for each in classes
    ]


def _select_median(rows: Rows, confidence: Float[np.ndarray, " images"]) -> int:
    return int(rows[np.argsort(confidence[rows], kind="stable")[len(rows) // 2]])


def _select_similar(
    teacher: Predictions, pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Row of each image, and the other class of its pair."""
    for pair in pairs:
        for label, other in (pair, pair[::-1]):
            rows = np.flatnonzero(teacher.target == label)
            probability = _compute_probabilities(teacher.logits[rows])[:, other]
            order = np.argsort(-probability, kind="stable")
            yield from ((int(row), other) for row in rows[order[:_PER_DIRECTION]])


def _build_example(
    row: int, why: Reason, extra_classes: tuple[int, ...], results: _ImageResults
) -> ExampleRow:
    probabilities = [
        _compute_probabilities(results.records[name].logits[row])
        for name in ("teacher", "student")
        if name in results.records
    ]
    likely = np.argsort(-np.max(probabilities, axis=0), kind="stable")[:_CLASSES].tolist()
    top = [int(each.argmax()) for each in probabilities]
    classes = dict.fromkeys([int(results.target[row]), *extra_classes, *top, *likely])
    divergence = None if results.kl is None else float(results.kl[row])
    return ExampleRow(row, why, tuple(classes)[:_CLASSES], divergence)


def _compute_probabilities(
    logits: Float[np.ndarray, "... classes"],
) -> Float[np.ndarray, "... classes"]:
    return torch.from_numpy(np.array(logits, dtype=np.float64)).softmax(dim=-1).numpy()
