"""Tables that compare runs and methods."""

from collections.abc import Sequence

from kd_app.metrics.spec import Format
from kd_app.reporting.html.schema import (
    ComparisonPart,
    MethodPart,
    Report,
    RunRow,
    SeedStatistics,
)
from kd_app.reporting.html.tables import OUTCOMES, Cell, Table, build_cell
from kd_app.reporting.sentences import format_percent


def build_runs_table(report: Report) -> Table:
    """Build a table with one row per run, the best on validation first."""
    runs = report.rows
    has_seeds = len({run.seed for run in runs}) > 1
    metrics = {part.metric for part in report.comparisons}
    metric = metrics.pop() if len(metrics) == 1 else "metric"
    varied = list(dict.fromkeys(key for run in runs for key in run.differs))
    columns = [
        "run",
        *(["seed"] if has_seeds else []),
        "settings that differ",
        f"validation {metric}",
        f"test {metric}",
        "teacher",
        "gain",
        "verdict",
    ]
    text_columns = frozenset({0, columns.index("settings that differ"), len(columns) - 1})
    marked = frozenset(number for number, run in enumerate(runs) if run.best)
    note = " (★: selected on validation; quote its metric on test)" if marked else ""
    return Table(
        f"The runs, the best on validation first{note}",
        columns,
        [_build_run_row(run, varied, has_seeds) for run in runs],
        text_columns,
        marked,
    )


def _build_run_row(run: RunRow, varied: Sequence[str], has_seeds: bool) -> list[Cell]:
    settings = ", ".join(
        f"{shorten_key(key, varied)}={run.differs[key]}" for key in varied if key in run.differs
    )
    outcome = OUTCOMES.get(run.outcome or "", "") if run.status == "finished" else run.status
    return [
        Cell(f"★ {run.name}" if run.best else run.name),
        *([Cell("" if run.seed is None else str(run.seed))] if has_seeds else []),
        Cell(settings),
        build_cell(run.validation),
        build_cell(run.test),
        build_cell(run.teacher),
        build_cell(run.gain, "points"),
        Cell(": ".join(filter(None, (outcome, run.reason)))),
    ]


def shorten_key(key: str, keys: Sequence[str]) -> str:
    """Return the shortest ending of a dotted key that is unique among `keys`."""
    parts = key.split(".")
    for length in range(1, len(parts) + 1):
        end = ".".join(parts[-length:])
        if sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
            return end
    return key


def build_methods_table(part: ComparisonPart, name_data: bool) -> Table:
    """Build a table with one row per method, the best on validation first.

    name_data: name the data set in the title.
    """
    methods = sorted(part.methods, key=_rank_method)
    columns = [
        "method",
        "seeds",
        f"validation {part.metric}",
        f"test {part.metric}",
        f"minus {part.control}",
        *(["minus teacher"] if part.has_teacher else []),
        "minus baseline",
        f"p, {part.correction}",
    ]
    data = f" on {part.data}" if name_data else ""
    note = " (★: selected on validation)" if part.winner is not None else ""
    title = f"The methods{data}: means over seeds, t-intervals at {100 * part.confidence:g} %{note}"
    marked = frozenset(
        number for number, method in enumerate(methods) if method.label == part.winner
    )
    rows = [_build_method_row(method, part) for method in methods]
    return Table(title, columns, rows, frozenset({0}), marked)


def _rank_method(method: MethodPart) -> float:
    return -(method.validation.estimate.value or 0.0) if method.validation else 1.0


def _build_method_row(method: MethodPart, part: ComparisonPart) -> list[Cell]:
    corrected = method.to_baseline.corrected if method.to_baseline else None
    return [
        Cell(f"★ {method.label}" if method.label == part.winner else method.label),
        Cell(", ".join(map(str, method.runs))),
        _build_seeds_cell(method.validation),
        _build_seeds_cell(method.test),
        _build_seeds_cell(method.gain, "points"),
        *([_build_seeds_cell(method.to_teacher, "points")] if part.has_teacher else []),
        _build_seeds_cell(method.to_baseline, "points"),
        Cell("" if corrected is None else f"{corrected:.2g}"),
    ]


def _build_seeds_cell(statistics: SeedStatistics | None, unit: Format = "percent") -> Cell:
    return build_cell(statistics.estimate if statistics else None, unit)


def list_accuracies(part: ComparisonPart) -> list[tuple[str, SeedStatistics]]:
    """List label and values of each method on the split of the comparison."""
    accuracies = [
        (method.label, method.test if part.split == "test" else method.validation)
        for method in part.methods
    ]
    return [(label, statistics) for label, statistics in accuracies if statistics is not None]


def build_seeds_table(part: ComparisonPart, name_data: bool) -> Table:
    """Build a table with one row per method and one column per seed.

    name_data: name the data set in the title.
    """
    accuracies = list_accuracies(part)
    seeds = sorted({seed for _, statistics in accuracies for seed in statistics.values})
    rows = [
        [Cell(label), *(_build_seed_cell(statistics, seed) for seed in seeds)]
        for label, statistics in accuracies
    ]
    data = f" on {part.data}" if name_data else ""
    title = f"{part.metric.capitalize()} of each seed{data}, {part.split} split"
    return Table(title, ["method", *(f"seed {seed}" for seed in seeds)], rows)


def _build_seed_cell(statistics: SeedStatistics, seed: int) -> Cell:
    return Cell(format_percent(statistics.values[seed]) if seed in statistics.values else "")
