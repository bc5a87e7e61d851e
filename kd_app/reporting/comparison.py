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
from kd_app.reporting.measurement_results import Split
from kd_app.reporting.methods import MethodGroup, group_by_method
from kd_app.reporting.results import Results
from kd_app.reporting.runs import Run
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
    """A configuration with its seeds; top-1 accuracies and their differences in 0..1.

    label: settings that differ from the other methods · runs: folder by seed ·
    teachers: sha256 of the teachers · verdicts: outcome by seed, each about two models
    · validation, test: the student's accuracy over the seeds that have one · gain:
    student minus its own labels_only control · to_teacher: student minus teacher ·
    to_baseline: student minus the baseline's student · models: comparison with the
    baseline's model over images, if both methods have exactly one seed in common ·
    comparable: trained and evaluated on the images of the baseline.

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
        """The student's accuracy on a split."""
        return self.test if split == "test" else self.validation


@dataclass(frozen=True)
class MethodComparison:
    """The methods of a set of runs, and the best of them.

    split: of the comparison: test if all runs read it, else validation · num_images: of
    that split, if equal for all runs · baseline, winner: labels; the winner has the
    best mean on validation over the seeds that all methods have; None with fewer than
    two methods to choose from · correction: of p-values for multiple comparisons, with
    the differences to the baseline as one family and the gains as another · notes: what
    was left out or not paired, and why.
    """

    methods: tuple[Method, ...]
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
    notes = _list_excluded(runs)
    groups, num_repeated = group_by_method([run for run in runs if _is_usable(run)])
    if num_repeated:
        notes.append(
            f"{num_repeated} of the runs repeat a seed of a method; each seed counts once."
        )
    kept = [run for group in groups for run in group.runs.values()]
    split = _choose_split(kept, notes)
    first = _find_baseline(groups, baseline)
    parts = [part for run in kept if (part := _select_split(run, split))]
    confidence = max((part.confidence for part in parts), default=_CONFIDENCE)
    methods = [_build_method(group, first or group, split, confidence, notes) for group in groups]
    gains = _correct_family([method.gain for method in methods])
    differences = _correct_family([method.to_baseline for method in methods])
    methods = [
        replace(method, gain=gain, to_baseline=difference)
        for method, gain, difference in zip(methods, gains, differences, strict=True)
    ]
    sizes = {part.num_images for part in parts}
    return MethodComparison(
        methods=tuple(methods),
        split=split,
        num_images=sizes.pop() if len(sizes) == 1 else None,
        confidence=confidence,
        baseline=first.label if first else None,
        winner=_select_winner(methods, notes),
        correction=CORRECTION,
        notes=tuple(notes),
    )


def _list_excluded(runs: Sequence[Run]) -> list[str]:
    count = Counter(_explain_exclusion(run.results) for run in runs if not _is_usable(run))
    if not count:
        return []
    listed = ", ".join(f"{number} {reason}" for reason, number in sorted(count.items()))
    return [f"{count.total()} of {len(runs)} runs are left out: {listed}."]


def _explain_exclusion(results: Results) -> str:
    if results.status != "finished":
        return results.status
    return "without metrics" if results.embedding is None else "without classes"


def _is_usable(run: Run) -> bool:
    return run.results.status == "finished" and (
        run.results.validation is not None or run.results.test is not None
    )


def _choose_split(runs: Sequence[Run], notes: list[str]) -> Where:
    """Test if all runs read it, else validation."""
    num_read = sum(run.results.test is not None for run in runs)
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


def _select_split(run: Run, split: Where) -> Split | None:
    return run.results.test if split == "test" else run.results.validation


def _collect_top1(
    group: MethodGroup, split: Where, role: Literal["student", "labels_only", "teacher"]
) -> dict[int, float]:
    """Top-1 of a model by seed, for the seeds that have one."""
    by_seed: dict[int, float] = {}
    for seed, run in group.runs.items():
        part = _select_split(run, split)
        metrics = getattr(part, role) if part else None
        if metrics is not None and metrics.top1 is not None:
            by_seed[seed] = metrics.top1
    return by_seed


def _build_method(
    group: MethodGroup, baseline: MethodGroup, split: Where, confidence: float, notes: list[str]
) -> Method:
    student = _collect_top1(group, split, "student")
    validation, test = (_collect_top1(group, place, "student") for place in ("validation", "test"))
    comparable = group is baseline or (group.images == baseline.images and all(group.images))
    to_baseline = None
    if comparable and group is not baseline:
        to_baseline = compare_by_seed(
            student, _collect_top1(baseline, split, "student"), confidence
        )
    if not comparable:
        notes.append(_explain_incomparable(group, baseline))
    elif to_baseline is None and group is not baseline:
        notes.append(
            f"{group.label} and {baseline.label} have no seed in common: nothing is paired."
        )
    models = None
    if to_baseline is not None and len(to_baseline.values) == 1:
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
        verdicts={seed: each.verdict.outcome for seed, each in results.items() if each.verdict},
        validation=summarize_seeds(validation, confidence) if validation else None,
        test=summarize_seeds(test, confidence) if test else None,
        gain=compare_by_seed(student, _collect_top1(group, split, "labels_only"), confidence),
        to_teacher=compare_by_seed(student, _collect_top1(group, split, "teacher"), confidence),
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
        " the accuracies can't be ranked together."
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
    part = _select_split(pair[0], split)
    if (
        part is None
        or len(table) != part.num_images
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
