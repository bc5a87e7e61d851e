"""Which images to look at: those that say most about what a student kept of its
teacher.
"""

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

Why = Literal["negative_flip", "positive_flip", "most_different", "similar_pair", "typical"]
SHARES: Final[dict[Why, float]] = {
    "negative_flip": 0.25,
    "positive_flip": 0.125,
    "most_different": 0.25,
    "similar_pair": 0.25,
    "typical": 0.125,
}
"""Of the rows that are asked for; what a run has too few of is not made up for by
others.
"""

Rows = Int64[np.ndarray, " rows"]
_CLASSES = 5
_NEAR = 2**19
_EACH_WAY = 2
"""Images of a pair of similar classes, from either class."""


@dataclass(frozen=True)
class Example:
    """row: place of the image in the arrays · classes: up to 5 class numbers that
    matter: its label, of a similar pair the other class, the top class of teacher and
    student, then those that either finds likely · divergence: ``KL(p_teacher ||
    p_student)``, nats; None without teacher.
    """

    row: int
    why: Why
    classes: tuple[int, ...]
    divergence: float | None


@dataclass(frozen=True)
class _Answers:
    """Of each image: is it right, and how sure (the largest probability) is whoever is
    judged by that: the teacher, else the student.
    """

    records: Mapping[str, Predictions]
    target: Int64[np.ndarray, " images"]
    student: Bool[np.ndarray, " images"]
    teacher: Bool[np.ndarray, " images"]
    confidence: Float[np.ndarray, " images"]
    kl: Float[np.ndarray, " images"] | None


def choose_examples(
    records: Mapping[str, Predictions], *, pairs: Sequence[tuple[int, int]], count: int
) -> list[Example]:
    """At most `count` images of the `records` ('student', and 'teacher'), each list complete in itself (an image may be in
    several), most telling first.

    negative_flip: teacher right, student wrong; positive_flip: the other way round;
    both where the teacher was surest. most_different: the largest KL divergence.
    similar_pair: for each of `pairs` (class numbers, strongest first) the images of one
    class to which the teacher gives most of the other. typical: right by both, of the
    middle confidence of their class. Without a teacher only the last can be had, of the
    student alone. Computed in blocks; nothing is drawn at random.
    """
    found = _collect_answers(records)
    room = {why: int(share * count) for why, share in SHARES.items()}
    chosen: dict[Why, Iterable[int]] = {"typical": _select_typical(found, room["typical"])}
    if found.kl is not None:
        sure = np.argsort(-found.confidence, kind="stable")
        chosen = {
            "negative_flip": sure[(found.teacher & ~found.student)[sure]][: room["negative_flip"]],
            "positive_flip": sure[(found.student & ~found.teacher)[sure]][: room["positive_flip"]],
            "most_different": np.argsort(-found.kl, kind="stable")[: room["most_different"]],
            **chosen,
        }
    made = [
        _build_example(int(row), why, (), found) for why, rows in chosen.items() for row in rows
    ]
    if found.kl is not None:
        alike = itertools.islice(_select_similar(records["teacher"], pairs), room["similar_pair"])
        made += [_build_example(row, "similar_pair", (other,), found) for row, other in alike]
    return made


def _collect_answers(records: Mapping[str, Predictions]) -> _Answers:
    student = records["student"]
    judge = records.get("teacher", student)
    kl = _compute_divergences(student, judge) if "teacher" in records else None
    return _Answers(records, student.target, student.hits, judge.hits, judge.scores.confidence, kl)


def _compute_divergences(
    student: Predictions, teacher: Predictions
) -> Float[np.ndarray, " images"]:
    """``KL(p_teacher || p_student)`` of each image, nats."""
    rows = max(1, _NEAR // student.num_classes)
    parts = []
    for block in iterate_blocks(student.logits, teacher.logits):
        for ours, theirs in zip(*(to_float32(each).split(rows) for each in block), strict=True):
            log_s, log_t = ours.log_softmax(dim=1), theirs.log_softmax(dim=1)
            parts.append(torch.linalg.vecdot(log_t.exp(), log_t - log_s).clamp(min=0))
    return torch.cat(parts).numpy()


def _select_typical(found: _Answers, count: int) -> list[int]:
    """One image of each class, or of `count` classes evenly spread where there are
    more.
    """
    right = np.flatnonzero(found.student & found.teacher)
    classes = np.unique(found.target[right])
    some = (
        classes
        if len(classes) <= count
        else classes[np.linspace(0, len(classes) - 1, count).round().astype(np.int64)]
    )
    return [_select_middle(right[found.target[right] == each], found.confidence) for each in some]


def _select_middle(rows: Rows, confidence: Float[np.ndarray, " images"]) -> int:
    return int(rows[np.argsort(confidence[rows], kind="stable")[len(rows) // 2]])


def _select_similar(
    teacher: Predictions, pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Image and the other class of its pair."""
    for pair in pairs:
        for label, other in (pair, pair[::-1]):
            rows = np.flatnonzero(teacher.target == label)
            likely = np.argsort(
                -_compute_probabilities(teacher.logits[rows])[:, other], kind="stable"
            )
            yield from ((int(row), other) for row in rows[likely[:_EACH_WAY]])


def _build_example(row: int, why: Why, also: tuple[int, ...], found: _Answers) -> Example:
    heard = [
        _compute_probabilities(found.records[name].logits[row])
        for name in ("teacher", "student")
        if name in found.records
    ]
    likely = np.argsort(-np.max(heard, axis=0), kind="stable")[:_CLASSES].tolist()
    classes = dict.fromkeys(
        [int(found.target[row]), *also, *(int(each.argmax()) for each in heard), *likely]
    )
    return Example(
        row, why, tuple(classes)[:_CLASSES], None if found.kl is None else float(found.kl[row])
    )


def _compute_probabilities(
    logits: Float[np.ndarray, "... classes"],
) -> Float[np.ndarray, "... classes"]:
    return torch.from_numpy(np.array(logits, dtype=np.float64)).softmax(dim=-1).numpy()
