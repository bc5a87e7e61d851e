"""Sections of a page in their order: texts, tables, charts and example images. Empty
sections are left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from markupsafe import Markup

from kd_app.reporting.html import (
    cascade,
    comparison_plots,
    comparison_tables,
    family_view,
    map_plots,
    run_plots,
    run_tables,
)
from kd_app.reporting.html.charts import Chart
from kd_app.reporting.html.schema import ExamplePart, FamilyPart, QueryPart, Report, RunPart
from kd_app.reporting.html.tables import Table, build_text_table

_EXAMPLE_TITLES = {
    "negative_flip": "The {reference} is right, the {candidate} wrong",
    "positive_flip": "The {reference} is wrong, the {candidate} right",
    "most_different": "The largest differences between the models",
    "similar_pair": "Classes that are similar according to the teacher",
    "typical": "Typical images",
}
_NEIGHBORS = (
    "Held-out images, and the nearest training images by each model. The first half are the images"
    " on which student and teacher disagree most, the others are spread over all."
)
_MAX_OPEN = 8
"""Number of images of a kind that are visible without a click."""


@dataclass(frozen=True)
class Card:
    """One image and a chart of the class probabilities by each model."""

    example: ExamplePart
    bars: Markup


@dataclass(frozen=True)
class Cards:
    """Images of one kind. more: visible after a click."""

    title: str
    examples: list[Card]
    more: list[Card]


@dataclass(frozen=True)
class Section:
    """A part of the page. items: bullet list · folded: tables visible after a click."""

    name: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    cards: list[Cards] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)
    queries: list[QueryPart] = field(default_factory=list)

    @property
    def has_content(self) -> bool:
        """Whether the section contains anything."""
        content = (self.paragraphs, self.items, self.tables, self.charts, self.cards, self.folded)
        return any(content) or bool(self.queries)


def build_overview(report: Report) -> list[Section]:
    """Build the sections that compare several runs. One run has no overview."""
    if len(report.rows) == 1:
        return []
    sections = [
        _build_methods(report),
        Section("runs", "The runs", tables=[comparison_tables.build_runs_table(report)]),
        _build_front(report),
        *_iterate_families(report),
    ]
    return [section for section in sections if section.has_content]


def _build_methods(report: Report) -> Section:
    comparisons = report.comparisons
    name_data = len(comparisons) > 1
    return Section(
        "methods",
        "Which method?",
        items=[
            f"{part.data}: {sentence}" if name_data else sentence
            for part in comparisons
            for sentence in part.sentences
        ],
        tables=[
            comparison_tables.build_methods_table(part, name_data)
            for part in comparisons
            if part.methods
        ],
        charts=[chart for part in comparisons for chart in comparison_plots.plot_methods(part)],
        folded=[
            comparison_tables.build_seeds_table(part, name_data)
            for part in comparisons
            if any(len(method.runs) > 1 for method in part.methods)
        ],
    )


def _build_front(report: Report) -> Section:
    charts = list(comparison_plots.plot_front(report.points))
    return Section("front", "Accuracy against cost", charts=charts)


def _iterate_families(report: Report) -> Iterator[Section]:
    """Yield a section about exported files for each family."""
    if len(report.families) == 1:
        yield _build_family(report.families[0], "family", "Exported files")
        return
    for number, family in enumerate(report.families, 1):
        title = f"Exported files: {family.data}, {family.device}"
        yield _build_family(family, f"family-{number}", title)


def _build_family(family: FamilyPart, name: str, title: str) -> Section:
    has_tiers = any(part.tier for part in family.files)
    return Section(
        name,
        title,
        paragraphs=[choice.sentence for choice in family.choices],
        items=family.basis,
        tables=[family_view.build_tiers_table(family)] if has_tiers else [],
        charts=list(family_view.plot_front(family)),
        folded=[family_view.build_files_table(family)],
    )


def build_sections(report: Report, run: RunPart) -> list[Section]:
    """Build the sections about one run."""
    return [section for section in _iterate_sections(report, run) if section.has_content]


def _iterate_sections(report: Report, run: RunPart) -> Iterator[Section]:
    if run.cascade is not None:
        yield Section(
            "cascade",
            "The cascade",
            run.cascade_details,
            tables=cascade.build_tables(run.cascade),
            charts=list(cascade.build_charts(run.cascade)),
        )
    if run.embedding_table is not None:
        table = run_tables.build_embedding_table(run.embedding_table)
        yield Section("evidence", "The evidence", items=run.embedding_sentences, tables=[table])
    elif run.models:
        evidence = [run_tables.build_models_table(run)]
        if run.pair:
            evidence.append(run_tables.build_pair_table(run))
        yield Section("evidence", "The evidence", tables=evidence)
    if run.steps:
        steps = run_tables.build_steps_table(run)
        yield Section("steps", "Step by step", [run_tables.STEPS_NOTE], tables=[steps])
    if run.neighbors:
        yield Section("neighbors", "Nearest images", [_NEIGHBORS], queries=run.neighbors)
    if run.map:
        maps = list(map_plots.plot_maps(run.map))
        yield Section("map", "The embeddings on a plane", [map_plots.NOTE], charts=maps)
    yield Section("needed", "Was distillation needed?", items=run.gains)
    yield Section("curves", "Curves", charts=list(run_plots.plot_curves(run)))
    if len(report.rows) == 1:
        yield _build_front(report)
        yield from _iterate_families(report)
    yield _build_classes(run)
    if run.groups:
        groups = run_tables.build_groups_table(run)
        yield Section("groups", "Groups of the data", tables=[groups])
    if run.robustness:
        robustness = run_tables.build_robustness_table(run)
        yield Section("robustness", "Robustness", tables=[robustness])
    yield _build_flips(run)
    yield Section("calibration", "Calibration", charts=list(run_plots.plot_calibration(run)))
    yield _build_soft_labels(run)
    yield _build_provenance(run)
    yield Section("license", "License", items=run.license)
    yield Section("limits", "Limits of this result", items=run.limits)
    yield Section("missing", "What this page leaves out", items=run.missing)


def _build_classes(run: RunPart) -> Section:
    classes = [run_tables.build_classes_table(run)] if run.classes else []
    has_errors = run.confusion is not None and bool(run.confusion.strongest)
    errors = [run_tables.build_confusions_table(run)] if has_errors else []
    # Without a matrix, the table of errors is the only view of them: show it unfolded.
    has_matrix = run.confusion is not None and run.confusion.counts is not None
    return Section(
        "classes",
        "Class by class",
        tables=[] if has_matrix else errors,
        charts=[*run_plots.plot_classes(run), *run_plots.plot_confusion(run)],
        folded=[*classes, *errors] if has_matrix else classes,
    )


def _build_flips(run: RunPart) -> Section:
    paragraphs = []
    if run.examples:
        paragraphs.append(
            "A flip is an image that only one of the two models classifies correctly."
        )
    titles = {why: title.format(**run.compared._asdict()) for why, title in _EXAMPLE_TITLES.items()}
    with_image = [example for example in run.examples if example.image is not None]
    if not with_image:
        tables = run_tables.build_flips_tables(run, titles)
        return Section("flips", "Flips", paragraphs, tables=tables)
    order = list(titles)
    whys = dict.fromkeys(example.why for example in with_image)
    cards = []
    for why in sorted(whys, key=lambda why: order.index(why) if why in order else len(order)):
        examples = [
            Card(example, run_plots.plot_distribution(example))
            for example in with_image
            if example.why == why
        ]
        cards.append(Cards(titles.get(why, why), examples[:_MAX_OPEN], examples[_MAX_OPEN:]))
    paragraphs.append(
        "Bars: the probability of each class in percent. The upper bar is the teacher's, the lower"
        " bar the student's."
    )
    return Section("flips", "Flips and other example images", paragraphs, cards=cards)


def _build_soft_labels(run: RunPart) -> Section:
    name, title = "soft-labels", "Soft labels"
    if run.knowledge is None:
        return Section(name, title)
    similar = run_tables.build_similarity_tables(run.knowledge)
    paragraph = (
        "The soft labels of the teacher contain more than the hard label: the probabilities of the"
        " other classes."
    )
    return Section(
        name,
        title,
        [paragraph],
        tables=[run_tables.build_entropy_table(run.knowledge), *similar[:1]],
        charts=list(run_plots.plot_soft_labels(run)),
        folded=similar[1:],
    )


def _build_provenance(run: RunPart) -> Section:
    provenance = run.provenance
    return Section(
        "provenance",
        "Configuration and provenance",
        tables=[
            build_text_table("Main settings", provenance.settings),
            build_text_table("Data", provenance.data),
        ],
        folded=[
            build_text_table("Environment", provenance.environment),
            run_tables.build_stages_table(run),
            build_text_table("All settings", provenance.config),
        ],
    )
