"""The console table of cached stages."""

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from kd_app.stages import StoredStage

_MAX_RUNS = 3


@dataclass(frozen=True)
class StageRow:
    """A stage, its age in days, the runs that refer to it, and why it may not be freed
    (None: it may).
    """

    stage: StoredStage
    days: float
    runs: tuple[Path, ...]
    kept_because: str | None


def build_stages_table(rows: list[StageRow]) -> Table:
    """Each stage with size, age, state and runs, and the sum of all sizes."""
    total = sum(row.stage.size_bytes for row in rows)
    table = Table(
        title=f"{len(rows)} stages, {format_size(total)}", title_justify="left", box=box.SIMPLE
    )
    for name in ("stage", "size", "days", "state", "runs"):
        table.add_column(name, justify="right" if name in ("size", "days") else "left")
    for row in rows:
        table.add_row(
            row.stage.name,
            format_size(row.stage.size_bytes),
            f"{row.days:.1f}",
            "finished" if row.stage.is_finished else "unfinished",
            Text(_list_runs(row)),
        )
    return table


def _list_runs(row: StageRow) -> str:
    if not row.runs:
        return row.kept_because or "none"
    more = f" and {len(row.runs) - _MAX_RUNS} more" if len(row.runs) > _MAX_RUNS else ""
    return ", ".join(str(run) for run in row.runs[:_MAX_RUNS]) + more


def format_size(size: int) -> str:
    """A size in MiB."""
    return f"{size / 2**20:,.1f} MiB"
