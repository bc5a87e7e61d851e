"""How a series looks: always a color, a dash and a mark together, so that none of them
has to be told apart alone.
"""

from dataclasses import dataclass

from markupsafe import Markup

from kd_app.metrics.model_pair import CASCADE, DISTILLATION

_FIXED = ("teacher", "student", "labels_only")
_ALIKE = dict(zip(CASCADE, DISTILLATION, strict=True))
"""The models of a cascade look like those of a run."""
_DASHES = ("", "", "6 3", "2 3", "9 3 2 3", "1 4")
_SHAPES = (
    "M-4-4H4V4H-4Z",  # square
    "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0-4.5 0Z",  # circle
    "M0-5.5L5 4H-5Z",  # triangle
    "M0-5.5L5.5 0L0 5.5L-5.5 0Z",  # diamond
    "M0 5.5L5-4H-5Z",  # triangle, point down
    "M-5-1.6H-1.6V-5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5Z",  # plus
)


@dataclass(frozen=True)
class Look:
    """Number of a color of the style sheet (``--c0`` ...), the dashes of its line, and
    the path of its mark.
    """

    number: int

    @property
    def dashes(self) -> str:
        """Value of ``stroke-dasharray``; empty for a line without gaps."""
        return _DASHES[self.number]

    def mark(self, x: float, y: float, title: str = "") -> Markup:
        """The mark at a place of the drawing, with what it says when it is pointed at."""
        told = Markup("<title>{}</title>").format(title) if title else ""
        return Markup(
            '<path class="mark c{}" d="{}" transform="translate({:.1f} {:.1f})">{}</path>'
        ).format(self.number, _SHAPES[self.number], x, y, told)

    def draw_key(self) -> Markup:
        """The look in small, for a legend; whoever reads aloud hears the name beside
        it.
        """
        line = Markup('<path class="line c{}" d="M1 7H33" stroke-dasharray="{}"/>').format(
            self.number, self.dashes
        )
        return Markup('<svg class="key" viewBox="0 0 34 14" aria-hidden="true">{}{}</svg>').format(
            line, self.mark(17, 7)
        )


def look(role: str, others: tuple[str, ...] = ()) -> Look:
    """The look of a model: the same for a role on every page; further controls in the
    order of `others`.
    """
    role = _ALIKE.get(role, role)
    if role in _FIXED:
        return Look(_FIXED.index(role))
    place = others.index(role) if role in others else 0
    return Look(len(_FIXED) + place % (len(_SHAPES) - len(_FIXED)))
