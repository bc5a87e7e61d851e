"""Formatted numbers, and sentences about metrics: verdict, basis, undefined values."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Final, NamedTuple

from kd_app.config.errors import quote_some
from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.pair_metrics import PAIR_METRICS
from kd_app.metrics.spec import Format, MetricSpec, Place
from kd_app.reporting.metrics import Difference, Estimate, Measurement, Split, Verdict
from kd_app.reporting.results import LicenseRecord, Results, TeacherLabels

_VERDICT_METRICS: Final = {
    **{spec.name: spec.label for spec in MODEL_METRICS},
    "worst_class": "recall of the worst class",
}


def format_percent(value: float | None) -> str:
    """'92.13 %', or 'undefined'."""
    return "undefined" if value is None else f"{100 * value:.2f} %"


def format_points(value: float) -> str:
    """A difference of shares in percentage points, with its sign: '+0.55'."""
    return f"{round(100 * value, 2) or 0.0:+.2f}"


def format_margin(margin: float) -> str:
    """'1 point', '2 points'."""
    return f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"


def format_interval(low: float | None, high: float | None) -> str:
    """'91.59 to 92.64', in percent; '' without an interval."""
    return "" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f}"


def format_difference(
    value: float | None, low: float | None, high: float | None
) -> tuple[str, str]:
    """A difference in points and its interval: ('+0.55', '-0.10 to +1.20')."""
    bounds = "" if low is None or high is None else f"{format_points(low)} to {format_points(high)}"
    return "undefined" if value is None else format_points(value), bounds


def format_count(number: int | None) -> str:
    """'25.6 M'; 'unknown' without a number."""
    if number is None:
        return "unknown"
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 999.5 * scale:
            return f"{number / scale:,.0f} {unit}"
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return str(number)


def format_metric(estimate: Estimate, unit: Format) -> tuple[str, str]:
    """A metric and its interval, both in `unit`."""
    value, low, high = estimate.value, estimate.low, estimate.high
    if unit == "percent":
        return format_percent(value), format_interval(low, high)
    if unit == "points":
        return format_difference(value, low, high)
    bounds = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
    return "undefined" if value is None else f"{value:.4f}", bounds


def build_pair_rows(split: Split, place: Place = "console") -> list[tuple[str, str, str, str]]:
    """Rows ``(name, value, interval, meaning)`` that compare the student with teacher
    and controls, limited to the models of the run.
    """
    if split.pair is None:
        return []
    rows = [
        (spec.label, *format_metric(split.pair.look_up(spec.name), spec.format), spec.meaning)
        for spec in PAIR_METRICS
        if place in spec.places and is_applicable(split, spec)
    ]
    return rows + [
        _build_gain_row(control, gain)
        for control, gain in split.gains.items()
        if control != "labels_only"  # its gain is one of the pair's metrics
    ]


def is_applicable(split: Split, spec: MetricSpec[Any]) -> bool:
    """Whether the split has all models that the metric compares."""
    return set(spec.needs) <= set(split.by_model)


def _build_gain_row(control: str, gain: Difference) -> tuple[str, str, str, str]:
    value, bounds = format_difference(gain.value, gain.low, gain.high)
    return f"gain, {control}", value, bounds, "points above this control"


def write_sentences(results: Results, split: Split) -> list[str]:
    """All sentences below the tables of a run: undefined metrics, verdict, weak spots,
    basis, license, notes and status.
    """
    sentences = explain_undefined(split)
    if results.verdict:
        sentences.append(write_verdict(results.verdict))
    sentences += describe_weak_spots(results, split)
    sentences.append(write_basis(results, split))
    sentences += describe_license(results.license)
    sentences += [f"Note: {note}" for note in results.notes]
    if results.status != "finished":
        status = f"The run is not finished: its status is '{results.status}'."
        sentences.append(f"{status} {results.reason or ''}".rstrip())
    return sentences


def describe_weak_spots(results: Results, split: Split) -> list[str]:
    """What the average hides: the class and the group with the largest loss from
    teacher to student, and the accuracy on corrupted images.
    """
    sentences = []
    if results.data and "teacher" in split.per_class.accuracy:
        per_class = split.per_class
        columns = (per_class.accuracy["teacher"], per_class.accuracy["student"], per_class.support)
        by_class = [_Loss(*row) for row in zip(results.data.classes, *columns, strict=True)]
        sentences += _describe_largest_loss("Class", by_class)
    by_group = [
        _Loss(
            name, group.accuracy["teacher"].value, group.accuracy["student"].value, group.num_images
        )
        for name, group in split.groups.items()
        if "teacher" in group.accuracy
    ]
    sentences += _describe_largest_loss("Group", by_group)
    return sentences + _describe_corruptions(split)


class _Loss(NamedTuple):
    """Accuracy of both models on the images of one class or group."""

    name: str
    teacher: float | None
    student: float | None
    num_images: int

    @property
    def size(self) -> float:
        if self.teacher is None or self.student is None:
            return -math.inf
        return self.teacher - self.student


def _describe_largest_loss(what: str, losses: Sequence[_Loss]) -> list[str]:
    worst = max(losses, key=lambda loss: loss.size, default=None)
    if worst is None or worst.size <= 0:
        return []
    images = f"{worst.num_images:,} image{'' if worst.num_images == 1 else 's'}"
    return [
        f"{what} {worst.name!r} loses most: the student gets {format_percent(worst.student)}"
        f" right, the teacher {format_percent(worst.teacher)} ({images})."
    ]


def _describe_corruptions(split: Split) -> list[str]:
    rows = split.robustness
    if not rows:
        return []
    means = {
        role: fmean(row.accuracy.get(role) or 0.0 for row in rows)
        for role in ("student", "teacher")
        if role in rows[0].accuracy
    }
    teacher = f", the teacher {format_percent(means['teacher'])}" if "teacher" in means else ""
    kinds = len({row.corruption for row in rows})
    return [
        f"On corrupted images ({kinds} kind{'' if kinds == 1 else 's'}) the student gets"
        f" {format_percent(means['student'])} right on average{teacher}."
    ]


def describe_license(license: LicenseRecord | None) -> list[str]:
    """The license of the student, its sources, and notes about what to observe."""
    if license is None:
        return []
    sources = {
        "the teacher's weights": license.teacher,
        "the student's starting weights": license.student_start,
        "the data": license.data,
    }
    listed = ", ".join(
        f"{what}: {name}" for what, name in sources.items() if name not in (None, "none")
    )
    remarks = (*license.forbidden, *license.accepted, *license.unknown)
    return [
        f"License of the student: {license.ships}, the strictest license of its sources"
        f" ({listed}). This is not legal advice.",
        *(f"Note: {remark}" for remark in remarks),
    ]


def explain_undefined(split: Split) -> list[str]:
    """A sentence for each metric of the pair that is undefined, and one for the metrics
    without an interval, with the reason.
    """
    undefined = [
        f"{spec.label.capitalize()} is undefined because {spec.undefined}."
        for spec in PAIR_METRICS
        if spec.undefined
        and split.pair
        and is_applicable(split, spec)
        and split.pair.look_up(spec.name).value is None
    ]
    return undefined + _explain_missing_intervals(split)


def _explain_missing_intervals(split: Split) -> list[str]:
    specs: dict[str, Sequence[MetricSpec[Any]]] = {"model": MODEL_METRICS, "pair": PAIR_METRICS}
    parts = [("model", part) for part in split.by_model.values()]
    estimates = [
        (spec.label, part.look_up(spec.name))
        for kind, part in (*parts, *([("pair", split.pair)] if split.pair else []))
        for spec in specs[kind]
        if spec.has_interval and not spec.undefined
    ]
    labels = dict.fromkeys(
        label for label, each in estimates if each.value is not None and each.low is None
    )
    if not labels:
        return []
    return [
        f"Where {quote_some([*labels])} has no interval, all resamples of these images have the"
        " same value, which does not show how much other images would vary."
    ]


def write_verdict(
    verdict: Verdict, candidate: str = "the student", reference: str = "the teacher"
) -> str:
    """The verdict on `candidate`: outcome, margin, difference and evidence."""
    metric, margin = _VERDICT_METRICS[verdict.metric], format_margin(verdict.margin)
    subject = f"{candidate[0].upper()}{candidate[1:]}'s {metric}"
    claim = {
        "kept": f"{subject} is at most {margin} below {reference}'s",
        "lost": f"{subject} is more than {margin} below {reference}'s",
        "not shown": (
            f"These images can't show whether {candidate}'s {metric} is within {margin} of"
            f" {reference}'s"
        ),
    }[verdict.outcome]
    difference, bounds = format_difference(verdict.difference, verdict.low, verdict.high)
    needed = f" About {verdict.n_needed:,} images would be needed." if verdict.n_needed else ""
    smallest = ""
    if verdict.smallest_margin is not None:
        smallest = (
            f" The smallest margin that these images could show, if both were equally good, is"
            f" {100 * verdict.smallest_margin:.2f} points."
        )
    weaker = ""
    if verdict.outcome == "kept" and (verdict.low > 0 or verdict.difference > verdict.margin):
        weaker = (
            f" {reference[0].upper()}{reference[1:]} is the weaker of the two, so 'kept' says"
            f" little about {candidate}."
        )
    return (
        f"Verdict: {verdict.outcome}. {claim}: the difference is {difference} points, {bounds}"
        f" (each bound at {100 * verdict.confidence:g} %,"
        f" {_count_images(verdict.num_images, verdict.split)},"
        f" McNemar's p {verdict.mcnemar_p:.2g}).{weaker}{needed}{smallest}"
    )


def _count_images(number: int, split: str) -> str:
    """'359 test images', or '359 images' of all splits."""
    return f"{number:,} images" if split == "all" else f"{number:,} {split} images"


def write_basis(results: Results, split: Measurement) -> str:
    """The split, images and seed of all metrics, what the intervals leave out, and what
    the teacher was trained on if labels are few.
    """
    name = split.split or ("validation" if split is results.validation else "test")
    unread = " The test set was not read." if split is results.validation else ""
    teacher = write_teacher_labels(results.data.teacher_labels if results.data else None)
    part = "" if name == "all" else f"{name} split, "
    return (
        f"All metrics: {part}{split.num_images:,} images, one seed ({results.seed})."
        " The intervals cover the choice of images, not the variation between seeds."
        f"{unread}{teacher and ' '}{teacher}"
    )


def write_teacher_labels(labels: TeacherLabels | None) -> str:
    """What the teacher was trained on, in a run with few labels; '' in others."""
    return {
        None: "",
        "same": "The teacher was trained on none of the labels that the student does not see.",
        "more": (
            "The teacher was trained on labels that the student does not see, and passes them on:"
            " the gain is not one of learning from few labels alone."
        ),
        "unknown": (
            "The teacher is used as it is: it is not known whether it was trained on labels that"
            " the student does not see, which it would pass on."
        ),
    }[labels]
