"""Sentences about the gain of distillation over the controls: how much of it is the
teacher's knowledge, and whether plain training does as well.
"""

from collections.abc import Sequence
from typing import Final

from kd_app.reporting.metrics import Difference, Split
from kd_app.reporting.results import Results
from kd_app.reporting.sentences import format_difference, format_margin, format_points

PLAIN: Final = ("labels_only", "match_wall_time")
"""Controls that are plain training: no teacher, unchanged labels."""

_WITHOUT_TEACHER: Final = (*PLAIN, "smoothed_labels", "pseudo_labels")
"""Controls that a user could train in place of the student, the cheapest first."""
_MARGIN: Final = 0.01
"""Margin for a run whose config has none."""
_CONTROLS: Final = {
    "labels_only": (
        "the same network trained on labels only",
        "no gain is shown.",
        "a gain.",
    ),
    "match_wall_time": (
        "labels only for the same wall time{epochs}",
        "no gain beyond that of longer training is shown.",
        "more than longer training gains.",
    ),
    "smoothed_labels": (
        "labels as soft as the teacher's outputs{smoothing}",
        "no gain beyond that of soft labels alone is shown.",
        "more than soft labels alone gain.",
    ),
    "shuffled_teacher": (
        "the teacher's outputs for other images of the class",
        "no gain from the teacher's knowledge of the individual image is shown.",
        "a gain from the teacher's knowledge of the individual image.",
    ),
    "pseudo_labels": (
        "the same network trained on the labels and on its own pseudo-labels{pseudo_labels}",
        "no help from the teacher beyond the student's own labels is shown.",
        "the teacher helps beyond the student's own labels.",
    ),
    "other_family": (
        "another family of about the same cost ({network}{macs}) trained on labels only",
        "that network may do as well on plain labels.",
        "better than that network on plain labels.",
    ),
}
"""For each control: its description, and the conclusions if the control is as good and
if it is not.
"""


def describe_gains(results: Results) -> list[str]:
    """Sentences about the differences between the student and each control on the same
    images; empty without a control.

    Each difference is the student's top1 minus the control's, with its paired interval
    over the images, not corrected for the number of controls. An interval that contains
    0 shows neither a gain nor that there is none: a control counts as as good only if
    the upper bound of the gain is below the margin of the verdict (an equivalence
    test). All sentences are about the models of one seed.
    """
    split = results.test or results.validation
    if split is None:
        return []
    gains = {
        control: gain
        for control, gain in split.gains.items()
        if gain.value is not None and gain.low is not None and gain.high is not None
    }
    if not gains:
        return []
    return [
        *(_describe_control(control, gains, results) for control in gains),
        _write_advice(gains, results, split),
        _write_basis(results),
    ]


def _format_gain(gain: Difference) -> str:
    """'+0.55 points (-0.10 to +1.20)'."""
    value, bounds = format_difference(gain.value, gain.low, gain.high)
    return f"{value} points ({bounds})"


def _is_gain_shown(gain: Difference) -> bool:
    """Whether distillation is shown to be better than the control."""
    return gain.low is not None and gain.low > 0


def _is_shown_as_good(gain: Difference, margin: float) -> bool:
    """Whether the control is shown to be at most `margin` worse than distillation."""
    return not _is_gain_shown(gain) and gain.high is not None and gain.high < margin


def _describe_control(control: str, gains: dict[str, Difference], results: Results) -> str:
    gain = gains[control]
    if control not in _CONTROLS:
        return f"Distilled minus {control.replace('_', ' ')}: {_format_gain(gain)}."
    name, without_gain, with_gain = _CONTROLS[control]
    model = results.models.get(control)
    resolved = (model.model_extra or {}).get("decided", {}) if model else {}
    name = name.format(
        network=model.name if model else "another network", **_format_details(resolved)
    )
    if gain.high is not None and gain.high < 0:
        conclusion = "distillation did worse."
    else:
        conclusion = with_gain if _is_gain_shown(gain) else without_gain
    share = _describe_share(control, gains)
    return f"Distilled minus {name}: {_format_gain(gain)}: {conclusion}{share}"


def _format_details(resolved: dict[str, object]) -> dict[str, str]:
    """Settings that the run computed for a control, by their fields in `_CONTROLS`."""
    epochs, loss, macs, student_macs = (
        resolved.get(key) for key in ("max_epochs", "loss", "macs", "student_macs")
    )
    smoothing = None
    if isinstance(loss, dict):
        smoothing = next((node["smoothing"] for node in loss.values() if "smoothing" in node), None)
    ratio = None
    if isinstance(macs, int) and isinstance(student_macs, int) and student_macs:
        ratio = macs / student_macs
    return {
        "epochs": "" if epochs is None else f" ({epochs} epochs)",
        "smoothing": "" if smoothing is None else f" (smoothing {smoothing:.3g})",
        "pseudo_labels": _format_pseudo_labels(resolved),
        "macs": "" if ratio is None else f", {ratio:.2g} times the multiply-adds",
    }


def _format_pseudo_labels(resolved: dict[str, object]) -> str:
    count, unlabeled = resolved.get("pseudo_labels"), resolved.get("unlabeled")
    if not isinstance(count, int) or not isinstance(unlabeled, int):
        return ""
    return f" (for {count:,} of the {unlabeled:,} images without a label)"


def _describe_share(control: str, gains: dict[str, Difference]) -> str:
    """The part of the gain over labels only that the control reaches without
    distillation; '' if there is no such gain.
    """
    over_labels, gain = gains.get("labels_only"), gains[control]
    if (
        control in ("labels_only", "other_family")
        or over_labels is None
        or over_labels.value is None
        or not _is_gain_shown(over_labels)
        or gain.value is None
    ):
        return ""
    return (
        f" This control alone reaches {format_points(over_labels.value - gain.value)} of the"
        f" {format_points(over_labels.value)} points over labels only."
    )


def _write_advice(gains: dict[str, Difference], results: Results, split: Split) -> str:
    """Recommend plain training if it is shown to be as good; else the cheapest control
    that is; else distillation if all of these are shown to be worse; else nothing.
    """
    if not set(PLAIN) & set(gains):
        return (
            "Recommendation: none. Without the control labels_only there is no plain training to"
            " compare with."
        )
    margin = _read_margin(results)
    for control in _WITHOUT_TEACHER:
        gain = gains.get(control)
        if gain is not None and _is_shown_as_good(gain, margin):
            return _recommend_control(control, gain, results, split, margin)
    unclear = [
        control
        for control in _WITHOUT_TEACHER
        if control in gains and not _is_gain_shown(gains[control])
    ]
    if unclear:
        high = max(gains[control].high or 0.0 for control in unclear)
        return (
            f"Recommendation: none. These {split.num_images:,} images show neither a gain of"
            f" distillation over {_join(unclear)} nor that training without a teacher is as good"
            f" (within {format_margin(margin)}): the gain may be up to"
            f" {format_points(high)} points. More test images would tell."
        )
    missing = [control for control in _list_further_controls(results) if control not in gains]
    more = ""
    if missing:
        more = (
            f" Not measured: 'controls=[{','.join(missing)}]' would show how much of the gain is"
            " the teacher's knowledge."
        )
    return f"Recommendation: distill. Plain training is measurably worse.{more}"


def _list_further_controls(results: Results) -> tuple[str, ...]:
    """The controls that suit the data, beside labels only."""
    data = results.config.get("data") or {}
    if data.get("unlabeled") or (data.get("label_fraction") or 1) < 1:
        return ("match_wall_time", "smoothed_labels", "pseudo_labels")
    return ("match_wall_time", "smoothed_labels", "shuffled_teacher")


def _recommend_control(
    control: str, gain: Difference, results: Results, split: Split, margin: float
) -> str:
    """Recommend the training of a control that is shown to be as good."""
    student = results.models.get("student")
    starts_trained = student is not None and student.weights.get("source") != "random"
    labels = {
        "match_wall_time": "on the labels for as long",
        "smoothed_labels": "with smoothed labels",
        "pseudo_labels": "on the labels and the student's own pseudo-labels",
    }
    evidence = f"it is shown to be less than {format_margin(margin)} worse than distillation"
    if gain.high is not None and gain.high < 0:
        evidence = "it is better than distillation"
    return (
        f"Recommendation: plain training{' (fine-tuning)' if starts_trained else ''}"
        f" {labels.get(control, 'on the labels')}, without a teacher. On these"
        f" {split.num_images:,} images {evidence}."
    )


def _read_margin(results: Results) -> float:
    """The margin of the verdict, which is set before the run."""
    if results.verdict is not None:
        return results.verdict.margin
    return float((results.config.get("verdict") or {}).get("margin", _MARGIN))


def _join(controls: Sequence[str]) -> str:
    return " and ".join(control.replace("_", " ") for control in controls)


def _write_basis(results: Results) -> str:
    return (
        f"These are differences between models of one seed ({results.seed}), not between methods:"
        " several seeds are needed to judge whether distillation is worth it in general."
    )
