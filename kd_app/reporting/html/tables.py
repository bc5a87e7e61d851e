"""Cells and tables of a report, for the page and for Markdown."""

from collections.abc import Callable
from dataclasses import dataclass

from kd_app.metrics.spec import Format
from kd_app.reporting.metrics import Estimate
from kd_app.reporting.sentences import format_count, format_interval, format_percent, format_points

OUTCOMES = {"kept": "✓ kept", "lost": "✗ lost", "not shown": "? not shown"}


@dataclass(frozen=True)
class Cell:
    """Text of a cell, and a detail in small print below."""

    text: str
    detail: str = ""

    @property
    def long(self) -> bool:
        """Whether a long word may be broken in a narrow column."""
        return max(map(len, self.text.split()), default=0) > 20

    @property
    def short(self) -> bool:
        """Whether the text stays on one line in a narrow column."""
        return len(self.text) <= 10


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    text_columns: numbers of the columns that hold text; the others hold numbers and are
    aligned to the right · marked_rows: numbers of the highlighted rows.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    text_columns: frozenset[int] = frozenset({0})
    marked_rows: frozenset[int] = frozenset()


def build_cell(estimate: Estimate | None, unit: Format = "percent") -> Cell:
    """Build the cell of a metric with its interval."""
    if estimate is None or estimate.value is None:
        return Cell("")
    low, high = estimate.low, estimate.high
    if unit == "percent":
        return Cell(format_percent(estimate.value), format_interval(low, high))
    format_value: Callable[[float], str] = format_points if unit == "points" else format_number
    interval = ""
    if low is not None and high is not None:
        interval = f"{format_value(low)} to {format_value(high)}"
    return Cell(format_value(estimate.value), interval)


def build_text_table(title: str, rows: dict[str, str]) -> Table:
    """Build a table of settings and their values."""
    return Table(
        title,
        ["setting", "value"],
        [[Cell(name), Cell(value)] for name, value in rows.items()],
        frozenset({0, 1}),
    )


def format_number(value: float) -> str:
    """'0.123'."""
    return f"{value:.3f}"


def format_short_percent(value: float | None) -> str:
    """'12.3 %'; empty for None."""
    return "" if value is None else f"{100 * value:.1f} %"


def format_size(size: int | None) -> str:
    """'10.2 MB'."""
    return "unknown" if size is None else f"{format_count(size)}B"


def format_duration(seconds: float) -> str:
    """'28 min', '12 s'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
