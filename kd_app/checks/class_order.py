"""The order in which a teacher that names no classes has those of the data."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from kd_app.checks.alternative import InputAlternative
from kd_app.checks.context import CheckContext
from kd_app.metrics.record import Predictions
from kd_app.models.class_names import list_candidate_orders
from kd_app.models.spec import CompositeTeacher
from kd_app.stages import write_atomically

FEWEST_IMAGES = 3
"""Images per class below which no permutation of the classes is fitted."""
_FOLDS = 2
_MAP = "teacher_classes.csv"


def write_class_map(context: CheckContext, outputs: Sequence[int]) -> Path | None:
    """Write a file for ``teacher.classes=`` into the folder of the stages; None for a
    teacher whose classes can't be mapped.

    outputs: for each class of the data the number of the teacher's output.
    """
    workspace, teacher = context.workspace, context.teacher
    spec = workspace.spec.teacher
    if teacher is None or spec is None or isinstance(spec, CompositeTeacher) or spec.factory:
        return None
    if spec.record.classes.count is None:
        return None
    rows, names = spec.match.rows if spec.match else None, spec.record.classes.names
    numbers = [rows[output] if rows else output for output in outputs]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("teacher", "class"))
    for number, name in zip(numbers, workspace.classes, strict=True):
        writer.writerow((names[number] if names else number, name))
    stage = workspace.find_or_build(
        "class-order",
        {"map": text.getvalue()},
        {"teacher": teacher.loaded.weights.sha256},
        lambda folder: write_atomically(folder / _MAP, text.getvalue()),
    )
    return stage.path / _MAP


def _invert(
    meaning: Mapping[int, int], predicted: np.ndarray, target: np.ndarray, num_classes: int
) -> tuple[int, ...] | None:
    """Return for each class the number of the output that means it; None unless most
    images of each class, and most with each output, say so.
    """
    outputs = {label: output for output, label in meaning.items()}
    for label in range(num_classes):
        is_label = target == label
        is_output = predicted == outputs.get(label, -1)
        if 2 * (is_label & is_output).sum() <= max(is_label.sum(), is_output.sum()):
            return None
    return tuple(outputs[label] for label in range(num_classes))


def is_order_testable(predictions: Predictions, names: Sequence[str]) -> bool:
    """Whether there are enough images to fit a permutation of the classes."""
    return len(predictions.target) >= FEWEST_IMAGES * len(names)


def fit_class_order(predictions: Predictions, names: tuple[str, ...]) -> Iterator[InputAlternative]:
    """The order of the classes that fits the predictions best, with enough images."""
    target, before = predictions.target, predictions.hits
    predicted = predictions.logits.argmax(axis=1)
    if is_order_testable(predictions, names):
        hits = _fit_permutation(predicted, target)
        meaning = find_permutation(predicted, target)
        moved = [f"its {names[a]!r} is {names[b]!r}" for a, b in meaning.items() if a != b][:3]
        yield InputAlternative(
            "teacher-class-order",
            "its classes in another order",
            "Correct its label_names, or sort its classifier's rows by the data's classes:"
            f" {', '.join(moved)} ...",
            before,
            hits,
            _compute_chance(target),
            _invert(meaning, predicted, target, len(names)),
        )


def try_known_orders(
    predictions: Predictions, names: tuple[str, ...]
) -> Iterator[InputAlternative]:
    """The orders in which other tools list these class names, with any number of
    images.
    """
    target, before = predictions.target, predictions.hits
    predicted = predictions.logits.argmax(axis=1)
    for order, outputs in list_candidate_orders(names).items():
        meaning = {output: number for number, output in enumerate(outputs)}
        ordered = [names[meaning[output]] for output in range(min(4, len(names)))]
        hits = np.array([meaning[a] == b for a, b in zip(predicted, target, strict=True)])
        yield InputAlternative(
            "teacher-class-order",
            f"its classes in {order} order ({', '.join(ordered)}, ...), where the data have"
            f" {', '.join(names[:4])}, ...",
            "Name its classes in its own order: as label_names in the config.json of a model"
            " folder, as `classes` in the checkpoint, or with teacher.classes=<a CSV file>.",
            before,
            hits,
            _compute_chance(target),
            outputs,
        )


def _compute_chance(target: np.ndarray) -> float:
    """The accuracy of always predicting the most frequent class."""
    return float(np.bincount(target).max() / len(target))


def _fit_permutation(predicted: np.ndarray, target: np.ndarray) -> Bool[np.ndarray, " images"]:
    """Where a teacher is right with permuted classes: the permutation that fits one
    half of the images best, tested on the other half, and the other way round.
    """
    hits = np.zeros(len(target), dtype=bool)
    fold = np.random.default_rng(0).permutation(len(hits)) % _FOLDS
    for number in range(_FOLDS):
        fit, test = fold != number, np.flatnonzero(fold == number)
        meaning = find_permutation(predicted[fit], target[fit])
        hits[test] = [meaning.get(predicted[image], -1) == target[image] for image in test]
    return hits


def find_permutation(predicted: np.ndarray, target: np.ndarray) -> dict[int, int]:
    """Map each predicted class to a true class, no two of them to the same one, so that
    most images are right; to itself where the images do not decide.

    Only pairs that occur are stored, never a matrix of all pairs.
    """
    from scipy.sparse import coo_array, eye_array, hstack
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    rows, a = np.unique(predicted, return_inverse=True)
    columns, b = np.unique(target, return_inverse=True)
    counts = coo_array((np.ones(len(a)) + (predicted == target) * 1e-3, (a, b)))
    # A column of its own for each class that no true class is left for.
    weights = hstack([counts, 1e-3 * eye_array(len(rows))]).tocsr()
    matching = zip(*min_weight_full_bipartite_matching(weights, maximize=True), strict=True)
    return {
        int(rows[row]): int(columns[column] if column < len(columns) else rows[row])
        for row, column in matching
    }
