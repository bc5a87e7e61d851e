"""The page about the default recipes, made from the measured trials: ``python -m
benchmarks.recipes_page``
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

from benchmarks.recipe_candidates import (
    AVERAGE,
    BAR,
    CENTER,
    FEW,
    FEW_LABELS,
    IMBALANCE,
    LONGER,
    REGIMES,
    TAUGHT_ALL,
    VIT,
    Regime,
    compare_candidates,
    rank_candidates,
)
from benchmarks.recipe_trials import (
    BY_HAND,
    DISTILLED,
    FILE,
    LABELS,
    SCALES,
    Measured,
    Trial,
)
from benchmarks.recipes import read_trials
from kd_app.metrics.seeds import compare_by_seed

PAGE: Final = FILE.with_suffix(".md")
NOTES: Final = Path(__file__).with_name("recipes_notes.md")
"""What the tables mean, and which defaults follow from them: written by hand."""
_CONFIDENCE: Final = 0.95
Known = Mapping[Trial, Measured]


def render_page(known: Known, notes: str) -> str:
    """The page: the notes by hand, then tables of each scale that was measured."""
    scales = [name for name in SCALES if any(trial.scale == name for trial in known)]
    parts = [notes.rstrip()]
    for scale in scales:
        own = {trial: measured for trial, measured in known.items() if trial.scale == scale}
        parts += [*_render_scale(own, scale)]
    return "\n\n".join(parts) + "\n"


def _render_scale(known: Known, scale: str) -> Iterator[str]:
    seconds = sum(measured.seconds for measured in known.values())
    sizes = SCALES[scale]
    sides = ", ".join(f"{name} {side}" for name, side in sizes.sides.items())
    yield (
        f"## Scale `{scale}`\n\n{len(known)} trainings, {seconds / 3600:.1f} hours. At most"
        f" {sizes.images:,} images for training and validation ({sizes.photos:,} photographs in"
        f" all), pixels of the input: {sides}, others as they are."
    )
    for regime in REGIMES:
        for arm in (LABELS, DISTILLED):
            yield from _render_search(known, regime, arm, scale)
    for title, table in (
        ("Three times the epochs", _render_trials(known, LONGER)),
        ("A small vision transformer", _render_trials(known, VIT)),
        ("The defaults beside a careful loop by hand", _render_bar(known, scale)),
        ("Distilled minus labels only", _render_gain(known)),
        ("A tenth of the labels, distilled minus labels only", _render_few(known)),
        ("Classes of unequal size", _render_imbalance(known)),
        ("Averaged and raw weights", _render_average(known)),
    ):
        if table:
            yield f"### {title}\n\n" + "\n".join(table)


def _render_search(known: Known, regime: Regime, arm: str, scale: str) -> Iterator[str]:
    one = compare_candidates(known, regime, arm, scale, (0,))
    if len(one) < 2:  # the center alone
        return
    three = compare_candidates(known, regime, arm, scale, (0, 1, 2))
    places = list(one[CENTER])
    center = ", ".join(
        f"{key} {value}"
        for key, value in regime.center.items()
        if arm == DISTILLED or key not in ("weights", "T")
    )
    rows = [[name, *_list_differences(one[name], places)] for name in one if name != CENTER]
    confirmed = [
        [f"{name} (3 seeds)", *_list_differences(three[name], places)]
        for name in three
        if name != CENTER
    ]
    yield (
        f"### {regime.name.capitalize()}, {arm}\n\nAccuracy on validation minus that of the center"
        f" ({center}), in points; one seed unless stated.\n\n"
        + "\n".join(_draw_table(["change", *places, "mean"], [*rows, *confirmed]))
    )
    if left_out := _render_left_out(one):
        yield (
            "Leave one set out: the candidate that is best on the other sets, and what it is worth"
            " on the set that was left out, in points over the center and below the best candidate"
            " of that set.\n\n" + "\n".join(left_out)
        )


def _list_differences(row: Mapping[str, float], places: Sequence[str]) -> list[str]:
    cells = [_format_points(row[place]) if place in row else "" for place in places]
    is_whole = all(place in row for place in places)
    return [*cells, _format_points(fmean(row.values())) if is_whole else ""]


def _render_left_out(differences: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A row for each set: the choice on the others, and what it does there."""
    names, places = rank_candidates(differences), list(differences[CENTER])
    if len(places) < 2:
        return []
    rows = []
    for place in places:
        others = {
            name: [differences[name][each] for each in places if each != place] for name in names
        }
        choice = max(names, key=lambda name: fmean(others[name]))
        best = max(differences[name][place] for name in names)
        value = differences[choice][place]
        rows.append([place, choice, _format_points(value), _format_points(value - best)])
    return _draw_table(
        ["left out", "chosen on the others", "over the center", "below the best"], rows
    )


def _by_seed(known: Known, **fixed: str) -> dict[int, float]:
    """Accuracy by seed of the trials with these fields; the last defaults if there were
    several.
    """
    return {
        trial.seed: measured.top1
        for trial, measured in known.items()
        if all(getattr(trial, key) == value for key, value in fixed.items())
    }


def _render_bar(known: Known, scale: str) -> list[str]:
    rows = []
    for data in dict.fromkeys(trial.data for trial in known if trial.study == BAR):
        for arm in (LABELS, DISTILLED):
            own = _by_seed(known, study=BAR, data=data, arm=arm)
            by_hand = _by_seed(known, study=BAR, data=data, arm=BY_HAND[arm])
            rows += _compare(f"{data}, {arm}", own, by_hand)
    head = ["set, arm", "seeds", "kd_app", "by hand", "difference", "95 % interval"]
    return _draw_table(head, rows) if rows else []


def _render_gain(known: Known) -> list[str]:
    rows = []
    for data in dict.fromkeys(trial.data for trial in known if trial.study == BAR):
        arms = [_by_seed(known, study=BAR, data=data, arm=arm) for arm in (DISTILLED, LABELS)]
        rows += _compare(data, *arms)
    head = ["set", "seeds", "distilled", "labels only", "difference", "95 % interval"]
    return _draw_table(head, rows) if rows else []


def _render_few(known: Known) -> list[str]:
    rows = []
    for data in dict.fromkeys(trial.data for trial in known if trial.study == FEW):
        alone = _by_seed(known, study=FEW, data=data, arm=LABELS)
        for title, candidate in (
            ("a teacher that knows all labels", TAUGHT_ALL),
            ("a teacher that knows the same labels", FEW_LABELS),
        ):
            own = _by_seed(known, study=FEW, data=data, arm=DISTILLED, candidate=candidate)
            rows += _compare(f"{data}, {title}", own, alone)
    head = ["set", "seeds", "distilled", "labels only", "difference", "95 % interval"]
    return _draw_table(head, rows) if rows else []


def _render_trials(known: Known, study: str) -> list[str]:
    rows = [
        [trial.data, trial.candidate, str(measured.steps), f"{100 * measured.top1:.2f}"]
        for trial, measured in known.items()
        if trial.study == study
    ]
    head = ["set", "settings", "steps", "accuracy on validation"]
    return _draw_table(head, rows) if rows else []


def _render_imbalance(known: Known) -> list[str]:
    rows = []
    trials = {trial: each for trial, each in known.items() if trial.study == IMBALANCE}
    for arm, candidate in dict.fromkeys((trial.arm, trial.candidate) for trial in trials):
        results = [
            each
            for trial, each in trials.items()
            if (trial.arm, trial.candidate) == (arm, candidate)
        ]
        values = [fmean(each.balanced for each in results), fmean(each.top1 for each in results)]
        cells = [f"{100 * value:.2f}" for value in values]
        rows.append([arm, candidate or "defaults", str(len(results)), *cells])
    head = ["arm", "settings", "seeds", "balanced accuracy", "top-1"]
    return _draw_table(head, rows) if rows else []


def _render_average(known: Known) -> list[str]:
    rows = []
    for data in dict.fromkeys(trial.data for trial in known if trial.study == AVERAGE):
        values = [
            _by_seed(known, study=AVERAGE, data=data, candidate=candidate)
            for candidate in ("callbacks=[ema]", "")
        ]
        rows += _compare(data, *values)
    head = ["set", "seeds", "callbacks=[ema]", "raw weights", "difference", "95 % interval"]
    return _draw_table(head, rows) if rows else []


def _compare(
    title: str, first: Mapping[int, float], second: Mapping[int, float]
) -> list[list[str]]:
    """A row that compares two arms over their common seeds, or nothing."""
    compared = compare_by_seed(first, second, _CONFIDENCE)
    if compared is None:
        return []
    means = [fmean(arm[seed] for seed in compared.values) for arm in (first, second)]
    interval = (
        "one seed"
        if compared.low is None or compared.high is None
        else f"{_format_points(compared.low)} to {_format_points(compared.high)}"
    )
    accuracies = [f"{100 * mean:.2f}" for mean in means]
    count = str(len(compared.values))
    return [[title, count, *accuracies, _format_points(compared.mean), interval]]


def _format_points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _draw_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def main() -> None:
    """Write the page."""
    PAGE.write_text(render_page(read_trials(), NOTES.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
