"""Charts as static SVG. Colors come from the style sheet of the page; every chart has a
title and a text description for screen readers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from kd_app.reporting.html.palette import SeriesStyle

WIDTH, HEIGHT = 400, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 22, 10, 42
_DARK = 0.7
"""Color strength of a heat map cell above which the number in the cell is drawn in the
light ink. At this strength both inks of the style sheet are readable.
"""


@dataclass(frozen=True)
class Series:
    """Points of one style.

    lows, highs: interval bounds of `y` · tooltips: one for each point · offset: shift
    to the right, in drawing units, so that points at the same place stay visible.
    """

    name: str
    style: SeriesStyle
    x: Sequence[float]
    y: Sequence[float]
    lows: Sequence[float | None] = ()
    highs: Sequence[float | None] = ()
    tooltips: Sequence[str] = ()
    offset: float = 0.0


@dataclass(frozen=True)
class Chart:
    """A drawing with caption, legend (pairs of key and name) and a note below."""

    title: str
    svg: Markup
    legend: list[tuple[Markup, str]] = field(default_factory=list)
    note: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Axis:
    """Label, range and ticks of one axis. log: logarithmic scale."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    format_tick: Callable[[float], str]
    log: bool = False

    def normalize(self, value: float) -> float:
        """Return the position of `value` on the axis, in 0..1."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)


def build_linear_axis(
    label: str,
    values: Sequence[float],
    format_tick: Callable[[float], str],
    *,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Axis:
    """Build an axis with 6 % of space around `values`, and about four ticks at
    multiples of 1, 2 or 5 times a power of ten. The axis does not extend beyond
    `minimum` and `maximum`, unless the values do.
    """
    least, greatest = min(values, default=0.0), max(values, default=1.0)
    space = 0.06 * (greatest - least) or max(abs(greatest) * 0.05, 1e-3)
    low, high = least - space, greatest + space
    if minimum is not None and least >= minimum:
        low = max(low, minimum)
    if maximum is not None and greatest <= maximum:
        high = min(high, maximum)
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [round(number * step, 12) for number in range(first, last + 1)]
    return Axis(label, low, high, ticks, format_tick)


def build_log_axis(
    label: str, values: Sequence[float], format_tick: Callable[[float], str]
) -> Axis:
    """Build a logarithmic axis for positive values, with ticks at 1, 2 and 5 times
    powers of ten, or at powers of ten alone where these suffice.
    """
    low, high = min(values) / 1.35, max(values) * 1.35
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [
        10.0**power * factor
        for power in powers
        for factor in (1, 2, 5)
        if low <= 10.0**power * factor <= high
    ]
    if len(ticks) > 5:
        whole = [tick for tick in ticks if math.isclose(math.log10(tick) % 1, 0, abs_tol=1e-9)]
        ticks = whole[:: math.ceil(len(whole) / 5)] if len(whole) > 1 else ticks[::2]
    return Axis(label, low, high, ticks, format_tick, log=True)


def locate(x: Axis, y: Axis, x_value: float, y_value: float) -> tuple[float, float]:
    """Return the drawing coordinates of a point."""
    return (
        _LEFT + x.normalize(x_value) * (WIDTH - _LEFT - _RIGHT),
        HEIGHT - _BOTTOM - y.normalize(y_value) * (HEIGHT - _TOP - _BOTTOM),
    )


def draw_plane(
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    lines: bool,
    background: Markup | str = "",
) -> Markup:
    """Draw series between two axes.

    lines: connect the points of a series · background: SVG behind the points, in
    drawing coordinates.
    """
    points = Markup("").join(part for one in series for part in _draw_series(one, x, y, lines))
    content = Markup("").join([_draw_grid(x, y), Markup(background), points])
    return draw_frame(title, description, WIDTH, HEIGHT, content)


def draw_frame(
    title: str, description: str, width: float, height: float, content: Markup
) -> Markup:
    """Wrap `content` in a scalable SVG; screen readers read title and description."""
    return Markup(
        '<svg class="chart" viewBox="0 0 {:g} {:g}"'
        ' role="img"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(width, height, title, description, content)


def draw_text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "middle",
    css_class: str = "",
    rotated: bool = False,
) -> Markup:
    """Draw one line of text. rotated: from bottom to top."""
    rotation = Markup(' transform="rotate(-90 {:.1f} {:.1f})"').format(x, y) if rotated else ""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}"{}>{}</text>').format(
        x, y, anchor, css_class, rotation, text
    )


def draw_line(x1: float, y1: float, x2: float, y2: float, css_class: str) -> Markup:
    """Draw a straight line."""
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(
        css_class, x1, y1, x2, y2
    )


def _draw_grid(x: Axis, y: Axis) -> Markup:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = [draw_line(_LEFT, bottom, right, bottom, "axis")]
    for tick in y.ticks:
        _, tick_y = locate(x, y, x.low, tick)
        parts.append(draw_line(_LEFT, tick_y, right, tick_y, "grid"))
        parts.append(draw_text(_LEFT - 6, tick_y + 4, y.format_tick(tick), anchor="end"))
    for tick in x.ticks:
        tick_x, _ = locate(x, y, tick, y.low)
        parts.append(draw_line(tick_x, bottom, tick_x, bottom + 4, "axis"))
        parts.append(draw_text(tick_x, bottom + 17, x.format_tick(tick)))
    parts.append(draw_text((_LEFT + right) / 2, HEIGHT - 6, x.label, css_class="label"))
    parts.append(draw_text(11, (_TOP + bottom) / 2, y.label, css_class="label", rotated=True))
    return Markup("").join(parts)


def _draw_series(series: Series, x: Axis, y: Axis, lines: bool) -> Iterator[Markup]:
    points = []
    for x_value, y_value in zip(series.x, series.y, strict=True):
        point_x, point_y = locate(x, y, x_value, y_value)
        points.append((point_x + series.offset, point_y))
    if lines and len(points) > 1:
        path = "M" + "L".join(f"{point_x:.1f} {point_y:.1f}" for point_x, point_y in points)
        yield Markup('<path class="line c{}" d="{}" stroke-dasharray="{}"/>').format(
            series.style.number, path, series.style.dashes
        )
    for number, (low, high) in enumerate(zip(series.lows, series.highs, strict=True)):
        if low is not None and high is not None:
            point_x = points[number][0]
            _, low_y = locate(x, y, x.low, low)
            _, high_y = locate(x, y, x.low, high)
            yield draw_line(point_x, low_y, point_x, high_y, f"whisker c{series.style.number}")
    # At most 12 markers on a line: more would touch each other and hide the line.
    every = math.ceil(len(points) / 12) if lines else 1
    for number, (point_x, point_y) in enumerate(points):
        if number % every == 0 or number == len(points) - 1:
            tooltip = series.tooltips[number] if series.tooltips else ""
            yield series.style.draw_marker(point_x, point_y, tooltip)


def draw_dumbbells(
    title: str,
    description: str,
    rows: Sequence[tuple[str, Sequence[tuple[SeriesStyle, float]]]],
    label: str,
) -> Markup:
    """Draw one row per name: markers at the values (0..1), and a line from the smallest
    to the largest value.
    """
    step, left, width = 22, 130, WIDTH
    values = [value for _, markers in rows for _, value in markers]
    axis = build_linear_axis(label, values, format_percent, minimum=0, maximum=1)
    bottom = 8 + step * len(rows)

    def scale_x(value: float) -> float:
        return left + axis.normalize(value) * (width - left - _RIGHT)

    parts = [draw_line(scale_x(tick), 4, scale_x(tick), bottom, "grid") for tick in axis.ticks]
    parts += [draw_text(scale_x(tick), bottom + 14, format_percent(tick)) for tick in axis.ticks]
    parts.append(draw_text((left + width - _RIGHT) / 2, bottom + 32, label, css_class="label"))
    for number, (name, markers) in enumerate(rows):
        middle = 8 + step * (number + 0.5)
        parts.append(draw_text(left - 10, middle + 4, shorten_name(name), anchor="end"))
        reach = [scale_x(value) for _, value in markers]
        parts.append(draw_line(min(reach), middle, max(reach), middle, "between"))
        parts += [
            style.draw_marker(scale_x(value), middle, f"{name}: {100 * value:.1f} %")
            for style, value in markers
        ]
    return draw_frame(title, description, width, bottom + 40, Markup("").join(parts))


def draw_heatmap(
    title: str,
    description: str,
    names: Sequence[str],
    shares: Sequence[Sequence[float]],
    *,
    rows: str,
    columns: str,
) -> Markup:
    """Draw a square matrix of shares (0..1): the diagonal in gray, other cells in a
    color whose strength is relative to the largest of them. Large cells show percents.

    rows, columns: labels of the two axes.
    """
    left, top = 104, 98
    size = WIDTH - left - 30
    cell = size / len(names)
    off_diagonal = (share for i, row in enumerate(shares) for j, share in enumerate(row) if i != j)
    largest = max(off_diagonal, default=0.0)
    parts = [
        draw_text(left + size / 2, 12, columns, css_class="label"),
        draw_text(11, top + size / 2, rows, css_class="label", rotated=True),
    ]
    every = math.ceil(11 / cell)
    for number, name in enumerate(names):
        if number % every == 0:
            middle, short = (number + 0.5) * cell, shorten_name(name, 11)
            parts.append(draw_text(left - 5, top + middle + 4, short, anchor="end"))
            parts.append(
                Markup('<text transform="translate({:.1f} {:.1f}) rotate(-60)">{}</text>').format(
                    left + middle + 3, top - 5, short
                )
            )
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            if i == j or share > 0:
                box = (left + j * cell, top + i * cell, cell)
                strength = None if i == j else share / largest
                parts += _draw_cell(box, share, strength, f"{names[i]} → {names[j]}")
    parts.append(
        Markup('<rect class="box" x="{}" y="{}" width="{:.1f}" height="{:.1f}"/>').format(
            left, top, size, size
        )
    )
    return draw_frame(title, description, WIDTH, top + size + 6, Markup("").join(parts))


def _draw_cell(
    box: tuple[float, float, float], share: float, strength: float | None, name: str
) -> list[Markup]:
    """Draw a cell at `box` (x, y, size). strength: None on the diagonal."""
    x, y, size = box
    if strength is None:
        attributes = Markup('class="same"')
    else:
        attributes = Markup('class="hot" fill-opacity="{:.2f}"').format(max(strength, 0.04))
    square = Markup(
        '<rect {} x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}: {:.1f}'
        " %</title></rect>"
    ).format(attributes, x, y, size, size, name, 100 * share)
    number = f"{100 * share:.0f}"
    if size < 20 or number == "0":
        return [square]
    ink = "in-hot" if strength is not None and strength > _DARK else "in"
    return [square, draw_text(x + size / 2, y + size / 2 + 4, number, css_class=ink)]


def draw_bars(
    title: str,
    description: str,
    names: Sequence[str],
    series: Sequence[tuple[SeriesStyle, Sequence[float]]],
) -> Markup:
    """Draw a group of bars for each name: one share (0..1) of each series."""
    left, width, thickness = 88, 230, 8
    group = thickness * len(series)
    step, parts = group + 8, []
    for number, name in enumerate(names):
        top = 2 + number * step
        short = shorten_name(name, 12)
        parts.append(draw_text(left - 5, top + group / 2 + 4, short, anchor="end"))
        for row, (style, shares) in enumerate(series):
            y, length = top + row * thickness, max(shares[number] * (width - left - 34), 0.5)
            parts.append(
                Markup(
                    '<rect class="bar c{}" x="{}" y="{:.1f}" width="{:.1f}" height="{}"/>'
                ).format(style.number, left, y, length, thickness - 1)
            )
            percent = f"{100 * shares[number]:.0f}"
            x, baseline = left + length + 3, y + thickness - 0.5
            parts.append(draw_text(x, baseline, percent, anchor="start", css_class="tiny"))
    return draw_frame(title, description, width, len(names) * step, Markup("").join(parts))


def shorten_name(name: str, longest: int = 17) -> str:
    """Return `name` on one line, cut to `longest` characters."""
    flat = " ".join(name.split())
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


def format_percent(value: float) -> str:
    """'90 %', '99.5 %'."""
    return f"{100 * value:.4g} %"


def format_plain(value: float) -> str:
    """'0.25'."""
    return f"{value:.4g}"
