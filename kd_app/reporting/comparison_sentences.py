"""Sentences about a comparison of methods.

Each states whether it is about methods (over seeds) or about models (over images).
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from kd_app.metrics.seeds import CORRECTION, SeedDifference, SeedSummary
from kd_app.reporting.sentences import format_interval, format_percent, format_points

if TYPE_CHECKING:
    from kd_app.reporting.comparison import Method, MethodComparison, ModelDifference

_MAX_METHODS: Final = 8
"""Up to this number each method gets sentences; of more, only those that stand out."""


def write_comparison(comparison: "MethodComparison") -> list[str]:
    """All sentences about a comparison, with its notes last."""
    return [
        *_write_basis(comparison),
        *_describe_methods(comparison),
        *_describe_choice(comparison),
        *_describe_correction(comparison),
        *(f"Note: {note}" for note in comparison.notes),
    ]


def join_seeds(seeds: Iterable[int]) -> str:
    """'0, 1, 2'."""
    return ", ".join(map(str, seeds))


def _write_basis(comparison: "MethodComparison") -> Iterator[str]:
    methods = comparison.methods
    num_methods, num_runs = len(methods), sum(len(method.runs) for method in methods)
    if not num_methods:
        yield "No run is finished: there is nothing to compare."
        return
    images = f"{comparison.num_images:,} images" if comparison.num_images else "images"
    yield (
        f"{num_methods} method{'s' * (num_methods > 1)} in {num_runs} run{'s' * (num_runs > 1)},"
        f" by {comparison.metric.phrase} on {images} of the {comparison.split} split."
    )
    teachers = {teacher for method in methods for teacher in method.teachers}
    if num_runs > 1 and len(teachers) == 1:
        yield (
            "All students learned from one teacher on one set of images: the intervals over seeds"
            " do not cover other teachers or images."
        )


def _describe_methods(comparison: "MethodComparison") -> Iterator[str]:
    methods = _select_methods(comparison)
    for method in methods:
        yield from _describe_method(method, comparison)
    num_others = len(comparison.methods) - len(methods)
    if num_others:
        num_different = sum(
            _is_different(method.to_baseline, comparison.confidence)
            for method in comparison.methods
        )
        yield (
            f"The other {num_others} methods are in the table only; {num_different} of all methods"
            f" differ from {comparison.baseline} after correction."
        )


def _select_methods(comparison: "MethodComparison") -> list["Method"]:
    """The methods that get sentences."""
    if len(comparison.methods) <= _MAX_METHODS:
        return list(comparison.methods)
    return [
        method
        for method in comparison.methods
        if method.label in (comparison.baseline, comparison.winner)
        or _is_different(method.to_baseline, comparison.confidence)
    ][:_MAX_METHODS]


def _is_different(difference: SeedDifference | None, confidence: float) -> bool:
    """Whether a difference is significant after correction."""
    return (
        difference is not None
        and difference.corrected is not None
        and difference.corrected <= 1 - confidence
    )


def _describe_method(method: "Method", comparison: "MethodComparison") -> Iterator[str]:
    label, accuracy = method.label, method.on(comparison.split)
    if accuracy is not None:
        yield _describe_value(label, accuracy, f"{comparison.split} {comparison.metric.short}")
    if method.verdicts:
        yield (
            f"{label}: verdict {_format_verdicts(method.verdicts)}. Each verdict compares two"
            " models: the student of that seed and its teacher."
        )
    if method.to_teacher is not None and len(method.to_teacher.values) > 1:
        yield (
            f"About the method {label}: student minus teacher, paired by seed:"
            f" {_format_difference(method.to_teacher)}."
        )
    if method.gain is not None:
        name = f"{label} minus its own {comparison.metric.control_title} control"
        yield _describe_difference(name, method.gain, "the gain of distillation")
    if method.to_baseline is not None:
        name = f"{label} minus {comparison.baseline}"
        yield _describe_difference(name, method.to_baseline, "the difference")
    if method.models is not None:
        yield _describe_models(label, comparison.baseline or "", method.models)


def _describe_value(label: str, accuracy: SeedSummary, metric: str) -> str:
    seeds = join_seeds(accuracy.values)
    values = ", ".join(format_percent(value) for value in accuracy.values.values())
    if len(accuracy.values) == 1:
        return (
            f"{label}: {metric} {values} with one seed ({seeds}). This is about a model, not"
            " about the method."
        )
    mean = (
        f"{label}: mean {metric} {format_percent(accuracy.mean)} over"
        f" {len(accuracy.values)} seeds ({seeds}: {values})"
    )
    if accuracy.low is None:
        return f"{mean}. No interval: equal values do not show how much seeds vary."
    return (
        f"{mean}, t-interval {format_interval(accuracy.low, accuracy.high)} at"
        f" {100 * accuracy.confidence:g} %. This is about the method."
    )


def _format_verdicts(verdicts: dict[int, str]) -> str:
    """''lost' with seeds 0, 1'."""
    by_outcome: dict[str, list[int]] = {}
    for seed, outcome in verdicts.items():
        by_outcome.setdefault(outcome, []).append(seed)
    return ", ".join(
        f"'{outcome}' with seed{'s' * (len(seeds) > 1)} {join_seeds(seeds)}"
        for outcome, seeds in by_outcome.items()
    )


def _format_difference(difference: SeedDifference) -> str:
    mean = f"{format_points(difference.mean)} points"
    if difference.low is None or difference.high is None:
        return f"{mean} with each seed"
    return (
        f"{mean}, t-interval {format_points(difference.low)} to {format_points(difference.high)} at"
        f" {100 * difference.confidence:g} %"
    )


def _describe_difference(name: str, difference: SeedDifference, subject: str) -> str:
    """`name`: the two methods · `subject`: of the conclusion."""
    seeds, mean = join_seeds(difference.values), f"{format_points(difference.mean)} points"
    if len(difference.values) == 1:
        return f"{name}, with one seed ({seeds}): {mean}. This is about two models, not methods."
    if difference.p is None or difference.corrected is None:
        return (
            f"{name}: {mean} with each of the seeds {seeds}: no spread, so no interval and no test."
        )
    p = f"p {difference.p:.2g}"
    if difference.compared > 1:
        p += (
            f", {difference.corrected:.2g} after {CORRECTION}'s correction for"
            f" {difference.compared}"
        )
    outcome = "shown" if _is_different(difference, difference.confidence) else "not shown"
    return (
        f"About methods: {name}, paired by seed ({seeds}): {_format_difference(difference)}, {p}"
        f" (paired t-test): {subject} is {outcome} to differ from 0 over seeds."
    )


def _describe_models(label: str, baseline: str, models: "ModelDifference") -> str:
    low, high = format_points(models.low), format_points(models.high)
    return (
        f"About two models, not two methods: with seed {models.seed}, on the same"
        f" {models.num_images:,} images, the student of {label} minus that of {baseline}:"
        f" {format_points(models.difference)} points, {low} to {high} at"
        f" {100 * models.confidence:g} % (exact interval), McNemar's p {models.p:.2g}."
    )


def _describe_choice(comparison: "MethodComparison") -> Iterator[str]:
    if comparison.winner is None:
        return
    method = comparison.find_method(comparison.winner)
    assert method.validation is not None
    choice = (
        f"Chosen on validation alone: {method.label}, with {format_percent(method.validation.mean)}"
    )
    test, title = method.test, comparison.metric.short
    if test is None:
        yield (
            f"{choice}. The test set was not read, and the best of {len(comparison.methods)}"
            " values on validation is too good by chance."
        )
    elif len(test.values) < len(method.runs):
        seed, value = next(iter(test.values.items()))
        yield (
            f"{choice}. The test set was not read for all seeds: the test {title} is"
            f" {format_percent(value)} with seed {seed}, which is about that model."
        )
    else:
        bounds = (
            f" (t-interval {format_interval(test.low, test.high)})" if test.low is not None else ""
        )
        over = "mean over seeds" if len(test.values) > 1 else "one seed"
        yield (f"{choice}. Quote the test {title}: {format_percent(test.mean)}{bounds}, {over}.")


def _describe_correction(comparison: "MethodComparison") -> Iterator[str]:
    control, methods = comparison.metric.control_title, comparison.methods
    families = {
        f"gains over {control}": [method.gain for method in methods],
        "differences to the baseline": [method.to_baseline for method in methods],
    }
    names = []
    for name, family in families.items():
        tested = [each for each in family if each is not None and each.p is not None]
        if tested and tested[0].compared > 1:
            names.append(f"the {tested[0].compared} {name}")
    if names:
        yield (
            f"The p-values of {' and of '.join(names)} are corrected with"
            f" {comparison.correction}'s method, each family on its own."
        )
