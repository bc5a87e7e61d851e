"""The sections of a page, in their order: each with what it says, its tables, its
drawings and its images. One without content is not there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from markupsafe import Markup

from kd_app.reporting.html import cascade, family_view, plots, tables
from kd_app.reporting.html.charts import Chart
from kd_app.reporting.html.schema import Example, Report, RunPart
from kd_app.reporting.html.tables import Table

_WHY = {
    "negative_flip": "The {reference} is right, the {candidate} wrong",
    "positive_flip": "The {reference} is wrong, the {candidate} right",
    "most_different": "Where they differ most",
    "similar_pair": "Classes that the teacher finds similar",
    "typical": "Typical images",
}


_OPEN = 8
"""Images of a kind that are shown without a click."""


@dataclass(frozen=True)
class Card:
    """One image, and the drawing of what the models find probable in it."""

    example: Example
    bars: Markup


@dataclass(frozen=True)
class Cards:
    """Images that are shown for one reason. more: those that are opened by a click."""

    title: str
    examples: list[Card]
    more: list[Card]


@dataclass(frozen=True)
class Section:
    """A part of the page. folded: tables that are opened by a click."""

    name: str
    title: str
    says: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    cards: list[Cards] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether there is anything in it."""
        return any((self.says, self.items, self.tables, self.charts, self.cards, self.folded))


def build_overview(report: Report) -> list[Section]:
    """What several runs show together; nothing for one run."""
    if len(report.rows) == 1:
        return []
    several = len(report.comparisons) > 1
    compared = Section(
        "methods",
        "Which method?",
        items=[
            f"{part.data}: {said}" if several else said
            for part in report.comparisons
            for said in part.says
        ],
        tables=[
            tables.build_methods_table(part, several) for part in report.comparisons if part.methods
        ],
        charts=[chart for part in report.comparisons for chart in plots.plot_methods(part)],
        folded=[
            tables.build_seeds_table(part, several)
            for part in report.comparisons
            if any(len(method.runs) > 1 for method in part.methods)
        ],
    )
    found = [
        compared,
        Section("runs", "The runs", tables=[tables.build_runs_table(report)]),
        Section("front", "Accuracy against cost", charts=list(plots.plot_front(report.points))),
        *_iterate_families(report),
    ]
    return [section for section in found if section.holds]


def _iterate_families(report: Report) -> Iterator[Section]:
    """What ships, one section for each family."""
    for number, family in enumerate(report.families, 1):
        several = len(report.families) > 1
        yield Section(
            f"family-{number}" if several else "family",
            f"What ships: {family.data}, {family.device}" if several else "What ships",
            says=[choice.says for choice in family.choices],
            items=family.basis,
            tables=[family_view.build_tiers_table(family)]
            if any(part.tier for part in family.files)
            else [],
            charts=list(family_view.plot_front(family)),
            folded=[family_view.build_files_table(family)],
        )


def build_sections(report: Report, run: RunPart) -> list[Section]:
    """Everything about one run."""
    return [section for section in _iterate_sections(report, run) if section.holds]


def _iterate_sections(report: Report, run: RunPart) -> Iterator[Section]:
    if run.cascade is not None:
        yield Section(
            "cascade",
            "The cascade",
            run.cascade_says,
            tables=cascade.build_tables(run.cascade),
            charts=list(cascade.build_charts(run.cascade)),
        )
    if run.models:
        yield Section(
            "evidence",
            "The evidence",
            tables=[
                tables.build_models_table(run),
                *([tables.build_pair_table(run)] if run.pair else []),
            ],
        )
    if run.steps:
        yield Section(
            "steps", "Step by step", [tables.LOST], tables=[tables.build_steps_table(run)]
        )
    yield Section("needed", "Was distilling needed?", items=run.worth)
    yield Section("curves", "Curves", charts=list(plots.plot_curves(run)))
    if len(report.rows) == 1:
        yield Section(
            "front", "Accuracy against cost", charts=list(plots.plot_front(report.points))
        )
        yield from _iterate_families(report)
    yield _build_classes(run)
    if run.groups:
        yield Section("groups", "Groups of the data", tables=[tables.build_groups_table(run)])
    if run.robustness:
        yield Section("robustness", "Robustness", tables=[tables.build_robustness_table(run)])
    yield _build_flips(run)
    yield Section("calibration", "Calibration", charts=list(plots.plot_calibration(run)))
    if run.knowledge is not None:
        alike = tables.build_similarity_tables(run.knowledge)
        says = [
            "What the student is taught beyond the label: how probable the teacher finds the other"
            " classes."
        ]
        shown = [tables.build_softness_table(run.knowledge), *alike[:1]]
        yield Section(
            "soft-labels",
            "Soft labels",
            says,
            tables=shown,
            charts=list(plots.plot_soft_labels(run)),
            folded=alike[1:],
        )
    yield _build_provenance(run)
    yield Section("license", "License", items=run.license)
    yield Section("limits", "What it is not good for", items=run.limits)
    yield Section("missing", "What this page leaves out", items=run.missing)


def _build_classes(run: RunPart) -> Section:
    folded = [tables.build_classes_table(run)] if run.classes else []
    if run.confusion is not None and run.confusion.strongest:
        folded.append(tables.build_confusions_table(run))
    whole = run.confusion is not None and run.confusion.counts is not None
    return Section(
        "classes",
        "Class by class",
        tables=[] if whole else folded[1:],
        charts=[*plots.plot_classes(run), *plots.plot_confusion(run)],
        folded=folded if whole else folded[:1],
    )


def _build_flips(run: RunPart) -> Section:
    pictured = [example for example in run.examples if example.image is not None]
    title, says = (
        "Flips",
        (
            ["A flip is an image that one of the two models has right and the other wrong."]
            if run.examples
            else []
        ),
    )
    titles = {why: said.format(**run.compared._asdict()) for why, said in _WHY.items()}
    if not pictured:
        return Section("flips", title, says=says, tables=tables.build_flips_tables(run, titles))
    whys = dict.fromkeys(example.why for example in pictured)
    cards = []
    for why in sorted(whys, key=lambda why: list(_WHY).index(why) if why in _WHY else len(_WHY)):
        shown = [
            Card(example, plots.plot_distribution(example))
            for example in pictured
            if example.why == why
        ]
        cards.append(Cards(titles.get(why, why), shown[:_OPEN], shown[_OPEN:]))
    says += [
        "Bars: how probable each class is, in percent; of two bars the upper is the teacher's, the"
        " lower the student's."
    ]
    return Section("flips", "Flips, and other images to look at", says=says, cards=cards)


def _build_provenance(run: RunPart) -> Section:
    return Section(
        "made",
        "How it was made",
        tables=[
            tables.build_pairs_table("What was asked for", run.made.settings),
            tables.build_pairs_table("Data", run.made.data),
        ],
        folded=[
            tables.build_pairs_table("Where and with what", run.made.environment),
            tables.build_stages_table(run),
            tables.build_pairs_table("Every setting", run.made.config),
        ],
    )
