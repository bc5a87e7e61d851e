"""Figures in words: what a number is, what it rests on, and why one is missing."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.pair_metrics import PAIR_METRICS
from kd_app.metrics.spec import Format, MetricSpec, Place
from kd_app.reporting.results import (
    Difference,
    Estimate,
    Licenses,
    Measurement,
    Results,
    Split,
    Verdict,
)

_METRICS = {
    **{spec.name: spec.label for spec in MODEL_METRICS},
    "worst_class": "recall of the worst class",
}


def format_percent(value: float | None) -> str:
    """'92.13 %', or 'undefined'."""
    return "undefined" if value is None else f"{100 * value:.2f} %"


def format_points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{round(100 * value, 2) or 0.0:+.2f}"


def format_margin(margin: float) -> str:
    """'1 point', '2 points'."""
    return f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"


def format_interval(low: float | None, high: float | None) -> str:
    """'91.59 to 92.64', in percent; empty where there is none."""
    return "" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f}"


def format_difference(
    value: float | None, low: float | None, high: float | None
) -> tuple[str, str]:
    """A difference in percentage points and its interval: ('+0.55', '-0.10 to +1.20')."""
    bounds = "" if low is None or high is None else f"{format_points(low)} to {format_points(high)}"
    return "undefined" if value is None else format_points(value), bounds


def count(number: int | None) -> str:
    """'25.6 M'; 'unknown' where nobody counted."""
    if number is None:
        return "unknown"
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return (
                f"{number / scale:.3g} {unit}"
                if number < 999.5 * scale
                else f"{number / scale:,.0f} {unit}"
            )
    return str(number)


def build_pair_rows(split: Split, place: Place = "console") -> list[tuple[str, str, str, str]]:
    """Name, figure, interval and meaning of what compares the student with teacher and
    control, as far as the run has them.
    """
    if split.pair is None:
        return []
    further = {control: gain for control, gain in split.gains.items() if control != "labels_only"}
    specs = [spec for spec in PAIR_METRICS if place in spec.shown and is_applicable(split, spec)]
    return [
        (spec.label, *write(split.pair.get(spec.name), spec.format), spec.meaning) for spec in specs
    ] + [_build_gain_row(control, gain) for control, gain in further.items()]


def write(estimate: Estimate, unit: Format) -> tuple[str, str]:
    """A metric and its interval in words."""
    value, low, high = estimate.value, estimate.low, estimate.high
    if unit == "percent":
        return format_percent(value), format_interval(low, high)
    if unit == "points":
        return format_difference(value, low, high)
    bounds = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
    return "undefined" if value is None else f"{value:.4f}", bounds


def is_applicable(split: Split, spec: MetricSpec[Any]) -> bool:
    return set(spec.needs) <= set(split.by_model)


def _build_gain_row(control: str, gain: Difference) -> tuple[str, str, str, str]:
    bounds = (
        ""
        if gain.low is None or gain.high is None
        else f"{format_points(gain.low)} to {format_points(gain.high)}"
    )
    return (
        f"gain, {control}",
        "undefined" if gain.value is None else format_points(gain.value),
        bounds,
        "points above this control",
    )


def write_sentences(results: Results, split: Split) -> list[str]:
    """Undefined figures explained, the verdict, what all of it rests on, and the run's
    notes.
    """
    found = explain_undefined(split)
    if results.verdict:
        found.append(write_verdict(results.verdict))
    found += describe_weak_spots(results, split)
    found.append(write_basis(results, split))
    found += describe_license(results.license)
    found += [f"Note: {note}" for note in results.notes]
    if results.status != "finished":
        found.append(
            f"The run is not finished: its status is '{results.status}'. {results.reason or ''}".rstrip()
        )
    return found


def describe_weak_spots(results: Results, split: Split) -> list[str]:
    """What the average hides: the class and the group that lose most from teacher to
    student, and how both do on corrupted images.
    """
    found = []
    if results.data and "teacher" in split.per_class.accuracy:
        each = split.per_class
        of_teacher, of_student = each.accuracy["teacher"], each.accuracy["student"]
        by_class = [
            _Loss(*four)
            for four in zip(results.data.classes, of_teacher, of_student, each.support, strict=True)
        ]
        found += _find_largest_loss("classes", by_class)
    by_group = [
        _Loss(name, each.accuracy["teacher"].value, each.accuracy["student"].value, each.num_images)
        for name, each in split.groups.items()
        if "teacher" in each.accuracy
    ]
    return found + _find_largest_loss("groups", by_group) + _describe_corruptions(split)


class _Loss(NamedTuple):
    """Accuracy of both models on a part of the images."""

    name: str
    teacher: float | None
    student: float | None
    num_images: int

    @property
    def size(self) -> float:
        return (
            -math.inf
            if self.teacher is None or self.student is None
            else self.teacher - self.student
        )


def _find_largest_loss(what: str, losses: Sequence[_Loss]) -> list[str]:
    worst = max(losses, key=lambda loss: loss.size, default=None)
    if worst is None or worst.size <= 0:
        return []
    return [
        f"Of the {what}, {worst.name!r} loses most: the student has {format_percent(worst.student)} right,"
        f" the teacher {format_percent(worst.teacher)} ({worst.num_images:,}"
        f" image{'' if worst.num_images == 1 else 's'})."
    ]


def _describe_corruptions(split: Split) -> list[str]:
    shown = split.robustness
    if not shown:
        return []
    means = {
        role: fmean(each.accuracy.get(role) or 0.0 for each in shown)
        for role in ("student", "teacher")
        if role in shown[0].accuracy
    }
    teacher = f", the teacher {format_percent(means['teacher'])}" if "teacher" in means else ""
    kinds = len({each.corruption for each in shown})
    return [
        f"On corrupted images ({kinds} kind{'' if kinds == 1 else 's'}) the student has on average"
        f" {format_percent(means['student'])} right{teacher}."
    ]


def describe_license(license: Licenses | None) -> list[str]:
    """Under what the student is, why, and what that asks for."""
    if license is None:
        return []
    made_of = {
        "the teacher's weights": license.teacher,
        "the student's starting weights": license.student_start,
        "the data": license.data,
    }
    listed = ", ".join(
        f"{what}: {name}" for what, name in made_of.items() if name not in (None, "none")
    )
    found = [
        f"License of what ships: {license.ships}, the strictest of what it is made from ({listed})."
        " This is no legal advice."
    ]
    return found + [
        f"Note: {sentence}"
        for sentence in (*license.forbidden, *license.accepted, *license.unknown)
    ]


def explain_undefined(split: Split) -> list[str]:
    """Why figures of the pair are not there."""
    return [
        f"{spec.label.capitalize()} is undefined because {spec.undefined}."
        for spec in PAIR_METRICS
        if spec.undefined
        and split.pair
        and is_applicable(split, spec)
        and split.pair.get(spec.name).value is None
    ]


def write_verdict(
    verdict: Verdict, candidate: str = "the student", reference: str = "the teacher"
) -> str:
    """The verdict on `candidate` with its margin, the difference, and what it rests on."""
    metric, margin = _METRICS[verdict.metric], format_margin(verdict.margin)
    judged = f"{candidate[0].upper()}{candidate[1:]}'s {metric}"
    difference = f"{format_points(verdict.difference)} points, {format_points(verdict.low)} to {format_points(verdict.high)}"
    said = {
        "kept": f"kept. {judged} is at most {margin} below {reference}'s",
        "lost": f"lost. {judged} is more than {margin} below {reference}'s",
        "not shown": (
            f"not shown. These images can't tell whether {candidate}'s {metric} is within {margin}"
            f" of {reference}'s"
        ),
    }[verdict.outcome]
    needed = f" About {verdict.n_needed:,} images would be needed." if verdict.n_needed else ""
    rests_on = (
        f"each end at {100 * verdict.confidence:g} %, {verdict.num_images:,} {verdict.split}"
        f" images, McNemar's p {verdict.mcnemar_p:.2g}"
    )
    return f"Verdict: {said}: the difference is {difference} ({rests_on}).{needed}"


def write_basis(results: Results, split: Measurement) -> str:
    """What all figures of a split rest on, and what they leave out."""
    name = "validation" if split is results.validation else "test"
    unread = "" if name == "test" else " The test set was not read."
    return (
        f"All figures: {name} split, {split.num_images:,} images, one seed ({results.seed}). "
        f"The intervals are over images; what another seed would give is not in them.{unread}"
    )
