"""Charts about one run."""

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from kd_app.reporting.html.charts import (
    Chart,
    Series,
    build_linear_axis,
    draw_bars,
    draw_dumbbells,
    draw_heatmap,
    draw_line,
    draw_plane,
    format_percent,
    format_plain,
    locate,
)
from kd_app.reporting.html.from_predictions import MAX_MATRIX_CLASSES
from kd_app.reporting.html.legend import assign_styles, build_legend
from kd_app.reporting.html.palette import SeriesStyle
from kd_app.reporting.html.run_section import label_models
from kd_app.reporting.html.schema import Curve, ExamplePart, RunPart

_MAX_CLASSES = 20
_CURVES = (
    ("validation/top1", "Validation accuracy", "top-1"),
    ("validation/nll", "Validation loss", "negative log-likelihood, nats"),
    ("validation/overlap", "Neighbors in common with the teacher on validation", "share"),
    ("validation/purity", "Labels of the nearest images on validation", "purity"),
    ("validation/distance", "Distance to the teacher on validation", "1 - cosine"),
    ("validation/effective_rank", "Effective rank of the embedding on validation", "directions"),
)
_LOSS_STYLES = (1, 3, 4, 5, 0, 2)
"""Styles of the total loss and of its terms."""


def plot_curves(run: RunPart) -> Iterator[Chart]:
    """Plot validation accuracy and loss of every training, and the student's training
    loss with up to five of its terms.
    """
    for metric, title, label in _CURVES:
        curves = [curve for curve in run.curves if curve.metric == metric]
        if curves:
            roles = [curve.role for curve in curves]
            styles, labels = assign_styles(roles), label_models(roles)
            named = [(labels[curve.role], styles[curve.role], curve) for curve in curves]
            yield Chart(title, _plot_lines(title, label, named), build_legend(styles))
    losses = [
        curve
        for curve in run.curves
        if curve.role == "student"
        and curve.metric.startswith("train/")
        and curve.metric != "train/lr"
    ]
    losses.sort(key=lambda curve: curve.metric != "train/loss")
    if losses:
        yield _plot_losses(losses)


def _plot_losses(losses: Sequence[Curve]) -> Chart:
    """Plot the total loss, the first of `losses`, and its terms."""
    drawn = losses[: len(_LOSS_STYLES)]
    title = "The student's training loss"
    if len(losses) > len(drawn):
        title += f" and {len(drawn) - 1} of its {len(losses) - 1} terms"
    named = [
        (curve.metric.removeprefix("train/").replace("_", " "), SeriesStyle(number), curve)
        for number, curve in zip(_LOSS_STYLES, drawn, strict=False)
    ]
    legend = [(style.draw_key(), name) for name, style, _ in named]
    return Chart(title, _plot_lines(title, "mean of the epoch", named), legend)


def _plot_lines(title: str, label: str, curves: Sequence[tuple[str, SeriesStyle, Curve]]) -> Markup:
    series = [_build_series(name, style, curve) for name, style, curve in curves]
    is_accuracy = label == "top-1"
    epochs = [epoch for one in series for epoch in one.x]
    x = build_linear_axis("epoch", epochs, format_plain, minimum=0)
    y = build_linear_axis(
        label,
        [value for one in series for value in one.y],
        format_percent if is_accuracy else format_plain,
        minimum=0,
        maximum=1 if is_accuracy else None,
    )
    ends = "; ".join(
        f"{one.name}: {one.y[0]:.4g} in epoch {one.x[0]:g}, {one.y[-1]:.4g} in epoch {one.x[-1]:g}"
        for one in series
    )
    return draw_plane(title, f"{label} by epoch. {ends}.", x, y, series, lines=True)


def _build_series(name: str, style: SeriesStyle, curve: Curve) -> Series:
    values = [value or 0.0 for value in curve.values]
    tooltips = [
        f"{name}, epoch {epoch:g}: {value:.4g}"
        for epoch, value in zip(curve.epochs, values, strict=True)
    ]
    return Series(name, style, curve.epochs, values, tooltips=tooltips)


def plot_classes(run: RunPart) -> Iterator[Chart]:
    """Plot the accuracy of the classes whose accuracy dropped most."""
    candidate, reference = run.compared
    rows = [
        (row.name, {role: value for role, value in row.accuracy.items() if value is not None})
        for row in run.classes[:_MAX_CLASSES]
    ]
    roles = [
        role
        for role in (reference, "labels_only", candidate)
        if any(role in accuracy for _, accuracy in rows)
    ]
    if not rows or not roles:
        return
    styles = assign_styles(roles)
    title = (
        f"Accuracy of the {len(rows)} classes with the largest drops"
        if len(run.classes) > _MAX_CLASSES
        else "Accuracy of each class, largest drop first"
    )
    first_rows = "; ".join(_describe_class(name, accuracy) for name, accuracy in rows[:5])
    markers = [
        (name, [(styles[role], accuracy[role]) for role in roles if role in accuracy])
        for name, accuracy in rows
    ]
    svg = draw_dumbbells(title, f"The first: {first_rows}.", markers, "accuracy of the class")
    yield Chart(title, svg, build_legend(styles))


def _describe_class(name: str, accuracy: dict[str, float]) -> str:
    values = (f"{role.replace('_', ' ')} {100 * value:.1f} %" for role, value in accuracy.items())
    return f"{name}: {', '.join(values)}"


def plot_confusion(run: RunPart) -> Iterator[Chart]:
    """Plot the confusion matrix of the student, or of a cascade."""
    confusion, candidate = run.confusion, run.compared.candidate
    if confusion is None or confusion.counts is None:
        return
    shares = [[count / max(sum(row), 1) for count in row] for row in confusion.counts]
    strongest = "; ".join(
        f"{pair.label} predicted as {pair.predicted}: {100 * pair.share:.1f} %"
        for pair in confusion.strongest[:5]
    )
    title = f"Confusion matrix of the {candidate}"
    svg = draw_heatmap(
        title,
        f"Most frequent: {strongest}.",
        confusion.classes,
        shares,
        rows="label",
        columns=f"{candidate}'s prediction",
    )
    note = (
        "Percent of the images of each label. Gray: correct. Color: errors; the strongest color is"
        " the most frequent error."
    )
    yield Chart(title, svg, note=note)


def plot_soft_labels(run: RunPart) -> Iterator[Chart]:
    """Plot the teacher's mean probabilities on the images of each class, at temperature
    1 and at the temperatures of the student's losses.
    """
    knowledge, names = run.knowledge, run.confusion.classes if run.confusion else []
    if knowledge is None:
        return
    strongest = "; ".join(
        f"{pair.first} and {pair.second}: {100 * pair.probability:.1f} %"
        for pair in knowledge.similar[:5]
    )
    note = (
        "Mean probability in percent, by label. Gray: the label itself. Color: the other classes."
    )
    matrices = [
        (1.0, knowledge.matrix),
        *((similarity.temperature, similarity.matrix) for similarity in knowledge.softened),
    ]
    for temperature, matrix in matrices:
        if matrix is None or len(matrix) != len(names) or len(names) > MAX_MATRIX_CLASSES:
            continue
        title = f"Mean probabilities of the teacher, temperature {temperature:g}"
        svg = draw_heatmap(
            title,
            f"Most similar: {strongest}.",
            names,
            [[value or 0.0 for value in row] for row in matrix],
            rows="label",
            columns="teacher's mean probability",
        )
        yield Chart(title, svg, note=note)


def plot_calibration(run: RunPart) -> Iterator[Chart]:
    """Plot the reliability diagram: accuracy against top-1 probability, in bins."""
    if not run.reliability:
        return
    styles = assign_styles([part.role for part in run.reliability])
    x = build_linear_axis("top-1 probability", [0.0, 1.0], format_percent, minimum=0, maximum=1)
    y = build_linear_axis("accuracy", [0.0, 1.0], format_percent, minimum=0, maximum=1)
    series = [
        Series(
            part.role,
            styles[part.role],
            [one.confidence for one in part.bins],
            [one.accuracy for one in part.bins],
            tooltips=[
                f"{part.role}: {one.count:,} images, mean probability {100 * one.confidence:.1f} %,"
                f" accuracy {100 * one.accuracy:.1f} %"
                for one in part.bins
            ],
        )
        for part in run.reliability
    ]
    errors = "; ".join(
        f"{part.role}: ECE {100 * part.ece.value:.2f} %"
        for part in run.reliability
        if part.ece.value is not None
    )
    title = "Reliability"
    svg = draw_plane(
        title,
        f"Accuracy by top-1 probability, in bins. {errors}.",
        x,
        y,
        series,
        lines=True,
        background=draw_line(*locate(x, y, 0, 0), *locate(x, y, 1, 1), "front"),
    )
    note = (
        "Dotted: perfect calibration. Below the dotted line a model is overconfident. Bins with few"
        " images are noisy."
    )
    yield Chart(title, svg, build_legend(styles), note)


def plot_distribution(example: ExamplePart) -> Markup:
    """Plot the class probabilities of one image by each model."""
    roles = [role for role in ("teacher", "student") if role in example.probabilities]
    if not roles or not example.classes:
        return Markup("")
    first_class = "; ".join(
        f"{role}: {100 * example.probabilities[role][0]:.0f} % {example.classes[0]}"
        for role in roles
    )
    return draw_bars(
        "Probabilities",
        f"{first_class} ...",
        example.classes,
        [(style, example.probabilities[role]) for role, style in assign_styles(roles).items()],
    )
