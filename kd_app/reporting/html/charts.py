"""Drawings as SVG: static, drawn in the colors of the page's style sheet, with a title
and a description for whoever does not see them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from kd_app.reporting.html.palette import Look

WIDTH, HEIGHT = 400, 270
_DARK = 0.7
"""Strength of a cell's color above which the number in it is written in the other ink:
there both inks of the style sheet can be read.
"""
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 22, 10, 42


@dataclass(frozen=True)
class Series:
    """Points of one look. lows, highs: ends of the intervals of y · titles: what each
    point says when it is pointed at. aside: how far right of its place it is drawn, so
    that it does not hide another at the same place.
    """

    name: str
    look: Look
    x: Sequence[float]
    y: Sequence[float]
    lows: Sequence[float | None] = ()
    highs: Sequence[float | None] = ()
    titles: Sequence[str] = ()
    aside: float = 0.0


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption, its legend, and a note below."""

    title: str
    svg: Markup
    legend: list[tuple[Markup, str]] = field(default_factory=list)
    note: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis: what it is of, where it begins and ends, its ticks and how they are
    written, and whether equal steps are equal ratios.
    """

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    write: Callable[[float], str]
    log: bool = False

    def share(self, value: float) -> float:
        """Where on the axis a value lies: 0 at its begin, 1 at its end."""
        low, high, value = (
            math.log10(each) if self.log else each for each in (self.low, self.high, value)
        )
        return (value - low) / (high - low)


def build_linear_axis(
    label: str,
    values: Sequence[float],
    write: Callable[[float], str],
    *,
    least: float | None = None,
    most: float | None = None,
) -> Axis:
    """An axis that holds all values with a little room, from tick to tick of 1, 2 or 5
    times a power of ten.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.06 * (high - low) or max(abs(high) * 0.05, 1e-3)
    low, high = low - room, high + room
    low, high = (
        max(low, least) if least is not None else low,
        (min(high, most) if most is not None else high),
    )
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks = [
        round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)
    ]
    return Axis(label, low, high, ticks, write)


def build_log_axis(label: str, values: Sequence[float], write: Callable[[float], str]) -> Axis:
    """An axis of ratios, for values above 0; ticks at 1, 2 and 5 times powers of ten,
    or at the powers alone where that is enough.
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
    return Axis(label, low, high, ticks, write, log=True)


def draw_plane(
    title: str,
    told: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    lines: bool,
    below: Markup | str = "",
) -> Markup:
    """Points of some series between two axes, joined by lines or not; `below` is drawn
    under them, in the same places.
    """
    drawn = Markup("").join(
        part for each in series for part in _draw_series(each, x, y, lines=lines)
    )
    return draw_frame(
        title, told, WIDTH, HEIGHT, Markup("").join([_draw_grid(x, y), Markup(below), drawn])
    )


def place(x: Axis, y: Axis, right: float, up: float) -> tuple[float, float]:
    """Where in a drawing two values lie."""
    return _LEFT + x.share(right) * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - y.share(up) * (
        HEIGHT - _TOP - _BOTTOM
    )


def draw_frame(title: str, told: str, width: float, height: float, content: Markup) -> Markup:
    """An SVG of this size, which grows and shrinks with its place; its title is its
    name for whoever hears the page.
    """
    return Markup(
        '<svg class="chart" viewBox="0 0 {:g} {:g}"'
        ' role="img"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(width, height, title, told, content)


def draw_text(
    x: float, y: float, said: str, *, anchor: str = "middle", look: str = "", turned: bool = False
) -> Markup:
    """A line of text."""
    turn = Markup(' transform="rotate(-90 {:.1f} {:.1f})"').format(x, y) if turned else ""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}"{}>{}</text>').format(
        x, y, anchor, look, turn, said
    )


def draw_line(x1: float, y1: float, x2: float, y2: float, look: str) -> Markup:
    """A straight line."""
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(
        look, x1, y1, x2, y2
    )


def _draw_grid(x: Axis, y: Axis) -> Markup:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = [draw_line(_LEFT, bottom, right, bottom, "axis")]
    for tick in y.ticks:
        _, up = place(x, y, x.low, tick)
        parts += [
            draw_line(_LEFT, up, right, up, "grid"),
            draw_text(_LEFT - 6, up + 4, y.write(tick), anchor="end"),
        ]
    for tick in x.ticks:
        along, _ = place(x, y, tick, y.low)
        parts += [
            draw_line(along, bottom, along, bottom + 4, "axis"),
            draw_text(along, bottom + 17, x.write(tick)),
        ]
    parts.append(draw_text((_LEFT + right) / 2, HEIGHT - 6, x.label, look="label"))
    parts.append(draw_text(11, (_TOP + bottom) / 2, y.label, look="label", turned=True))
    return Markup("").join(parts)


def _draw_series(series: Series, x: Axis, y: Axis, *, lines: bool) -> Iterator[Markup]:
    places = [
        (along + series.aside, up)
        for along, up in (place(x, y, *point) for point in zip(series.x, series.y, strict=True))
    ]
    if lines and len(places) > 1:
        path = "M" + "L".join(f"{along:.1f} {up:.1f}" for along, up in places)
        yield Markup('<path class="line c{}" d="{}" stroke-dasharray="{}"/>').format(
            series.look.number, path, series.look.dashes
        )
    for number, (low, high) in enumerate(zip(series.lows, series.highs, strict=True)):
        if low is not None and high is not None:
            along = places[number][0]
            yield draw_line(
                along,
                place(x, y, x.low, low)[1],
                along,
                place(x, y, x.low, high)[1],
                f"whisker c{series.look.number}",
            )
    every = math.ceil(len(places) / 12) if lines else 1  # marks that touch each other hide the line
    for number, (along, up) in enumerate(places):
        if number % every == 0 or number == len(places) - 1:
            yield series.look.mark(along, up, series.titles[number] if series.titles else "")


def draw_dumbbells(
    title: str, told: str, rows: Sequence[tuple[str, Sequence[tuple[Look, float]]]], label: str
) -> Markup:
    """A row for each name, with marks at shares (0..1) and a line from the least to the
    largest.
    """
    step, left, width = 22, 130, WIDTH
    values = [value for _, marks in rows for _, value in marks]
    axis = build_linear_axis(label, values, format_percent, least=0, most=1)
    bottom = 8 + step * len(rows)

    def along(value: float) -> float:
        return left + axis.share(value) * (width - left - _RIGHT)

    parts = [draw_line(along(tick), 4, along(tick), bottom, "grid") for tick in axis.ticks]
    parts += [draw_text(along(tick), bottom + 14, format_percent(tick)) for tick in axis.ticks]
    parts.append(draw_text((left + width - _RIGHT) / 2, bottom + 32, label, look="label"))
    for number, (name, marks) in enumerate(rows):
        middle = 8 + step * (number + 0.5)
        parts.append(draw_text(left - 10, middle + 4, shorten_name(name), anchor="end"))
        reach = [along(value) for _, value in marks]
        parts.append(draw_line(min(reach), middle, max(reach), middle, "between"))
        parts += [
            look.mark(along(value), middle, f"{name}: {100 * value:.1f} %") for look, value in marks
        ]
    return draw_frame(title, told, width, bottom + 40, Markup("").join(parts))


def draw_heatmap(
    title: str,
    told: str,
    names: Sequence[str],
    shares: Sequence[Sequence[float]],
    *,
    rows: str,
    columns: str,
) -> Markup:
    """A square of cells: the diagonal in gray, what is beside it in color, the stronger
    the nearer to the largest. Percent where it fits.
    """
    count = len(names)
    left, top, size = 92, 84, WIDTH - 92 - 30
    cell, most = (
        size / count,
        max(
            (share for i, row in enumerate(shares) for j, share in enumerate(row) if i != j),
            default=0.0,
        ),
    )
    parts = [
        draw_text(left + size / 2, 12, columns, look="label"),
        draw_text(11, top + size / 2, rows, look="label", turned=True),
    ]
    every = math.ceil(11 / cell)
    for number, name in enumerate(names):
        if number % every == 0:
            middle = (number + 0.5) * cell
            parts.append(
                draw_text(left - 5, top + middle + 4, shorten_name(name, 11), anchor="end")
            )
            parts.append(
                Markup('<text transform="translate({:.1f} {:.1f}) rotate(-60)">{}</text>').format(
                    left + middle + 3, top - 5, shorten_name(name, 11)
                )
            )
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            if i == j or share > 0:
                strength = None if i == j else share / most
                parts += _draw_cell(
                    (left + j * cell, top + i * cell, cell),
                    share,
                    strength,
                    f"{names[i]} → {names[j]}",
                )
    parts.append(
        Markup('<rect class="box" x="{}" y="{}" width="{:.1f}" height="{:.1f}"/>').format(
            left, top, size, size
        )
    )
    return draw_frame(title, told, WIDTH, top + size + 6, Markup("").join(parts))


def _draw_cell(
    at: tuple[float, float, float], share: float, strength: float | None, name: str
) -> list[Markup]:
    """A cell at (x, y, size); its strength is None on the diagonal."""
    x, y, size = at
    look = (
        Markup('class="same"')
        if strength is None
        else Markup('class="hot" fill-opacity="{:.2f}"').format(max(strength, 0.04))
    )
    box = Markup(
        '<rect {} x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}: {:.1f}'
        " %</title></rect>"
    ).format(look, x, y, size, size, name, 100 * share)
    number = f"{100 * share:.0f}"
    if size < 20 or number == "0":
        return [box]
    return [
        box,
        draw_text(
            x + size / 2,
            y + size / 2 + 4,
            number,
            look="in-hot" if strength is not None and strength > _DARK else "in",
        ),
    ]


def draw_bars(
    title: str, told: str, names: Sequence[str], looks: Sequence[tuple[Look, Sequence[float]]]
) -> Markup:
    """For each name a bar for each look, of a share of 1."""
    left, width, thick = 84, 230, 8
    step, parts = thick * len(looks) + 8, []
    for number, name in enumerate(names):
        top = 2 + number * step
        parts.append(
            draw_text(
                left - 5, top + thick * len(looks) / 2 + 4, shorten_name(name, 13), anchor="end"
            )
        )
        for row, (look, shares) in enumerate(looks):
            y, length = top + row * thick, max(shares[number] * (width - left - 34), 0.5)
            parts.append(
                Markup(
                    '<rect class="bar c{}" x="{}" y="{:.1f}" width="{:.1f}" height="{}"/>'
                ).format(look.number, left, y, length, thick - 1)
            )
            parts.append(
                draw_text(
                    left + length + 3,
                    y + thick - 0.5,
                    f"{100 * shares[number]:.0f}",
                    anchor="start",
                    look="tiny",
                )
            )
    return draw_frame(title, told, width, len(names) * step, Markup("").join(parts))


def shorten_name(name: str, most: int = 17) -> str:
    """A name on one line, with its end cut off where it is too long."""
    flat = " ".join(name.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def format_percent(value: float) -> str:
    """'90 %', '99.5 %'."""
    return f"{100 * value:.4g} %"


def format_plain(value: float) -> str:
    """'0.25'."""
    return f"{value:.4g}"
