"""Runs compared: what is said of methods, over seeds, and what of models, over images;
the winner is chosen on validation.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from kd_app.config import RequestError
from kd_app.metrics.paired import compute_mcnemar_p, compute_paired_interval
from kd_app.metrics.seeds import (
    CORRECTION,
    SeedDifference,
    SeedSummary,
    compare_by_seed,
    correct_for_multiplicity,
    summarize_seeds,
)
from kd_app.reporting.methods import MethodGroup, group_by_method
from kd_app.reporting.results import Split
from kd_app.reporting.runs import Run
from kd_app.reporting.sentences import format_interval, format_percent, format_points
from kd_app.run_files import PREDICTIONS

Where = Literal["validation", "test"]
_CONFIDENCE: Final = 0.95
_MANY: Final = 8
"""Methods of which each gets sentences of its own; of more, only those that stand out.
"""


@dataclass(frozen=True)
class ModelDifference:
    """Two students of one seed on the same images, this one minus the baseline's. low,
    high: Tango's interval · p: exact McNemar test.
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
    """A configuration and its seeds; top-1 accuracies and their differences in 0..1.

    label: what it says differently from the others · runs: the folder of each seed ·
    teachers: sha256 of those it learned from · verdicts: of each seed, each about two
    models · validation, test: the student's accuracy over the seeds that have it ·
    gain: student minus its own labels_only control · to_teacher: minus the teacher ·
    to_baseline: minus the baseline's student. These three are paired by seed, on the
    comparison's split, and None where there is nothing to pair · models: beside the
    baseline's model, over images, where one seed is all they have in common ·
    comparable: trained and measured on the images of the baseline.
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
class Comparison:
    """What runs show of their methods.

    split: what they are compared on: test where every run read it, else validation ·
    num_images: of that split, where all agree · baseline, winner: labels; the winner
    has the best mean on validation over the seeds that all have; None where there is
    nothing to choose from · correction: of the p of several differences: those to the
    baseline are one family, the gains another · notes: what was left out or not paired,
    and why.
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
        """The method of that label."""
        return next(method for method in self.methods if method.label == label)

    def write_sentences(self) -> list[str]:
        """What the runs show, and each time whether that is about methods (over seeds)
        or about models (over images, one seed).
        """
        parts: tuple[Callable[[Comparison], Iterator[str]], ...] = (
            _write_basis,
            _write_each,
            _write_choice,
            _write_family,
        )
        return [sentence for part in parts for sentence in part(self)] + [
            f"Note: {note}" for note in self.notes
        ]


def compare(runs: Sequence[Run], *, baseline: str | None = None) -> Comparison:
    """Compare the methods of finished runs, each with the `baseline` (a label; the
    method of the first run where none is named).

    Runs are seeds of one method when their configurations differ in nothing that
    decides the training, and their images are the same. Raises `RequestError`: no
    method has the label `baseline`.
    """
    notes = _list_excluded(runs)
    groups, repeated = group_by_method([run for run in runs if _is_usable(run)])
    if repeated:
        notes.append(f"{repeated} of the runs repeat a seed of a method; each seed counts once.")
    if baseline is not None and baseline not in (labels := [group.label for group in groups]):
        raise RequestError(
            f"No method is called {baseline!r}. Expected one of:"
            f" {'; '.join(labels) or 'none, no run is finished'}."
        )
    kept = [run for group in groups for run in group.runs.values()]
    split: Where = "test" if kept and all(run.results.test for run in kept) else "validation"
    read = sum(run.results.test is not None for run in kept)
    if split == "validation" and read:
        notes.append(
            f"{read} of {len(kept)} runs read the test set, so the methods are compared on"
            " validation, where choices were made. With test=always the same words measure every"
            " run on test; then nothing may be chosen by it."
        )
    first = next(
        (group for group in groups if group.label == baseline), groups[0] if groups else None
    )
    confidence = max(
        (part.confidence for run in kept if (part := _select_split(run, split))),
        default=_CONFIDENCE,
    )
    methods = [_build_method(group, first or group, split, confidence, notes) for group in groups]
    families = zip(
        _correct_family([method.gain for method in methods]),
        _correct_family([method.to_baseline for method in methods]),
        strict=True,
    )
    methods = [
        replace(method, gain=gain, to_baseline=beside)
        for method, (gain, beside) in zip(methods, families, strict=True)
    ]
    sizes = {part.num_images for run in kept if (part := _select_split(run, split))}
    return Comparison(
        tuple(methods),
        split,
        sizes.pop() if len(sizes) == 1 else None,
        confidence,
        first.label if first else None,
        _select_winner(methods, notes),
        CORRECTION,
        tuple(notes),
    )


def _list_excluded(runs: Sequence[Run]) -> list[str]:
    count = Counter(run.results.status for run in runs if not _is_usable(run))
    told = ", ".join(
        f"{number} {'measured nothing' if status == 'finished' else status}"
        for status, number in sorted(count.items())
    )
    return [f"{count.total()} of {len(runs)} runs are left out: {told}."] if count else []


def _is_usable(run: Run) -> bool:
    return run.results.status == "finished" and (
        run.results.validation is not None or run.results.test is not None
    )


def _select_split(run: Run, split: Where) -> Split | None:
    return run.results.test if split == "test" else run.results.validation


def _collect_top1(
    group: MethodGroup, split: Where, role: Literal["student", "labels_only", "teacher"]
) -> dict[int, float]:
    found: dict[int, float] = {}
    for seed, run in group.runs.items():
        part = _select_split(run, split)
        figures = getattr(part, role) if part else None
        if figures is not None and figures.top1 is not None:
            found[seed] = figures.top1
    return found


def _build_method(
    group: MethodGroup, first: MethodGroup, split: Where, confidence: float, notes: list[str]
) -> Method:
    student = _collect_top1(group, split, "student")
    validation, test = (_collect_top1(group, place, "student") for place in ("validation", "test"))
    comparable = group is first or (group.images == first.images and all(group.images))
    beside = (
        compare_by_seed(student, _collect_top1(first, split, "student"), confidence)
        if comparable and group is not first
        else None
    )
    if not comparable:
        known = (
            "have other images or another split"
            if all(group.images) and all(first.images)
            else "don't say which images they were measured on"
        )
        notes.append(
            f"The runs of {group.label} {known} than those of {first.label}: nothing is paired, and"
            " their figures can't be ranked together."
        )
    elif beside is None and group is not first:
        notes.append(f"{group.label} and {first.label} have no seed in common: nothing is paired.")
    models = None
    if beside is not None and len(beside.values) == 1:
        (seed,) = beside.values
        models = _compare_models(
            (group.runs[seed], first.runs[seed]), seed, split, confidence=confidence, notes=notes
        )
    return Method(
        group.label,
        {seed: str(run.path) for seed, run in group.runs.items()},
        tuple(
            sorted(
                {
                    run.results.models["teacher"].sha256
                    for run in group.runs.values()
                    if "teacher" in run.results.models
                }
            )
        ),
        {
            seed: run.results.verdict.outcome
            for seed, run in group.runs.items()
            if run.results.verdict
        },
        summarize_seeds(validation, confidence) if validation else None,
        summarize_seeds(test, confidence) if test else None,
        compare_by_seed(student, _collect_top1(group, split, "labels_only"), confidence),
        compare_by_seed(student, _collect_top1(group, split, "teacher"), confidence),
        beside,
        models,
        comparable,
    )


def _compare_models(
    pair: tuple[Run, Run], seed: int, split: Where, *, confidence: float, notes: list[str]
) -> ModelDifference | None:
    """The student of the first beside that of the second."""
    import pandas as pd

    try:
        mine, theirs = (
            pd.read_parquet(each.path / PREDICTIONS, columns=["index", "target", "student_top1"])
            for each in pair
        )
    except (OSError, ValueError) as error:
        notes.append(
            f"Two models could not be compared image by image: {type(error).__name__} in reading a"
            f" {PREDICTIONS}."
        )
        return None
    part = _select_split(pair[0], split)
    if (
        part is None
        or len(mine) != part.num_images
        or not mine["index"].equals(theirs["index"])
        or not mine["target"].equals(theirs["target"])
    ):
        paths = " and ".join(repr(str(each.path)) for each in pair)
        notes.append(
            f"{paths} hold answers to different images: these two models are not compared image by"
            " image."
        )
        return None
    right, before = (each["student_top1"] == each["target"] for each in (mine, theirs))
    better, worse, n = int((right & ~before).sum()), int((before & ~right).sum()), len(mine)
    low, high = compute_paired_interval(better, worse, n, (1 + confidence) / 2)
    return ModelDifference(
        seed, n, confidence, (better - worse) / n, low, high, compute_mcnemar_p(better, worse)
    )


def _correct_family(differences: Sequence[SeedDifference | None]) -> list[SeedDifference | None]:
    """One family, corrected; what is None stays None."""
    found = iter(correct_for_multiplicity([each for each in differences if each is not None]))
    return [None if each is None else next(found) for each in differences]


def _select_winner(methods: Sequence[Method], notes: list[str]) -> str | None:
    ranked = [
        (method, method.validation) for method in methods if method.comparable and method.validation
    ]
    if len(ranked) < 2:
        return None
    seeds = set.intersection(*(set(figure.values) for _, figure in ranked))
    if any(set(figure.values) != seeds for _, figure in ranked):
        shared = (
            f"chosen by the seeds that all have ({_join_seeds(sorted(seeds))})"
            if seeds
            else "chosen by means over different seeds, which is less sure"
        )
        notes.append(f"Not all methods have the same seeds: the winner is {shared}.")
    means = [
        summarize_seeds(
            {seed: figure.values[seed] for seed in seeds or figure.values}, figure.confidence
        ).mean
        for _, figure in ranked
    ]
    return ranked[means.index(max(means))][0].label


def _write_basis(found: Comparison) -> Iterator[str]:
    count, runs = len(found.methods), sum(len(method.runs) for method in found.methods)
    if not count:
        yield "No run is finished: there is nothing to compare."
        return
    images = f"{found.num_images:,} images" if found.num_images else "images"
    yield (
        f"{count} method{'s' * (count > 1)} in {runs} run{'s' * (runs > 1)}, by top-1 accuracy on"
        f" {images} of the {found.split} split."
    )
    if runs > 1 and len({teacher for method in found.methods for teacher in method.teachers}) == 1:
        yield (
            "All students learned from one teacher on one set of images: what others would give is"
            " in none of the intervals over seeds."
        )


def _list_shown(found: Comparison) -> list[Method]:
    if len(found.methods) <= _MANY:
        return list(found.methods)
    return [
        method
        for method in found.methods
        if method.label in (found.baseline, found.winner)
        or _is_different(method.to_baseline, found.confidence)
    ][:_MANY]


def _is_different(difference: SeedDifference | None, confidence: float) -> bool:
    return (
        difference is not None
        and difference.corrected is not None
        and difference.corrected <= 1 - confidence
    )


def _write_each(found: Comparison) -> Iterator[str]:
    shown = _list_shown(found)
    for method in shown:
        figure = method.on(found.split)
        if figure is not None:
            yield _format_accuracy(method.label, figure, found.split)
        if method.verdicts:
            yield (
                f"{method.label}: verdict {_format_verdicts(method.verdicts)}. Each verdict is about two"
                " models, that seed's student and its teacher."
            )
        if method.to_teacher is not None and len(method.to_teacher.values) > 1:
            yield (
                f"About the method {method.label}: the student minus the teacher, by seed:"
                f" {_format_points(method.to_teacher)}."
            )
        if method.gain is not None:
            yield _format_difference(
                f"{method.label} minus its own labels-only control",
                method.gain,
                "what distilling was worth",
            )
        if method.to_baseline is not None:
            yield _format_difference(
                f"{method.label} minus {found.baseline}",
                method.to_baseline,
                "the difference of the two",
            )
        if method.models is not None:
            yield _describe_models(method.label, found.baseline or "", method.models)
    if len(shown) < len(found.methods):
        yield (
            f"The other {len(found.methods) - len(shown)} methods are in the table alone;"
            f" {sum(_is_different(method.to_baseline, found.confidence) for method in found.methods)} of"
            f" all differ from {found.baseline} after correction."
        )


def _format_accuracy(label: str, figure: SeedSummary, split: Where) -> str:
    each = ", ".join(format_percent(value) for value in figure.values.values())
    if len(figure.values) == 1:
        return (
            f"{label}: {split} top-1 {each} with one seed ({_join_seeds(figure.values)}). That is about"
            " a model, not the method."
        )
    over = (
        f"{label}: mean {split} top-1 {format_percent(figure.mean)} over {len(figure.values)} seeds"
        f" ({_join_seeds(figure.values)}: {each})"
    )
    if figure.low is None:
        return (
            f"{over}. No interval: the seeds gave equal figures, which says nothing of how far"
            " others would lie."
        )
    return (
        f"{over}, t-interval {format_interval(figure.low, figure.high)} at {100 * figure.confidence:g} %."
        " That is about the method."
    )


def _format_verdicts(verdicts: dict[int, str]) -> str:
    by_outcome: dict[str, list[int]] = {}
    for seed, outcome in verdicts.items():
        by_outcome.setdefault(outcome, []).append(seed)
    return ", ".join(
        f"'{outcome}' with seed{'s' * (len(seeds) > 1)} {_join_seeds(seeds)}"
        for outcome, seeds in by_outcome.items()
    )


def _format_points(difference: SeedDifference) -> str:
    if difference.low is None or difference.high is None:
        return f"{format_points(difference.mean)} points in each"
    return (
        f"{format_points(difference.mean)} points, t-interval {format_points(difference.low)} to"
        f" {format_points(difference.high)} at {100 * difference.confidence:g} %"
    )


def _format_difference(what: str, difference: SeedDifference, meaning: str) -> str:
    seeds = _join_seeds(difference.values)
    if len(difference.values) == 1:
        return (
            f"{what}, with one seed ({seeds}): {format_points(difference.mean)} points. That is about two"
            " models, not methods."
        )
    if difference.p is None or difference.corrected is None:
        return (
            f"{what}: {format_points(difference.mean)} points with each of the seeds {seeds}: no spread,"
            " so no interval and no test."
        )
    together = (
        f", {difference.corrected:.2g} after {CORRECTION}'s correction for {difference.compared}"
        if difference.compared > 1
        else ""
    )
    shown = (
        "shown to differ from 0"
        if _is_different(difference, difference.confidence)
        else "not shown to differ from 0"
    )
    return (
        f"About methods: {what}, paired by seed ({seeds}): {_format_points(difference)}, p"
        f" {difference.p:.2g}{together} (paired t-test): {meaning} is {shown} over seeds."
    )


def _describe_models(label: str, baseline: str, models: ModelDifference) -> str:
    where = f"with seed {models.seed}, on the same {models.num_images:,} images"
    bounds = (
        f"{format_points(models.low)} to {format_points(models.high)} at {100 * models.confidence:g} % (Tango's"
        " score interval)"
    )
    return (
        f"About two models, not two methods: {where}, the student of {label} minus that of"
        f" {baseline}: {format_points(models.difference)} points, {bounds}, McNemar's p {models.p:.2g}."
    )


def _write_choice(found: Comparison) -> Iterator[str]:
    if found.winner is None:
        return
    method = found.find_method(found.winner)
    assert method.validation is not None
    chosen = f"Chosen on validation alone: {method.label}, {format_percent(method.validation.mean)} there"
    if method.test is None:
        yield (
            f"{chosen}. Its test set was not read, and the best of {len(found.methods)} validation"
            " figures is too good by chance."
        )
    elif len(method.test.values) < len(method.runs):
        seed, value = next(iter(method.test.values.items()))
        yield (
            f"{chosen}. On test, which was not read for all of its seeds, it has {format_percent(value)}"
            f" with seed {seed}: about that model."
        )
    else:
        bounds = (
            f" (t-interval {format_interval(method.test.low, method.test.high)})"
            if method.test.low is not None
            else ""
        )
        over = "mean over seeds" if len(method.test.values) > 1 else "one seed"
        yield (
            f"{chosen}. Its test top-1, the figure to quote, is"
            f" {format_percent(method.test.mean)}{bounds}, {over}."
        )


def _write_family(found: Comparison) -> Iterator[str]:
    families = {
        "gains over labels-only": [method.gain for method in found.methods],
        "differences to the baseline": [method.to_baseline for method in found.methods],
    }
    tested = {
        name: [each for each in family if each is not None and each.p is not None]
        for name, family in families.items()
    }
    told = [
        f"the {family[0].compared} {name}"
        for name, family in tested.items()
        if family and family[0].compared > 1
    ]
    if told:
        yield (
            f"The p of {' and of '.join(told)} are corrected by {found.correction}'s method, each"
            " family for itself."
        )


def _join_seeds(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))
