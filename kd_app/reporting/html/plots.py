"""The drawings of a report."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from markupsafe import Markup

from kd_app.reporting.html.charts import (
    Chart,
    Series,
    build_linear_axis,
    build_log_axis,
    draw_bars,
    draw_dumbbells,
    draw_heatmap,
    draw_line,
    draw_plane,
    format_percent,
    format_plain,
    place,
)
from kd_app.reporting.html.from_predictions import SEEN
from kd_app.reporting.html.palette import Look, look
from kd_app.reporting.html.run_section import LABELS, label_models
from kd_app.reporting.html.schema import ComparisonPart, Curve, Example, Point, RunPart
from kd_app.reporting.pareto import select_pareto_front
from kd_app.reporting.sentences import format_count

_ROWS = 20
_CURVES = (
    ("validation/top1", "Validation accuracy", "top-1"),
    ("validation/nll", "Validation loss", "negative log-likelihood, nats"),
)
_TERMS = (1, 3, 4, 5, 0, 2)
"""Looks of the loss and of the terms that are drawn beside it."""


def assign_looks(roles: Sequence[str]) -> dict[str, Look]:
    """The look of each model."""
    others = tuple(role for role in roles if role not in LABELS)
    return {role: look(role, others) for role in roles}


def _build_legend(
    found: dict[str, Look], names: dict[str, str] | None = None
) -> list[tuple[Markup, str]]:
    called = label_models(list(found))
    return [(each.draw_key(), (names or called).get(role, role)) for role, each in found.items()]


def plot_curves(run: RunPart) -> Iterator[Chart]:
    """Validation accuracy and loss of every training, then the terms of the student's
    loss.
    """
    for metric, title, label in _CURVES:
        found = [curve for curve in run.curves if curve.metric == metric]
        if found:
            marks = assign_looks([curve.role for curve in found])
            yield Chart(
                title,
                _plot_lines(
                    title,
                    label,
                    [
                        (label_models([each.role])[each.role], marks[each.role], each)
                        for each in found
                    ],
                ),
                _build_legend(marks),
            )
    found = [
        curve
        for curve in run.curves
        if curve.role == "student"
        and curve.metric.startswith("train/")
        and curve.metric != "train/lr"
    ]
    terms = sorted(found, key=lambda curve: curve.metric != "train/loss")[: len(_TERMS)]
    if terms:
        named = [
            (curve.metric.removeprefix("train/").replace("_", " "), Look(number), curve)
            for number, curve in zip(_TERMS, terms, strict=False)
        ]
        more = (
            f" and {len(terms) - 1} of its {len(found) - 1} terms"
            if len(found) > len(terms)
            else ""
        )
        title = f"The student's training loss{more}"
        yield Chart(
            title,
            _plot_lines(title, "mean of the epoch", named),
            [(each.draw_key(), name) for name, each, _ in named],
        )


def _plot_lines(title: str, label: str, found: Sequence[tuple[str, Look, Curve]]) -> Markup:
    series = [
        Series(
            name,
            mark,
            curve.epochs,
            values := [value or 0.0 for value in curve.values],
            titles=_describe_points(name, curve.epochs, values),
        )
        for name, mark, curve in found
    ]
    shares = label == "top-1"
    x = build_linear_axis(
        "epoch", [epoch for each in series for epoch in each.x], format_plain, least=0
    )
    y = build_linear_axis(
        label,
        [value for each in series for value in each.y],
        format_percent if shares else format_plain,
        least=0,
        most=1 if shares else None,
    )
    ends = "; ".join(
        f"{each.name}: {each.y[0]:.4g} in epoch {each.x[0]:g}, {each.y[-1]:.4g} in epoch"
        f" {each.x[-1]:g}"
        for each in series
    )
    return draw_plane(title, f"{label} by epoch. {ends}.", x, y, series, lines=True)


def _describe_points(name: str, x: Sequence[float], y: Sequence[float]) -> list[str]:
    return [f"{name}, epoch {epoch:g}: {value:.4g}" for epoch, value in zip(x, y, strict=True)]


def plot_front(points: Sequence[Point]) -> Iterator[Chart]:
    """Accuracy against what it costs; the dotted line joins those that no other beats
    in both.
    """
    costs = (
        ("images_per_second", "images per second", True),
        ("size_bytes", "size on disk, bytes", False),
        ("macs", "multiply-adds an image", False),
    )
    for key, label, more_is_better in costs:
        known = {
            (point.role, point.name, point.top1.value, getattr(point, key)): point
            for point in points
            if getattr(point, key)
        }
        found = [
            (point, float(getattr(point, key)))
            for point in known.values()
            if point.top1.value is not None
        ]
        if len({cost for _, cost in found}) > 1:
            yield _plot_front(
                f"Accuracy against {label.split(',')[0]}",
                label,
                found,
                more_is_better=more_is_better,
            )


def _plot_front(
    title: str, label: str, found: Sequence[tuple[Point, float]], *, more_is_better: bool
) -> Chart:
    marks = assign_looks(list(dict.fromkeys(point.role for point, _ in found)))
    few, series = len(found) <= 12, []
    for number, (role, mark) in enumerate(marks.items()):
        of = [(point, cost) for point, cost in found if point.role == role]
        told = [
            f"{point.run}: {point.name}, {100 * (point.top1.value or 0):.2f} %,"
            f" {format_count(round(cost))}"
            for point, cost in of
        ]
        aside = 7.0 * (number - (len(marks) - 1) / 2) if few else 0.0
        lows, highs = (
            [getattr(point.top1, end) for point, _ in of] if few else [] for end in ("low", "high")
        )
        series.append(
            Series(
                role,
                mark,
                [cost for _, cost in of],
                [point.top1.value or 0.0 for point, _ in of],
                lows,
                highs,
                told,
                aside,
            )
        )
    ends = [
        value
        for each in series
        for value in (*each.y, *each.lows, *each.highs)
        if value is not None
    ]
    x = build_log_axis(
        label,
        [cost for _, cost in found],
        lambda value: format_count(round(value)) if value >= 1 else format_plain(value),
    )
    y = build_linear_axis("top-1", ends, format_percent, least=0, most=1)
    sign = -1 if more_is_better else 1
    best = select_pareto_front(
        [(cost, point.top1.value or 0.0) for point, cost in found],
        cost=lambda each: sign * each[0],
        value=lambda each: each[1],
    )
    steps = [(place(x, y, *a), place(x, y, *b)) for a, b in pairwise(best)]
    below = Markup("").join(draw_line(*a, *b, "front") for a, b in steps)
    counted = "; ".join(f"{each.name}: {len(each.x)}" for each in series)
    svg = draw_plane(
        title,
        f"Top-1 accuracy against {label}, on a logarithmic axis. Points: {counted}.",
        x,
        y,
        series,
        lines=False,
        below=below,
    )
    names = {role: {point.name for point, _ in found if point.role == role} for role in marks}
    called = {
        role: (
            f"{label_models([role])[role]}{f' ({next(iter(names[role]))})' if len(names[role]) == 1 else ''}"
        )
        for role in marks
    }
    return Chart(
        title,
        svg,
        _build_legend(marks, called),
        "More is better on both axes." if more_is_better else "Up and left is better.",
    )


def plot_methods(part: ComparisonPart) -> Iterator[Chart]:
    """Each seed of each method, and their mean."""
    shown = [
        (method.label, found)
        for method in part.methods
        if (found := method.test if part.split == "test" else method.validation)
    ]
    shown = sorted(shown, key=lambda each: -(each[1].figure.value or 0.0))[:_ROWS]
    if not shown or all(len(found.values) == 1 for _, found in shown):
        return
    title, seed, mean = f"{part.split} accuracy of each seed", Look(3), Look(1)
    told = "; ".join(
        f"{label}: mean {100 * (found.figure.value or 0):.2f} % of {len(found.values)}"
        for label, found in shown
    )
    rows = [
        (
            shorten_label(label),
            [(seed, value) for value in found.values.values()]
            + [(mean, found.figure.value or 0.0)],
        )
        for label, found in shown
    ]
    yield Chart(
        title.capitalize(),
        draw_dumbbells(title, told, rows, "top-1"),
        [(seed.draw_key(), "one seed"), (mean.draw_key(), "mean")],
    )


def shorten_label(label: str) -> str:
    """What a method is called where there is little room: 'temperature=4' for
    'loss.soft_target.temperature=4'.
    """
    return ", ".join(
        part.split("=")[0].split(".")[-1] + part[len(part.split("=")[0]) :]
        for part in label.split(", ")
    )


def plot_classes(run: RunPart) -> Iterator[Chart]:
    """The classes that lost most."""
    rows = [
        (row.name, {role: value for role, value in row.accuracy.items() if value is not None})
        for row in run.classes[:_ROWS]
    ]
    roles = [
        role
        for role in (run.compared.reference, "labels_only", run.compared.candidate)
        if any(role in marks for _, marks in rows)
    ]
    if rows and roles:
        marks = assign_looks(roles)
        title = (
            f"Accuracy of the {len(rows)} classes that lost most"
            if len(run.classes) > _ROWS
            else "Accuracy of each class, largest loss first"
        )
        told = "; ".join(
            f"{name}: "
            + ", ".join(
                f"{role.replace('_', ' ')} {100 * value:.1f} %" for role, value in each.items()
            )
            for name, each in rows[:5]
        )
        shown = [
            (name, [(marks[role], each[role]) for role in roles if role in each])
            for name, each in rows
        ]
        yield Chart(
            title,
            draw_dumbbells(title, f"The first: {told}.", shown, "share of the class that is right"),
            _build_legend(marks),
        )


def plot_confusion(run: RunPart) -> Iterator[Chart]:
    """What the student, or a cascade, takes for what."""
    found = run.confusion
    if found is not None and found.counts is not None:
        shares = [[each / max(sum(row), 1) for each in row] for row in found.counts]
        strongest = "; ".join(
            f"{each.label} taken for {each.answer}: {100 * each.share:.1f} %"
            for each in found.strongest[:5]
        )
        title = f"What the {run.compared.candidate} takes for what"
        svg = draw_heatmap(
            title,
            f"Most frequent: {strongest}.",
            found.classes,
            shares,
            rows="label",
            columns=f"{run.compared.candidate} says",
        )
        yield Chart(
            title,
            svg,
            note=(
                "Percent of the images of each label. Gray: right. Color: errors, the strongest"
                " color is the most frequent."
            ),
        )


def plot_soft_labels(run: RunPart) -> Iterator[Chart]:
    """What the teacher finds probable on the images of each class: as it is, and at the
    temperatures that the student was taught with.
    """
    known, names = run.knowledge, run.confusion.classes if run.confusion else []
    if known is None:
        return
    for temperature, matrix in [
        (1.0, known.matrix),
        *((each.temperature, each.matrix) for each in known.softened),
    ]:
        if matrix is not None and len(matrix) == len(names) <= SEEN:
            title = f"What the teacher finds probable, temperature {temperature:g}"
            told = "; ".join(
                f"{pair.first} and {pair.second}: {100 * pair.probability:.1f} %"
                for pair in known.similar[:5]
            )
            svg = draw_heatmap(
                title,
                f"Most alike: {told}.",
                names,
                [[each or 0.0 for each in row] for row in matrix],
                rows="label",
                columns="teacher's mean",
            )
            yield Chart(
                title,
                svg,
                note=(
                    "Mean probability in percent, by label. Gray: of the label itself. Color: of"
                    " other classes."
                ),
            )


def plot_calibration(run: RunPart) -> Iterator[Chart]:
    """Does an answer of probability p prove right in a share p of cases?"""
    if not run.reliability:
        return
    marks = assign_looks([each.role for each in run.reliability])
    x = build_linear_axis("top-1 probability", [0.0, 1.0], format_percent, least=0, most=1)
    y = build_linear_axis("share that is right", [0.0, 1.0], format_percent, least=0, most=1)
    below = draw_line(*place(x, y, 0, 0), *place(x, y, 1, 1), "front")
    series = [
        Series(
            each.role,
            marks[each.role],
            [part.confidence for part in each.bins],
            [part.accuracy for part in each.bins],
            titles=[
                f"{each.role}: {part.count:,} images, {100 * part.confidence:.1f} % sure,"
                f" {100 * part.accuracy:.1f} % right"
                for part in each.bins
            ],
        )
        for each in run.reliability
    ]
    title = "Reliability"
    told = "; ".join(
        f"{each.role}: ECE {100 * each.ece.value:.2f} %"
        for each in run.reliability
        if each.ece.value is not None
    )
    svg = draw_plane(
        title,
        f"Share of right answers by top-1 probability, in bins. {told}.",
        x,
        y,
        series,
        lines=True,
        below=below,
    )
    note = (
        "Dotted: probabilities that mean what they say. Below it a model is too sure. Bins of few"
        " images scatter."
    )
    yield Chart(title, svg, _build_legend(marks), note)


def plot_distribution(example: Example) -> Markup:
    """What each model finds probable in one image."""
    marks = assign_looks([role for role in ("teacher", "student") if role in example.probabilities])
    if not marks or not example.classes:
        return Markup("")
    told = "; ".join(
        f"{role}: {100 * example.probabilities[role][0]:.0f} % {example.classes[0]}"
        for role in marks
    )
    return draw_bars(
        "Probabilities",
        f"{told} ...",
        example.classes,
        [(mark, example.probabilities[role]) for role, mark in marks.items()],
    )
