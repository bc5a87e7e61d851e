"""Comparison of methods over seeds, and of single models over images.

The best method is chosen on validation.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from kd_app.config import RequestError
from kd_app.config.records import WRONG
from kd_app.metrics.paired import compute_mcnemar_p, compute_paired_interval
from kd_app.metrics.seeds import (
    CORRECTION,
    SeedDifference,
    SeedSummary,
    compare_by_seed,
    correct_for_multiplicity,
    summarize_seeds,
)
from kd_app.reporting.comparison_sentences import join_seeds, write_comparison
from kd_app.reporting.methods import MethodGroup, group_by_method
from kd_app.reporting.results import Results
from kd_app.reporting.runs import Run
from kd_app.reporting.selection import (
    TOP1,
    SelectionMetric,
    find_measured,
    find_verdict,
    read_selection,
    select_metric,
)
from kd_app.run_files import PREDICTIONS

Where = Literal["validation", "test"]
_CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class ModelDifference:
    """Top-1 of one student minus that of the baseline's student with the same seed, on
    the same images.

    low, high: exact interval · p: exact McNemar test.
    """

    seed: int
    num_images: int
    confidence: float
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Method:
    """A configuration with its seeds; values of the metric of the comparison and their
    differences in 0..1.

    label: settings that differ from the other methods · runs: folder by seed ·
    teachers: sha256 of the teachers · verdicts: outcome by seed, each about two models
    · validation, test: the student's value over the seeds that have one · gain: student
    minus its own control that was trained without the teacher · to_teacher: student
    minus teacher, if the teacher has a value · to_baseline: student minus the
    baseline's student · models: comparison of classifiers with the baseline's model
    over images, if both methods have exactly one seed in common · comparable: trained
    and evaluated on the images of the baseline.

    The differences gain, to_teacher and to_baseline are paired by seed, on the split of
    the comparison; None if there is nothing to pair.
    """

    label: str
    runs: dict[int, str]
    teachers: tuple[str, ...]
    verdicts: dict[int, str]
    validation: SeedSummary | None
    test: SeedSummary | None
    gain: SeedDifference | None
    to_teacher: SeedDifference | None
    to_baseline: SeedDifference | None
    models: ModelDifference | None
    comparable: bool

    def on(self, split: Where) -> SeedSummary | None:
        """The student's value on a split."""
        return self.test if split == "test" else self.validation


@dataclass(frozen=True)
class MethodComparison:
    """The methods of a set of runs, and the best of them.

    metric: by which they are compared, that of the first run's task · split: of the
    comparison: test if all runs read it, else validation · num_images: of that split,
    if equal for all runs · baseline, winner: labels; the winner has the best mean on
    validation over the seeds that all methods have; None with fewer than two methods to
    choose from · correction: of p-values for multiple comparisons, with the differences
    to the baseline as one family and the gains as another · notes: what was left out or
    not paired, and why.
    """

    methods: tuple[Method, ...]
    metric: SelectionMetric
    split: Where
    num_images: int | None
    confidence: float
    baseline: str | None
    winner: str | None
    correction: str
    notes: tuple[str, ...]

    def find_method(self, label: str) -> Method:
        """The method with that label."""
        return next(method for method in self.methods if method.label == label)

    def write_sentences(self) -> list[str]:
        """The results in sentences. Each is marked as a statement about methods (over
        seeds) or about models (over images, with one seed).
        """
        return write_comparison(self)


def compare(runs: Sequence[Run], *, baseline: str | None = None) -> MethodComparison:
    """Compare the methods of finished runs with each other and with a baseline.

    Runs are seeds of one method if their images are the same and their configurations
    differ in nothing that affects training. `baseline` is the label of a method; the
    default is the method of the first run. Raises `RequestError` if no method has the
    label `baseline`.
    """
    usable = [run for run in runs if _is_usable(run)]
    metric = select_metric(usable[0].results) if usable else TOP1
    usable = [run for run in usable if select_metric(run.results) is metric]
    notes = _list_excluded(runs, len(usable))
    groups, num_repeated = group_by_method(usable)
    if num_repeated:
        notes.append(
            f"{num_repeated} of the runs repeat a seed of a method; each seed counts once."
        )
    kept = [run for group in groups for run in group.runs.values()]
    split = _choose_split(kept, notes)
    first = _find_baseline(groups, baseline)
    scores = [score for run in kept if (score := read_selection(run.results, split))]
    confidence = max((score.confidence for score in scores), default=_CONFIDENCE)
    methods = [_build_method(group, first or group, split, confidence, notes) for group in groups]
    gains = _correct_family([method.gain for method in methods])
    differences = _correct_family([method.to_baseline for method in methods])
    methods = [
        replace(method, gain=gain, to_baseline=difference)
        for method, gain, difference in zip(methods, gains, differences, strict=True)
    ]
    sizes = {score.num_images for score in scores}
    return MethodComparison(
        methods=tuple(methods),
        metric=metric,
        split=split,
        num_images=sizes.pop() if len(sizes) == 1 else None,
        confidence=confidence,
        baseline=first.label if first else None,
        winner=_select_winner(methods, notes),
        correction=CORRECTION,
        notes=tuple(notes),
    )


def _list_excluded(runs: Sequence[Run], num_compared: int) -> list[str]:
    count = Counter(_explain_exclusion(run.results) for run in runs if not _is_usable(run))
    others = len(runs) - num_compared - count.total()
    if others:
        count["with another task"] = others
    if not count:
        return []
    listed = ", ".join(f"{number} {reason}" for reason, number in sorted(count.items()))
    return [f"{count.total()} of {len(runs)} runs are left out: {listed}."]


def _explain_exclusion(results: Results) -> str:
    return "without metrics" if results.status == "finished" else results.status


def _is_usable(run: Run) -> bool:
    measured = (find_measured(run.results, split) for split in ("validation", "test"))
    return run.results.status == "finished" and any(split is not None for split in measured)


def _choose_split(runs: Sequence[Run], notes: list[str]) -> Where:
    """Test if all runs read it, else validation."""
    num_read = sum(find_measured(run.results, "test") is not None for run in runs)
    if runs and num_read == len(runs):
        return "test"
    if num_read:
        notes.append(
            f"{num_read} of {len(runs)} runs read the test set, so the methods are compared on"
            " validation, which also served for choices. Run the same command with test=always to"
            " measure every run on test; then choose nothing by the test results."
        )
    return "validation"


def _find_baseline(groups: Sequence[MethodGroup], label: str | None) -> MethodGroup | None:
    """The group with the label, else the first; None without groups."""
    if label is None:
        return groups[0] if groups else None
    labels = [group.label for group in groups]
    if label not in labels:
        raise RequestError(
            f"No method is called {label!r}. Expected one of:"
            f" {'; '.join(labels) or 'none, no run is finished'}."
        )
    return groups[labels.index(label)]


def _collect_values(group: MethodGroup, split: Where, role: str = "student") -> dict[int, float]:
    """The metric of a model by seed, for the seeds that have one."""
    scores = {seed: read_selection(run.results, split, role) for seed, run in group.runs.items()}
    return {seed: score.value for seed, score in scores.items() if score is not None}


def _build_method(
    group: MethodGroup, baseline: MethodGroup, split: Where, confidence: float, notes: list[str]
) -> Method:
    metric = select_metric(next(iter(group.runs.values())).results)
    student = _collect_values(group, split)
    validation, test = (_collect_values(group, place) for place in ("validation", "test"))
    control = _collect_values(group, split, metric.control)
    teacher = _collect_values(group, split, "teacher") if metric.has_teacher else {}
    comparable = group is baseline or (group.images == baseline.images and all(group.images))
    to_baseline = None
    if comparable and group is not baseline:
        to_baseline = compare_by_seed(student, _collect_values(baseline, split), confidence)
    if not comparable:
        notes.append(_explain_incomparable(group, baseline))
    elif to_baseline is None and group is not baseline:
        notes.append(
            f"{group.label} and {baseline.label} have no seed in common: nothing is paired."
        )
    models = None
    if to_baseline is not None and len(to_baseline.values) == 1 and metric is TOP1:
        (seed,) = to_baseline.values
        pair = (group.runs[seed], baseline.runs[seed])
        models = _compare_models(pair, seed, split, confidence=confidence, notes=notes)
    results = {seed: run.results for seed, run in group.runs.items()}
    teachers = {
        each.models["teacher"].sha256 for each in results.values() if "teacher" in each.models
    }
    return Method(
        label=group.label,
        runs={seed: str(run.path) for seed, run in group.runs.items()},
        teachers=tuple(sorted(teachers)),
        verdicts={
            seed: verdict.outcome
            for seed, each in results.items()
            if (verdict := find_verdict(each))
        },
        validation=summarize_seeds(validation, confidence) if validation else None,
        test=summarize_seeds(test, confidence) if test else None,
        gain=compare_by_seed(student, control, confidence),
        to_teacher=compare_by_seed(student, teacher, confidence),
        to_baseline=to_baseline,
        models=models,
        comparable=comparable,
    )


def _explain_incomparable(group: MethodGroup, baseline: MethodGroup) -> str:
    reason = "do not record the images of their evaluation"
    if all(group.images) and all(baseline.images):
        reason = "have different images or another split"
    return (
        f"The runs of {group.label} and those of {baseline.label} {reason}: nothing is paired, and"
        " the values can't be ranked together."
    )


def _compare_models(
    pair: tuple[Run, Run], seed: int, split: Where, *, confidence: float, notes: list[str]
) -> ModelDifference | None:
    """Compare the students of two runs image by image, the first minus the second."""
    import pandas as pd

    columns = ["index", "target", "student_top1"]
    try:
        table, reference = (
            pd.read_parquet(run.find_file(PREDICTIONS), columns=columns) for run in pair
        )
    except RequestError as error:
        notes.append(f"Two models could not be compared image by image: {error}")
        return None
    except WRONG as error:
        notes.append(
            f"Two models could not be compared image by image: a {PREDICTIONS} can't be read"
            f" ({type(error).__name__})."
        )
        return None
    score = read_selection(pair[0].results, split)
    if (
        score is None
        or len(table) != score.num_images
        or not table["index"].equals(reference["index"])
        or not table["target"].equals(reference["target"])
    ):
        paths = " and ".join(repr(str(run.path)) for run in pair)
        notes.append(
            f"{paths} hold predictions for different images: the two models are not compared"
            " image by image."
        )
        return None
    hits, reference_hits = (each["student_top1"] == each["target"] for each in (table, reference))
    better, worse = int((hits & ~reference_hits).sum()), int((reference_hits & ~hits).sum())
    n = len(table)
    low, high = compute_paired_interval(better, worse, n, (1 + confidence) / 2)
    return ModelDifference(
        seed=seed,
        num_images=n,
        confidence=confidence,
        difference=(better - worse) / n,
        low=low,
        high=high,
        p=compute_mcnemar_p(better, worse),
    )


def _correct_family(differences: Sequence[SeedDifference | None]) -> list[SeedDifference | None]:
    """Correct the p-values of one family; None stays None."""
    family = [difference for difference in differences if difference is not None]
    corrected = iter(correct_for_multiplicity(family))
    return [None if difference is None else next(corrected) for difference in differences]


def _select_winner(methods: Sequence[Method], notes: list[str]) -> str | None:
    """Label of the best comparable method on validation; None if there is only one."""
    ranked = [
        (method.label, method.validation)
        for method in methods
        if method.comparable and method.validation
    ]
    if len(ranked) < 2:
        return None
    seeds = set.intersection(*(set(summary.values) for _, summary in ranked))
    if any(set(summary.values) != seeds for _, summary in ranked):
        basis = "by means over different seeds, which is less certain"
        if seeds:
            basis = f"by the seeds that all methods have ({join_seeds(sorted(seeds))})"
        notes.append(f"Not all methods have the same seeds: the winner is chosen {basis}.")
    means = []
    for _, summary in ranked:
        values = {seed: summary.values[seed] for seed in seeds or summary.values}
        means.append(summarize_seeds(values, summary.confidence).mean)
    return ranked[means.index(max(means))][0]
