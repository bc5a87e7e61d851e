"""Tables about one run."""

from collections.abc import Mapping

from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.reporting.embedding_table import EmbeddingTable
from kd_app.reporting.html.run_section import label_models
from kd_app.reporting.html.schema import ClassPart, ExamplePart, RunPart
from kd_app.reporting.html.tables import (
    Cell,
    Table,
    build_cell,
    format_duration,
    format_number,
    format_short_percent,
    format_size,
)
from kd_app.reporting.knowledge_results import Knowledge
from kd_app.reporting.sentences import format_count

STEPS_NOTE = (
    "Points lost: accuracy of the previous step minus accuracy of this step, on the same validation"
    " images. A negative number is a gain. Latency: median of one image on one thread. All steps"
    " are timed in turns, so that ratios of latencies hold on a busy machine."
)


def build_embedding_table(content: EmbeddingTable) -> Table:
    """Build the table of the models' embeddings; intervals are in small print."""
    rows = [
        [Cell(name), *(_split_interval(text) for text in cells)] for name, cells in content.rows
    ]
    return Table("Models", ["", *content.heads], rows, frozenset({0}), frozenset())


def _split_interval(text: str) -> Cell:
    value, _, interval = text.partition(" (")
    return Cell(value, interval.removesuffix(")"))


def build_models_table(run: RunPart) -> Table:
    """Build a table with one column per model: name, metrics, cost and license."""
    models = run.models
    specs = [spec for spec in MODEL_METRICS if any(spec.name in model.metrics for model in models)]
    rows = [
        [Cell("model"), *(Cell(model.name) for model in models)],
        *(
            [
                Cell(spec.label),
                *(build_cell(model.metrics.get(spec.name), spec.format) for model in models),
            ]
            for spec in specs
        ),
        [Cell("parameters"), *(Cell(format_count(model.params)) for model in models)],
        [Cell("multiply-adds per image"), *(Cell(format_count(model.macs)) for model in models)],
        [Cell("size on disk"), *(Cell(format_size(model.size_bytes)) for model in models)],
        [
            Cell("images per second"),
            *(Cell(_format_speed(model.images_per_second)) for model in models),
        ],
        [Cell("license of the weights"), *(Cell(model.license) for model in models)],
    ]
    title = "The models"
    if run.confidence:
        title += (
            f" ({run.split} split, {run.num_images:,} images, {100 * run.confidence:g} % intervals)"
        )
    return Table(title, ["", *(model.label for model in models)], rows)


def _format_speed(images_per_second: float | None) -> str:
    return "unknown" if images_per_second is None else f"{images_per_second:,.0f}"


def build_pair_table(run: RunPart) -> Table:
    """Build the table that compares the student with its teacher and controls."""
    rows = [
        [Cell(part.name), build_cell(part.estimate, part.unit), Cell(part.meaning)]
        for part in run.pair
    ]
    candidate, reference = run.compared
    title = f"The {candidate} compared with the {reference} and controls"
    return Table(title, ["metric", "value", "meaning"], rows, frozenset({0, 2}))


def build_steps_table(run: RunPart) -> Table:
    """Build a table with one row per compression step, and one for the alternative."""
    rows = [
        [
            Cell(step.name),
            build_cell(step.top1),
            build_cell(step.lost, "points"),
            Cell(format_count(step.macs)),
            Cell(format_count(step.params)),
            Cell(format_size(step.size_bytes)),
            Cell("unknown" if step.latency_ms is None else f"{step.latency_ms:.3g} ms"),
        ]
        for step in run.steps
    ]
    columns = [
        "step",
        "top-1 accuracy",
        "points lost",
        "multiply-adds",
        "parameters",
        "size on disk",
        "latency",
    ]
    return Table("The steps, with 95 % intervals", columns, rows)


def build_classes_table(run: RunPart) -> Table:
    """Build a table with one row per class, the largest drop first."""
    candidate, reference = run.compared
    roles = [
        role
        for role in (reference, "labels_only", candidate)
        if any(role in row.accuracy for row in run.classes)
    ]
    labels = label_models(roles)
    columns = ["class", "images", *(labels[role] for role in roles)]
    has_reference = reference in roles
    if has_reference:
        columns += [f"{candidate} - {reference}", "negative flips", "positive flips"]
    rows = [_build_class_row(row, roles, has_reference) for row in run.classes]
    return Table("Accuracy of each class", columns, rows)


def _build_class_row(row: ClassPart, roles: list[str], has_reference: bool) -> list[Cell]:
    cells = [Cell(row.name), Cell(f"{row.support:,}"), *_build_accuracy_cells(row.accuracy, roles)]
    if has_reference:
        cells += [
            Cell("" if row.change is None else f"{100 * row.change:+.1f}"),
            Cell(format_short_percent(row.negative_flips)),
            Cell(format_short_percent(row.positive_flips)),
        ]
    return cells


def _build_accuracy_cells(accuracy: Mapping[str, float | None], roles: list[str]) -> list[Cell]:
    return [Cell(format_short_percent(accuracy.get(role))) for role in roles]


def build_confusions_table(run: RunPart) -> Table:
    """Build the table of the most frequent errors."""
    strongest = run.confusion.strongest if run.confusion else []
    candidate = run.compared.candidate
    rows = [
        [
            Cell(pair.label),
            Cell(pair.predicted),
            Cell(f"{pair.count:,}"),
            Cell(format_short_percent(pair.share)),
        ]
        for pair in strongest
    ]
    columns = ["label", f"{candidate}'s prediction", "images", "share of the label's images"]
    title = f"The {candidate}'s most frequent errors"
    return Table(title, columns, rows, frozenset({0, 1}))


def build_flips_tables(run: RunPart, titles: dict[str, str]) -> list[Table]:
    """Build one table of images for each reason to show images."""
    tables = []
    for why in dict.fromkeys(example.why for example in run.examples):
        examples = [example for example in run.examples if example.why == why]
        roles = [prediction.role for prediction in examples[0].predictions]
        labels = label_models(roles)
        columns = ["image", "label", *(f"{labels[role]}'s prediction" for role in roles)]
        title = f"{titles.get(why, why)}, the most confident first"
        rows = [_build_example_row(example) for example in examples]
        tables.append(Table(title, columns, rows, frozenset(range(len(columns)))))
    return tables


def _build_example_row(example: ExamplePart) -> list[Cell]:
    predictions = [
        Cell(prediction.predicted, format_short_percent(prediction.probability))
        for prediction in example.predictions
    ]
    return [Cell(example.file), Cell(example.label), *predictions]


def build_groups_table(run: RunPart) -> Table:
    """Build a table with one row per group of the data."""
    roles = list(dict.fromkeys(role for group in run.groups.values() for role in group.accuracy))
    labels = label_models(roles)
    rows = [
        [
            Cell(name),
            Cell(f"{group.num_images:,}"),
            *(build_cell(group.accuracy.get(role)) for role in roles),
            Cell(format_short_percent(group.agreement)),
        ]
        for name, group in run.groups.items()
    ]
    columns = ["group", "images", *(labels[role] for role in roles), "agreement"]
    return Table("Accuracy in each group of the data", columns, rows)


def build_robustness_table(run: RunPart) -> Table:
    """Build a table with one row per corruption and severity."""
    roles = list(dict.fromkeys(role for part in run.robustness for role in part.accuracy))
    labels = label_models(roles)
    rows = [
        [
            Cell(f"{part.corruption.replace('_', ' ')} {part.severity}"),
            Cell(f"{part.num_images:,}"),
            *_build_accuracy_cells(part.accuracy, roles),
            Cell(format_short_percent(part.agreement)),
        ]
        for part in run.robustness
    ]
    columns = ["corruption, severity", "images", *(labels[role] for role in roles), "agreement"]
    return Table("Accuracy under corruptions", columns, rows)


def build_stages_table(run: RunPart) -> Table:
    """Build a table of the duration of each stage."""
    stages = run.provenance.stages
    total = sum(seconds for _, seconds, _ in stages)
    rows = [
        [Cell(name), Cell(format_duration(seconds)), Cell(origin)]
        for name, seconds, origin in stages
    ]
    title = f"Stages ({format_duration(total)} in total)"
    return Table(title, ["stage", "time", "in this run"], rows, frozenset({0, 2}))


def build_entropy_table(knowledge: Knowledge) -> Table:
    """Build the table of the entropy of the soft labels at each temperature."""
    rows = [
        [
            Cell(f"{softness.temperature:g}"),
            Cell("" if softness.mean_nats is None else format_number(softness.mean_nats)),
            Cell(format_short_percent(softness.of_uniform)),
            Cell(format_short_percent(softness.beyond_top)),
        ]
        for softness in knowledge.entropy
    ]
    title = (
        f"Entropy of the teacher's soft labels ({knowledge.num_images:,} {knowledge.split} images)"
    )
    columns = [
        "temperature",
        "mean entropy, nats",
        "share of the maximum",
        "probability outside the top class",
    ]
    return Table(title, columns, rows)


def build_similarity_tables(knowledge: Knowledge) -> list[Table]:
    """Build a table of the most similar classes for each temperature."""
    similar = [
        (1.0, knowledge.similar),
        *((similarity.temperature, similarity.similar) for similarity in knowledge.softened),
    ]
    columns = ["class", "similar class", "mean probability of one on the other's images"]
    return [
        Table(
            f"Most similar classes according to the teacher, temperature {temperature:g}",
            columns,
            [
                [Cell(pair.first), Cell(pair.second), Cell(format_short_percent(pair.probability))]
                for pair in pairs
            ],
            frozenset({0, 1}),
        )
        for temperature, pairs in similar
        if pairs
    ]
