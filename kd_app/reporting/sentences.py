"""Figures in words: what a number is, what it rests on, and why one is missing."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from kd_app.reporting.results import Difference, Licenses, PairFigures, Results, Split, Verdict

_METRICS = {
    "top1": "top-1 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "worst_class": "recall of the worst class",
}
_PAIR = {
    "retention": ("retention", "student / teacher accuracy"),
    "gain": ("gain", "points above labels only"),
    "gap_closed": ("gap closed", "gain / (teacher - labels only)"),
    "agreement": ("agreement", "same top-1 class as teacher"),
    "negative_flips": ("negative flips", "teacher right, student wrong"),
}


def percent(value: float | None) -> str:
    """'92.13 %', or 'undefined'."""
    return "undefined" if value is None else f"{100 * value:.2f} %"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{round(100 * value, 2) or 0.0:+.2f}"


def said_margin(margin: float) -> str:
    """'1 point', '2 points'."""
    return f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"


def interval(low: float | None, high: float | None) -> str:
    """'91.59 to 92.64', in percent; empty where there is none."""
    return "" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f}"


def difference(value: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """A difference in percentage points and its interval: ('+0.55', '-0.10 to +1.20')."""
    bounds = "" if low is None or high is None else f"{points(low)} to {points(high)}"
    return "undefined" if value is None else points(value), bounds


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


def pair_rows(split: Split) -> list[tuple[str, str, str, str]]:
    """Name, figure, interval and meaning of what compares the student with teacher and
    control, as far as the run has them.
    """
    if split.pair is None:
        return []
    further = {control: gain for control, gain in split.gains.items() if control != "labels_only"}
    return [_pair_row(split.pair, key) for key in _PAIR if _applies(split, key)] + [
        _gain_row(control, gain) for control, gain in further.items()
    ]


def _applies(split: Split, key: str) -> bool:
    needs = {"gain": [split.labels_only], "gap_closed": [split.teacher, split.labels_only]}.get(
        key, [split.teacher]
    )
    return all(model is not None for model in needs)


def _gain_row(control: str, gain: Difference) -> tuple[str, str, str, str]:
    bounds = (
        ""
        if gain.low is None or gain.high is None
        else f"{points(gain.low)} to {points(gain.high)}"
    )
    return (
        f"gain, {control}",
        "undefined" if gain.value is None else points(gain.value),
        bounds,
        "points above this control",
    )


def _pair_row(pair: PairFigures, key: str) -> tuple[str, str, str, str]:
    name, meaning = _PAIR[key]
    value, low, high = (getattr(pair, f"{key}{end}") for end in ("", "_low", "_high"))
    if key == "gain" and value is not None:
        return name, *difference(value, low, high), meaning
    return name, percent(value), interval(low, high), meaning


def sentences(results: Results, split: Split) -> list[str]:
    """Undefined figures explained, the verdict, what all of it rests on, and the run's
    notes.
    """
    found = undefined(split)
    if results.verdict:
        found.append(verdict_sentence(results.verdict))
    found += weak_spots(results, split)
    found.append(basis(results, split))
    found += license_sentences(results.license)
    found += [f"Note: {note}" for note in results.notes]
    if results.status != "finished":
        found.append(
            f"The run is not finished: its status is '{results.status}'. {results.reason or ''}".rstrip()
        )
    return found


def weak_spots(results: Results, split: Split) -> list[str]:
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
        found += _most("classes", by_class)
    by_group = [
        _Loss(name, each.accuracy["teacher"].value, each.accuracy["student"].value, each.num_images)
        for name, each in split.groups.items()
        if "teacher" in each.accuracy
    ]
    return found + _most("groups", by_group) + _corrupted(split)


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


def _most(what: str, losses: Sequence[_Loss]) -> list[str]:
    worst = max(losses, key=lambda loss: loss.size, default=None)
    if worst is None or worst.size <= 0:
        return []
    return [
        f"Of the {what}, {worst.name!r} loses most: the student has {percent(worst.student)} right,"
        f" the teacher {percent(worst.teacher)} ({worst.num_images:,}"
        f" image{'' if worst.num_images == 1 else 's'})."
    ]


def _corrupted(split: Split) -> list[str]:
    shown = split.robustness
    if not shown:
        return []
    means = {
        role: fmean(each.accuracy.get(role) or 0.0 for each in shown)
        for role in ("student", "teacher")
        if role in shown[0].accuracy
    }
    teacher = f", the teacher {percent(means['teacher'])}" if "teacher" in means else ""
    kinds = len({each.corruption for each in shown})
    return [
        f"On corrupted images ({kinds} kind{'' if kinds == 1 else 's'}) the student has on average"
        f" {percent(means['student'])} right{teacher}."
    ]


def license_sentences(license: Licenses | None) -> list[str]:
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


def undefined(split: Split) -> list[str]:
    """Why figures of the pair are not there."""
    found = []
    if _applies(split, "gap_closed") and split.pair and split.pair.gap_closed is None:
        found.append(
            "Gap closed is undefined because the teacher is not measurably better than the"
            " labels-only student on these images."
        )
    if _applies(split, "retention") and split.pair and split.pair.retention is None:
        found.append(
            "Retention is undefined because the teacher is not measurably right on any of these"
            " images."
        )
    return found


def verdict_sentence(verdict: Verdict) -> str:
    """The verdict with its margin, the difference, and what it rests on."""
    metric, margin = _METRICS[verdict.metric], said_margin(verdict.margin)
    difference = (
        f"{points(verdict.difference)} points, {points(verdict.low)} to {points(verdict.high)}"
    )
    said = {
        "kept": f"kept. The student's {metric} is at most {margin} below the teacher's",
        "lost": f"lost. The student's {metric} is more than {margin} below the teacher's",
        "not shown": (
            f"not shown. These images can't tell whether the student's {metric} is within {margin}"
            " of the teacher's"
        ),
    }[verdict.outcome]
    needed = f" About {verdict.n_needed:,} images would be needed." if verdict.n_needed else ""
    rests_on = (
        f"each end at {100 * verdict.confidence:g} %, {verdict.num_images:,} {verdict.split}"
        f" images, McNemar's p {verdict.mcnemar_p:.2g}"
    )
    return f"Verdict: {said}: the difference is {difference} ({rests_on}).{needed}"


def basis(results: Results, split: Split) -> str:
    """What all figures of a split rest on, and what they leave out."""
    name = "test" if split is results.test else "validation"
    unread = "" if name == "test" else " The test set was not read."
    return (
        f"All figures: {name} split, {split.num_images:,} images, one seed ({results.seed}). "
        f"The intervals are over images; what another seed would give is not in them.{unread}"
    )
