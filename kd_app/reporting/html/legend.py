"""Styles and legends of the models in a chart."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from kd_app.reporting.html.palette import SeriesStyle, select_style
from kd_app.reporting.html.run_section import LABELS, label_models


def assign_styles(roles: Sequence[str]) -> dict[str, SeriesStyle]:
    """Return the style of each model."""
    controls = tuple(role for role in roles if role not in LABELS)
    return {role: select_style(role, controls) for role in roles}


def build_legend(
    styles: Mapping[str, SeriesStyle], names: Mapping[str, str] | None = None
) -> list[tuple[Markup, str]]:
    """Build pairs of key and name for `Chart.legend`. names: instead of the labels of
    the roles.
    """
    names = names or label_models(list(styles))
    return [(style.draw_key(), names.get(role, role)) for role, style in styles.items()]
