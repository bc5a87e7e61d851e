"""Styles of data series. Each style combines a color, a dash pattern and a marker, so
that color is never the only difference between two series.
"""

from dataclasses import dataclass

from markupsafe import Markup

from kd_app.metrics.model_pair import CASCADE, DISTILLATION

_FIXED_ROLES = ("teacher", "student", "labels_only")
_CASCADE_ROLES = dict(zip(CASCADE, DISTILLATION, strict=True))
"""The models of a cascade have the styles of student and teacher."""
_DASHES = ("", "", "6 3", "2 3", "9 3 2 3", "1 4")
_MARKERS = (
    "M-4-4H4V4H-4Z",  # square
    "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0-4.5 0Z",  # circle
    "M0-5.5L5 4H-5Z",  # triangle
    "M0-5.5L5.5 0L0 5.5L-5.5 0Z",  # diamond
    "M0 5.5L5-4H-5Z",  # triangle, point down
    "M-5-1.6H-1.6V-5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5Z",  # plus
)


@dataclass(frozen=True)
class SeriesStyle:
    """Style of a series: `number` selects the color of the style sheet (``--c0`` ...),
    the dash pattern and the marker. shift: to another marker of the same color. size:
    of the marker, relative to the usual one.
    """

    number: int
    shift: int = 0
    size: float = 1.0

    @property
    def dashes(self) -> str:
        """Value of ``stroke-dasharray``; empty for a solid line."""
        return _DASHES[self.number]

    def draw_marker(self, x: float, y: float, tooltip: str = "") -> Markup:
        """Draw the marker at ``(x, y)`` of the drawing."""
        title = Markup("<title>{}</title>").format(tooltip) if tooltip else ""
        marker = _MARKERS[(self.number + self.shift) % len(_MARKERS)]
        scale = "" if self.size == 1 else f" scale({self.size:g})"
        path = '<path class="mark c{}" d="{}" transform="translate({:.1f} {:.1f}){}">{}</path>'
        return Markup(path).format(self.number, marker, x, y, scale, title)

    def draw_key(self) -> Markup:
        """Draw the key of a legend. The key is hidden from screen readers, which read
        the name of the series instead.
        """
        line = Markup('<path class="line c{}" d="M1 7H33" stroke-dasharray="{}"/>').format(
            self.number, self.dashes
        )
        return Markup('<svg class="key" viewBox="0 0 34 14" aria-hidden="true">{}{}</svg>').format(
            line, self.draw_marker(17, 7)
        )


def select_style(role: str, others: tuple[str, ...] = ()) -> SeriesStyle:
    """Return the style of a model. Teacher, student and labels-only have fixed styles;
    further controls get the next ones, in the order of `others`.
    """
    role = _CASCADE_ROLES.get(role, role)
    if role in _FIXED_ROLES:
        return SeriesStyle(_FIXED_ROLES.index(role))
    position = others.index(role) if role in others else 0
    num_fixed = len(_FIXED_ROLES)
    return SeriesStyle(num_fixed + position % (len(_MARKERS) - num_fixed))
