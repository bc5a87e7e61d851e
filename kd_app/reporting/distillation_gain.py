"""Was distilling needed? What of the gain is the teacher's knowledge, and whether plain
training is as good.
"""

from kd_app.reporting.results import Difference, Results, Split
from kd_app.reporting.sentences import format_margin, format_points

PLAIN = ("labels_only", "match_wall_time")
"""Controls that are plain training: no teacher, labels as they are."""


def describe_gains(results: Results) -> list[str]:
    """Sentences from the differences between the student and each control on the same
    images; empty where no control was measured.

    Every figure is the student's top1 minus a control's, with its paired interval over
    the images, each by itself (not corrected for their number). A control counts as as
    good where that interval holds 0 or lies below it. All of it is about the models of
    one seed, and says so.
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
    found = [
        sentence
        for control, gain in gains.items()
        if (sentence := _describe_control(control, gain, gains, results))
    ]
    return [*found, _write_advice(gains, results, split), _write_basis(results)]


def _format_gain(gain: Difference) -> str:
    """'+0.55 points (-0.10 to +1.20)'."""
    assert gain.value is not None
    assert gain.low is not None
    assert gain.high is not None
    return f"{format_points(gain.value)} points ({format_points(gain.low)} to {format_points(gain.high)})"


def _as_good(gain: Difference) -> bool:
    return gain.low is not None and gain.low <= 0


def _describe_control(
    control: str, gain: Difference, gains: dict[str, Difference], results: Results
) -> str:
    """What one control says."""
    if control not in _SAYS:
        return f"Distilled minus {control.replace('_', ' ')}: {_format_gain(gain)}."
    name, nothing, something = _SAYS[control]
    model = results.models.get(control)
    decided = (model.model_extra or {}).get("decided", {}) if model else {}
    said = (
        "Distilled minus"
        f" {name.format(net=model.name if model else 'another net', **_format_details(decided))}:"
        f" {_format_gain(gain)}: "
    )
    if gain.high is not None and gain.high < 0:
        said += "distilling did worse."
    else:
        said += nothing if _as_good(gain) else something
    return said + _share(control, gain, gains)


_SAYS = {
    "labels_only": (
        "the same net on the labels alone",
        "no gain that these images could show.",
        "a gain.",
    ),
    "match_wall_time": (
        "the labels alone for as long in wall time{epochs}",
        "no gain that longer training would not explain.",
        "more than longer training gives.",
    ),
    "smoothed_labels": (
        "labels as soft as the teacher's answers{smoothing}",
        "no gain that softness alone would not explain.",
        "more than softness alone gives.",
    ),
    "shuffled_teacher": (
        "the teacher's answers to other images of the class",
        "no gain from what the teacher knows about the very image.",
        "what the teacher knows about the very image.",
    ),
    "other_family": (
        "another family of about the cost ({net}{macs}) on the labels alone",
        "another net on plain labels may do as well.",
        "better than that net on plain labels.",
    ),
}
"""Of each control: what it is; what is said where it is as good, and where it is not.
"""


def _format_details(decided: dict[str, object]) -> dict[str, str]:
    epochs, loss, macs, ours = (
        decided.get(key) for key in ("max_epochs", "loss", "macs", "student_macs")
    )
    smoothing = (
        next((node["smoothing"] for node in loss.values() if "smoothing" in node), None)
        if isinstance(loss, dict)
        else None
    )
    ratio = macs / ours if isinstance(macs, int) and isinstance(ours, int) and ours else None
    return {
        "epochs": "" if epochs is None else f" ({epochs} epochs)",
        "smoothing": "" if smoothing is None else f" (smoothing {smoothing:.3g})",
        "macs": "" if ratio is None else f", {ratio:.2g} times the multiply-adds",
    }


def _share(control: str, gain: Difference, gains: dict[str, Difference]) -> str:
    """How much of a gain over the labels the control has, too; said only where there is
    such a gain.
    """
    over_labels = gains.get("labels_only")
    if (
        control in ("labels_only", "other_family")
        or over_labels is None
        or over_labels.value is None
        or _as_good(over_labels)
        or gain.value is None
    ):
        return ""
    return (
        f" Of the {format_points(over_labels.value)} points over the labels alone it has"
        f" {format_points(over_labels.value - gain.value)} itself."
    )


def _write_advice(gains: dict[str, Difference], results: Results, split: Split) -> str:
    """Plain training where a control of that kind is as good; else the cheapest that
    is; else distilling.
    """
    as_good = [control for control in PLAIN if control in gains and _as_good(gains[control])]
    told = f"as far as {split.num_images:,} images tell"
    if as_good:
        longer = " for as long" if as_good == ["match_wall_time"] else ""
        margin = results.verdict.margin if results.verdict else None
        shown = [
            control
            for control in as_good
            if margin is not None and (gains[control].high or 0) < margin
        ]
        better = any((gains[control].high or 0) < 0 for control in as_good)
        how = "better than distilling" if better else "as good as distilling"
        sure = (
            f", and less than {format_margin(margin or 0)} worse"
            if shown
            else "; they could not show a small difference"
        )
        sure = "" if better else sure
        return (
            f"Recommendation: plain training (fine-tuning) on the labels{longer}, without a"
            f" teacher: {how} {told}{sure}."
        )
    if "smoothed_labels" in gains and _as_good(gains["smoothed_labels"]):
        return (
            "Recommendation: plain training (fine-tuning) with smoothed labels, without a teacher:"
            f" as good as distilling {told}."
        )
    if any(control in gains for control in PLAIN):
        unasked = [
            control
            for control in ("match_wall_time", "smoothed_labels", "shuffled_teacher")
            if control not in gains
        ]
        more = (
            f" Not asked here: 'controls=[{','.join(unasked)}]' would show what of it is the"
            " teacher's knowledge."
            if unasked
            else ""
        )
        return f"Recommendation: distill. Plain training is measurably worse.{more}"
    return (
        "Recommendation: none. Without the control labels_only nothing says whether plain training"
        " is as good."
    )


def _write_basis(results: Results) -> str:
    return (
        f"These are differences between models of one seed ({results.seed}), not between methods: "
        "whether distilling is worth it in general, several seeds show."
    )
