"""The tables of a report, for the page and for the text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.spec import Format
from kd_app.reporting.html.run_section import label_models
from kd_app.reporting.html.schema import (
    ComparisonPart,
    OverSeeds,
    Report,
    RunPart,
    RunRow,
)
from kd_app.reporting.results import Estimate, Knowledge
from kd_app.reporting.sentences import count, format_interval, format_percent, format_points

LOST = (
    "What each step lost beside the one before it, on the same validation images; a minus is a"
    " gain. Latency: the median of one image with one thread, all in turns, so that its ratios hold"
    " on a busy machine."
)
OUTCOMES = {"kept": "✓ kept", "lost": "✗ lost", "not shown": "? not shown"}


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, and in small below it."""

    text: str
    small: str = ""

    @property
    def long(self) -> bool:
        """Whether a word in it has to be broken where there is little room."""
        return max(map(len, self.text.split()), default=0) > 20

    @property
    def short(self) -> bool:
        """Whether it stands on one line however little room there is."""
        return len(self.text) <= 10


@dataclass(frozen=True)
class Table:
    """Rows begin with what they are about. words: the columns, by number, that hold
    words; all others hold numbers.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    words: frozenset[int] = frozenset({0})
    marked: frozenset[int] = frozenset()


def build_cell(found: Estimate | None, unit: Format = "percent") -> Cell:
    """A figure with its interval."""
    if found is None or found.value is None:
        return Cell("")
    if unit == "percent":
        return Cell(format_percent(found.value), format_interval(found.low, found.high))
    write: Callable[[float], str] = format_points if unit == "points" else number
    bounds = (
        f"{write(found.low)} to {write(found.high)}"
        if found.low is not None and found.high is not None
        else ""
    )
    return Cell(write(found.value), bounds)


def number(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}"


def build_models_table(run: RunPart) -> Table:
    """A column a model: what it is, what it costs, how good it is."""
    order = run.models
    specs = [spec for spec in MODEL_METRICS if any(spec.name in model.figures for model in order)]
    rows = [
        [Cell("model"), *(Cell(model.name) for model in order)],
        *(
            [
                Cell(spec.label),
                *(build_cell(model.figures.get(spec.name), spec.format) for model in order),
            ]
            for spec in specs
        ),
        [Cell("parameters"), *(Cell(count(model.params)) for model in order)],
        [Cell("multiply-adds an image"), *(Cell(count(model.macs)) for model in order)],
        [Cell("size on disk"), *(Cell(_format_bytes(model.size_bytes)) for model in order)],
        [
            Cell("images per second"),
            *(Cell(_format_whole(model.images_per_second)) for model in order),
        ],
        [Cell("license of the weights"), *(Cell(model.license) for model in order)],
    ]
    about = (
        f"{run.split} split, {run.num_images:,} images; below each figure its"
        f" {100 * run.confidence:g} % interval"
        if run.confidence
        else ""
    )
    return Table(
        f"The models ({about})" if about else "The models",
        ["", *(model.label for model in order)],
        rows,
    )


def _format_bytes(size: int | None) -> str:
    return f"{count(size)}B" if size is not None else "unknown"


def _format_whole(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def build_pair_table(run: RunPart) -> Table:
    """What compares the student with teacher and control."""
    rows = [
        [Cell(each.name), build_cell(each.figure, each.unit), Cell(each.meaning)]
        for each in run.pair
    ]
    return Table(
        "What was kept, what was lost", ["", "figure", "what it is"], rows, frozenset({0, 2})
    )


def build_steps_table(run: RunPart) -> Table:
    """A row a step of a compression, and one for the alternative."""
    rows = [
        [
            Cell(step.name),
            build_cell(step.top1),
            build_cell(step.lost, "points"),
            Cell(count(step.macs)),
            Cell(count(step.params)),
            Cell(_format_bytes(step.size_bytes)),
            Cell("unknown" if step.latency_ms is None else f"{step.latency_ms:.3g} ms"),
        ]
        for step in run.steps
    ]
    heads = [
        "step",
        "top-1 accuracy",
        "points lost",
        "multiply-adds",
        "parameters",
        "size on disk",
        "latency",
    ]
    return Table("The steps; below each figure its 95 % interval", heads, rows)


def build_classes_table(run: RunPart, most: int | None = None) -> Table:
    """A row a class, the largest loss first."""
    roles = [
        role
        for role in (run.compared.reference, "labels_only", run.compared.candidate)
        if any(role in row.accuracy for row in run.classes)
    ]
    called = label_models(roles)
    paired = run.compared.reference in roles
    rows = [
        [
            Cell(row.name),
            Cell(f"{row.support:,}"),
            *(Cell(_format_percent(row.accuracy.get(role))) for role in roles),
            *(
                [
                    Cell(_format_points(row.change)),
                    Cell(_format_percent(row.negative_flips)),
                    Cell(_format_percent(row.positive_flips)),
                ]
                if paired
                else []
            ),
        ]
        for row in run.classes[:most]
    ]
    difference = " - ".join(run.compared)
    more = [difference, "negative flips", "positive flips"] if paired else []
    return Table(
        "Accuracy of each class",
        ["class", "images", *(called[role] for role in roles), *more],
        rows,
    )


def _format_percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _format_points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}"


def build_confusions_table(run: RunPart) -> Table:
    """The most frequent errors."""
    strongest = run.confusion.strongest if run.confusion else []
    rows = [
        [
            Cell(each.label),
            Cell(each.answer),
            Cell(f"{each.count:,}"),
            Cell(_format_percent(each.share)),
        ]
        for each in strongest
    ]
    return Table(
        f"The {run.compared.candidate}'s most frequent errors",
        ["label", f"{run.compared.candidate} says", "images", "of the label's"],
        rows,
        frozenset({0, 1}),
    )


def build_flips_tables(run: RunPart, titles: dict[str, str]) -> list[Table]:
    """For each reason to show images, the images."""
    found = []
    for why in dict.fromkeys(each.why for each in run.examples):
        of = [each for each in run.examples if each.why == why]
        rows = [
            [
                Cell(each.file),
                Cell(each.label),
                *(Cell(said.said, _format_percent(said.probability)) for said in each.answers),
            ]
            for each in of
        ]
        heads = [f"{label_models([said.role])[said.role]} says" for said in of[0].answers]
        found.append(
            Table(
                f"{titles.get(why, why)}, the surest first",
                ["image", "label", *heads],
                rows,
                frozenset(range(2 + len(heads))),
            )
        )
    return found


def build_runs_table(report: Report) -> Table:
    """A row a run, the best on validation first."""
    shown = report.rows
    seeds = len({row.seed for row in shown}) > 1
    varied = list(dict.fromkeys(key for row in shown for key in row.differs))
    found = [
        [
            Cell(f"★ {row.name}" if row.best else row.name),
            *([Cell("" if row.seed is None else str(row.seed))] if seeds else []),
            Cell(
                ", ".join(
                    f"{shorten_key(key, varied)}={row.differs[key]}"
                    for key in varied
                    if key in row.differs
                )
            ),
            build_cell(row.validation),
            build_cell(row.test),
            build_cell(row.teacher),
            build_cell(row.gain, "points"),
            Cell(": ".join(filter(None, (_format_outcome(row), row.reason)))),
        ]
        for row in shown
    ]
    heads = [
        "run",
        *(["seed"] if seeds else []),
        "what differs",
        "validation top-1",
        "test top-1",
        "teacher",
        "gain",
        "verdict",
    ]
    words = frozenset({0, heads.index("what differs"), len(heads) - 1})
    marked = frozenset(number for number, row in enumerate(shown) if row.best)
    best = (
        " (★: chosen on validation, so the one whose test figure is to be quoted)" if marked else ""
    )
    return Table(f"The runs, the best on validation first{best}", heads, found, words, marked)


def build_methods_table(part: ComparisonPart, several: bool) -> Table:
    """A row a method, in the order of validation accuracy."""
    ordered = sorted(
        part.methods,
        key=lambda method: -(method.validation.figure.value or 0.0) if method.validation else 1.0,
    )
    rows = [
        [
            Cell(f"★ {method.label}" if method.label == part.winner else method.label),
            Cell(", ".join(map(str, method.runs))),
            _build_seeds_cell(method.validation),
            _build_seeds_cell(method.test),
            _build_seeds_cell(method.gain, "points"),
            _build_seeds_cell(method.to_teacher, "points"),
            _build_seeds_cell(method.to_baseline, "points"),
            Cell(
                ""
                if method.to_baseline is None or method.to_baseline.corrected is None
                else f"{method.to_baseline.corrected:.2g}"
            ),
        ]
        for method in ordered
    ]
    heads = [
        "method",
        "seeds",
        "validation top-1",
        "test top-1",
        "minus labels only",
        "minus teacher",
        "minus baseline",
        f"p, {part.correction}",
    ]
    on = f" on {part.data}" if several else ""
    title = (
        f"The methods{on}: means over seeds, t-intervals at {100 * part.confidence:g}"
        f" %{' (★: chosen on validation)' * (part.winner is not None)}"
    )
    marked = frozenset(
        number for number, method in enumerate(ordered) if method.label == part.winner
    )
    return Table(title, heads, rows, frozenset({0}), marked)


def _build_seeds_cell(found: OverSeeds | None, unit: Format = "percent") -> Cell:
    return build_cell(found.figure if found else None, unit)


def build_seeds_table(part: ComparisonPart, several: bool) -> Table:
    """A row a method, a column a seed."""
    shown = [
        (method.label, found)
        for method in part.methods
        if (found := method.test if part.split == "test" else method.validation)
    ]
    numbers = sorted({seed for _, found in shown for seed in found.values})
    rows = [
        [
            Cell(label),
            *(
                Cell(format_percent(found.values[seed]) if seed in found.values else "")
                for seed in numbers
            ),
        ]
        for label, found in shown
    ]
    on = f" on {part.data}" if several else ""
    return Table(
        f"Top-1 accuracy of each seed{on}, {part.split} split",
        ["method", *(f"seed {seed}" for seed in numbers)],
        rows,
    )


def _format_outcome(row: RunRow) -> str:
    return OUTCOMES.get(row.outcome or "", "") if row.status == "finished" else row.status


def shorten_key(key: str, among: Sequence[str]) -> str:
    """The last part of a dotted key, or as many as tell it from the others."""
    parts = key.split(".")
    for length in range(1, len(parts) + 1):
        end = ".".join(parts[-length:])
        if sum(other == end or other.endswith(f".{end}") for other in among) == 1:
            return end
    return key


def build_pairs_table(title: str, found: dict[str, str]) -> Table:
    """Names and values."""
    return Table(
        title,
        ["setting", "value"],
        [[Cell(key), Cell(value)] for key, value in found.items()],
        frozenset({0, 1}),
    )


def build_stages_table(run: RunPart) -> Table:
    """What took how long."""
    total = sum(seconds for _, seconds, _ in run.made.stages)
    found = [
        [Cell(name), Cell(format_duration(seconds)), Cell(how)]
        for name, seconds, how in run.made.stages
    ]
    return Table(
        f"Stages ({format_duration(total)} in all)",
        ["stage", "time", "by this run"],
        found,
        frozenset({0, 2}),
    )


def format_duration(seconds: float) -> str:
    """'28 min', '12 s'."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def build_softness_table(known: Knowledge) -> Table:
    """How much the teacher says beyond its top class."""
    rows = [
        [
            Cell(f"{each.temperature:g}"),
            Cell(_format_three_digits(each.mean_nats)),
            Cell(_format_percent(each.of_uniform)),
            Cell(_format_percent(each.beyond_top)),
        ]
        for each in known.entropy
    ]
    title = (
        f"How much the teacher says beyond its top class ({known.num_images:,} {known.split}"
        " images)"
    )
    return Table(
        title,
        [
            "temperature",
            "mean entropy, nats",
            "of the largest possible",
            "probability beside the top class",
        ],
        rows,
    )


def _format_three_digits(value: float | None) -> str:
    return "" if value is None else number(value)


def build_similarity_tables(known: Knowledge) -> list[Table]:
    """The classes that the teacher finds most alike."""
    found = [(1.0, known.similar), *((each.temperature, each.similar) for each in known.softened)]
    return [
        Table(
            f"Classes that the teacher finds most alike, temperature {temperature:g}",
            ["class", "and", "mean probability of either on the other's images"],
            [
                [Cell(pair.first), Cell(pair.second), Cell(_format_percent(pair.probability))]
                for pair in pairs
            ],
            frozenset({0, 1}),
        )
        for temperature, pairs in found
        if pairs
    ]


def build_groups_table(run: RunPart) -> Table:
    """A row a group of the data."""
    roles = list(dict.fromkeys(role for group in run.groups.values() for role in group.accuracy))
    found = [
        [
            Cell(name),
            Cell(f"{group.num_images:,}"),
            *(build_cell(group.accuracy.get(role)) for role in roles),
            Cell(_format_percent(group.agreement)),
        ]
        for name, group in run.groups.items()
    ]
    return Table(
        "Accuracy in each group of the data",
        ["group", "images", *(label_models(roles)[role] for role in roles), "agreement"],
        found,
    )


def build_robustness_table(run: RunPart) -> Table:
    """A row a corruption and severity."""
    roles = list(dict.fromkeys(role for each in run.robustness for role in each.accuracy))
    found = [
        [
            Cell(f"{each.corruption.replace('_', ' ')} {each.severity}"),
            Cell(f"{each.num_images:,}"),
            *(Cell(_format_percent(each.accuracy.get(role))) for role in roles),
            Cell(_format_percent(each.agreement)),
        ]
        for each in run.robustness
    ]
    heads = [
        "corruption, severity",
        "images",
        *(label_models(roles)[role] for role in roles),
        "agreement",
    ]
    return Table("Accuracy under corruptions", heads, found)
