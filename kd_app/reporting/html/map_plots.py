"""Maps of held-out images, one for each model, with the same colors."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from markupsafe import Markup

from kd_app.reporting.embedding_map import MapRow
from kd_app.reporting.embedding_table import name_model
from kd_app.reporting.html.charts import (
    HEIGHT,
    WIDTH,
    Axis,
    Chart,
    Series,
    draw_plane,
    format_percent,
)
from kd_app.reporting.html.palette import SeriesStyle

NOTE: Final = (
    "Held-out images in the two main directions of each model's embeddings (PCA), those of the"
    " students turned onto the teacher's. A plane shows only the stated share of the variance:"
    " images that are near each other on it need not be near each other in the embedding."
)
_COLORS: Final = 5
_OTHERS: Final = SeriesStyle(5, size=0.45)
"""The gray of the images of rare classes, or without a label."""
_STYLES: Final = tuple(
    SeriesStyle(number % _COLORS, shift=number // _COLORS, size=0.6)
    for number in range(2 * _COLORS)
)
"""Five colors, each with two markers."""
_SPACE: Final = 1.06


def plot_maps(rows: Sequence[MapRow]) -> Iterator[Chart]:
    """Plot the map of each model; the most frequent classes have a style."""
    styles = _assign_styles(rows)
    for role in dict.fromkeys(row.role for row in rows):
        own = [row for row in rows if row.role == role]
        name = name_model(role)
        title = f"{name[:1].upper()}{name[1:]}: {100 * own[0].share:.1f} % of the variance"
        series = [
            _build_series(label, style, [row for row in own if _find(row, styles) == label])
            for label, style in styles.items()
        ]
        x, y = _build_axes([row.x for row in own], [row.y for row in own])
        description = f"{len(own)} held-out images in the two main directions of the embedding."
        legend = [(_draw_key(style), label) for label, style in styles.items() if label]
        yield Chart(title, draw_plane(title, description, x, y, series, lines=False), legend)


def _assign_styles(rows: Sequence[MapRow]) -> dict[str, SeriesStyle]:
    """The style of each name in the legend; '' without any label. Gray comes first, as
    it is drawn behind the others.
    """
    counts = Counter(row.label for row in rows if row.label is not None)
    if not counts:
        return {"": SeriesStyle(0, shift=1, size=0.6)}
    named = sorted(label for label, _ in counts.most_common(len(_STYLES)))
    styles = dict(zip(named, _STYLES, strict=False))
    rest = [row.label for row in rows if row.label not in styles]
    if not rest:
        return styles
    return {"no label" if set(rest) == {None} else "others": _OTHERS, **styles}


def _find(row: MapRow, styles: dict[str, SeriesStyle]) -> str:
    """The name of an image's style."""
    return row.label if row.label is not None and row.label in styles else next(iter(styles))


def _build_series(name: str, style: SeriesStyle, rows: Sequence[MapRow]) -> Series:
    tooltips = [f"{row.file}: {row.label}" if row.label else row.file for row in rows]
    return Series(name, style, [row.x for row in rows], [row.y for row in rows], tooltips=tooltips)


def _build_axes(x: Sequence[float], y: Sequence[float]) -> tuple[Axis, Axis]:
    """Axes of one scale, without ticks: the numbers have no meaning."""
    middles = [(min(values) + max(values)) / 2 for values in (x, y)]
    scale = max((max(x) - min(x)) / WIDTH, (max(y) - min(y)) / HEIGHT, 1e-6) * _SPACE
    labels = ("first direction", "second direction")
    first, second = (
        Axis(label, middle - scale * length / 2, middle + scale * length / 2, (), format_percent)
        for label, middle, length in zip(labels, middles, (WIDTH, HEIGHT), strict=True)
    )
    return first, second


def _draw_key(style: SeriesStyle) -> Markup:
    return Markup('<svg class="key" viewBox="0 0 34 14" aria-hidden="true">{}</svg>').format(
        style.draw_marker(24, 7)
    )
