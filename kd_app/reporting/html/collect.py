"""Build the content of a report from run folders."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Any, Literal

from kd_app.config import RequestError
from kd_app.config.keys import NON_IDENTITY_KEYS
from kd_app.config.redact import redact
from kd_app.metrics.model_pair import CASCADE, DISTILLATION
from kd_app.reporting.html.family import build_families
from kd_app.reporting.html.from_predictions import read_estimate
from kd_app.reporting.html.methods import build_comparison
from kd_app.reporting.html.run_section import (
    build_run_part,
    find_split,
    iterate_accuracies,
    select_split,
    write_answer,
    write_question,
)
from kd_app.reporting.html.schema import ComparisonPart, Point, Report, RunRow
from kd_app.reporting.metrics import Estimate
from kd_app.reporting.refusals import TrialRefusedError
from kd_app.reporting.results import Results
from kd_app.reporting.runs import Run, flatten, load_run
from kd_app.reporting.selection import find_verdict, read_selection
from kd_app.reporting.sentences import format_points

MAX_DETAILED_RUNS = 4
"""Up to this number of runs, the report has all details of each. A report of more runs
has the details of the best runs on each data set.
"""
_COMMON_KEYS = (*NON_IDENTITY_KEYS, "test", "seed", "own")
"""Settings that don't make two runs different. The seed has its own column."""
_OUTCOMES = ("kept", "lost", "not shown")


@dataclass(frozen=True)
class _NamedRun:
    """A run and its name in the report. A run that was refused or can't be read is
    None, with a status and a reason.
    """

    name: str
    run: Run | None
    status: str = ""
    reason: str = ""


def build_report(paths: Sequence[Path], budgets: Sequence[float] = ()) -> Report:
    """Build the report about the runs in these folders.

    budgets: limits of the p95 latency in milliseconds; the report names the best
    exported file for each.

    Raises `RequestError` if no run can be read.
    """
    runs = _name_runs(paths)
    readable = [(named.name, named.run) for named in runs if named.run is not None]
    if not readable:
        raise RequestError(runs[0].reason if runs else "There is no run to report on.")
    is_single = len(runs) == 1
    methods = [] if is_single else _compare_methods(readable)
    parts = [build_run_part(run, name) for name, run in _select_detailed(readable, methods)]
    if is_single:
        question, answer, basis = parts[0].question, parts[0].answer, parts[0].basis
    else:
        question = write_question(readable[0][1].results)
        answer = _write_answer(dict(readable), methods)
        basis = _write_basis(methods)
    return Report(
        question=question,
        answer=answer,
        basis=basis,
        rows=_build_rows(runs, _select_best(methods)),
        comparisons=methods,
        points=[point for name, run in readable for point in _build_points(name, run.results)],
        families=build_families(readable, lambda run: _name_data(run.results), budgets),
        runs=parts,
    )


def _name_runs(paths: Sequence[Path]) -> list[_NamedRun]:
    """Load the runs and name each by the part of its path that differs."""
    resolved = [path.resolve() for path in paths]
    if len(resolved) > 1:
        common = Path(commonpath(resolved))
    else:
        common = resolved[0].parent if resolved else Path()
    runs = []
    for path, absolute in zip(paths, resolved, strict=True):
        name = absolute.relative_to(common).as_posix()
        try:
            runs.append(_NamedRun(name, load_run(path)))
        except RequestError as error:
            status = "refused" if isinstance(error, TrialRefusedError) else "unreadable"
            runs.append(_NamedRun(name, None, status, str(error).replace(str(path), name)))
    return runs


def _compare_methods(runs: Iterable[tuple[str, Run]]) -> list[ComparisonPart]:
    """Compare the runs on each data set."""
    groups: dict[str, list[tuple[str, Run]]] = {}
    for name, run in runs:
        fingerprint = run.results.data.fingerprint if run.results.data else ""
        groups.setdefault(fingerprint, []).append((name, run))
    return [build_comparison(_name_data(group[0][1].results), group) for group in groups.values()]


def _select_detailed(
    runs: Sequence[tuple[str, Run]], methods: Iterable[ComparisonPart]
) -> Sequence[tuple[str, Run]]:
    """Select the runs that the report describes in detail."""
    if len(runs) <= MAX_DETAILED_RUNS:
        return runs
    winners = {name for part in methods for name in _list_winner_runs(part)}
    selected = [(name, run) for name, run in runs if name in winners]
    return (selected or runs)[:MAX_DETAILED_RUNS]


def _list_winner_runs(part: ComparisonPart) -> list[str]:
    """List the runs of the method selected on validation, or of the only method."""
    winner = part.winner or (part.methods[0].label if len(part.methods) == 1 else None)
    return [
        name for method in part.methods if method.label == winner for name in method.runs.values()
    ]


def _select_best(methods: Iterable[ComparisonPart]) -> set[str]:
    """Select the best run on validation of each data set. There is none if methods have
    several seeds: no seed of a method is better than another.
    """
    return {
        name
        for part in methods
        if part.winner
        for name in _list_winner_runs(part)
        if all(len(method.runs) == 1 for method in part.methods)
    }


def _write_answer(runs: Mapping[str, Run], methods: Sequence[ComparisonPart]) -> str:
    verdicts = (find_verdict(run.results) for run in runs.values())
    outcomes = [verdict.outcome for verdict in verdicts if verdict is not None]
    if outcomes:
        sentences = [f"Verdicts of {len(outcomes)} runs: {_count_outcomes(outcomes)}."]
    else:
        sentences = [f"{len(runs)} runs, none with a verdict."]
    several = len(methods) > 1
    for part in methods:
        names = _list_winner_runs(part)
        if not names:
            continue
        if part.winner:
            data = f" of the runs on {part.data}" if several else ""
            sentences.append(f"Selected on validation{data}: {part.winner}.")
        else:
            data = f" on {part.data}" if several else ""
            sentences.append(f"{part.methods[0].label}{data}:")
        if len(names) == 1:
            sentences.append(write_answer(runs[names[0]].results))
        else:
            sentences.append(_describe_seeds(part, names))
    return " ".join(sentences)


def _count_outcomes(outcomes: Sequence[str]) -> str:
    """'2 kept, 1 lost'."""
    return ", ".join(
        f"{outcomes.count(outcome)} {outcome}" for outcome in _OUTCOMES if outcome in outcomes
    )


def _describe_seeds(part: ComparisonPart, names: Sequence[str]) -> str:
    """Describe verdicts and mean difference from the teacher over several seeds."""
    method = next(method for method in part.methods if names[0] in method.runs.values())
    verdicts = _count_outcomes(list(method.verdicts.values())) or "no verdict"
    sentence = f"Verdicts of the {len(names)} seeds: {verdicts}."
    estimate = method.to_teacher.estimate if method.to_teacher else None
    if estimate is None or estimate.value is None:
        return sentence
    bounds = ""
    if estimate.low is not None and estimate.high is not None:
        bounds = f" ({format_points(estimate.low)} to {format_points(estimate.high)})"
    return (
        f"{sentence} Student minus teacher, mean over the seeds: {format_points(estimate.value)}"
        f" points{bounds}."
    )


def _name_data(results: Results) -> str:
    data = results.config.get("data")
    return str(data["name"]) if isinstance(data, dict) and data.get("name") else "the same data"


def _write_basis(methods: Sequence[ComparisonPart]) -> list[str]:
    sentences = [
        "A verdict compares two models on the images of one split. Comparing two ways of training"
        " takes several seeds."
    ]
    if any(part.winner for part in methods):
        sentences.append(
            "The best method is selected on validation. Quote the test metrics of that method."
        )
    if len(methods) > 1:
        sentences.append(
            "These runs were measured on different data sets. Metrics of different data sets are"
            " not comparable, and nothing is selected across data sets."
        )
    return sentences


def _build_rows(runs: Sequence[_NamedRun], best: Collection[str]) -> list[RunRow]:
    """Build one row per run, the best on validation first, unmeasured runs last."""
    differences = _find_differences(
        [named.run.results.config if named.run else {} for named in runs]
    )
    rows = [
        _build_row(named, differs, named.name in best)
        for named, differs in zip(runs, differences, strict=True)
    ]
    return sorted(rows, key=_rank_row)


def _rank_row(row: RunRow) -> float:
    accuracy = row.validation.value if row.validation else None
    return 1.0 if accuracy is None else -accuracy


def _build_row(named: _NamedRun, differs: dict[str, str], best: bool) -> RunRow:
    if named.run is None:
        return RunRow(
            name=named.name, differs={}, seed=None, status=named.status, reason=named.reason
        )
    results, split = named.run.results, select_split(named.run.results)
    pair = CASCADE if results.cascade is not None else DISTILLATION
    verdict = find_verdict(results)
    return RunRow(
        name=named.name,
        differs=differs,
        seed=results.seed,
        status=results.status,
        reason=results.reason,
        best=best,
        outcome=verdict.outcome if verdict else None,
        validation=_read_metric(results, "validation"),
        test=_read_metric(results, "test"),
        teacher=_drop_undefined(read_estimate(split, pair.reference, "top1")),
        gain=_drop_undefined(read_estimate(split, "pair", "gain")),
    )


def _read_metric(results: Results, split: Literal["validation", "test"]) -> Estimate | None:
    """The metric by which the run is ranked."""
    if results.cascade is not None:
        return _drop_undefined(read_estimate(find_split(results, split), CASCADE.candidate, "top1"))
    score = read_selection(results, split)
    return score and Estimate(value=score.value, low=score.low, high=score.high)


def _drop_undefined(estimate: Estimate) -> Estimate | None:
    return None if estimate.value is None else estimate


def _find_differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the settings of each config that not all configs share."""
    flattened = [
        {
            key: value
            for key, value in flatten(redact(config))
            if key.split(".")[0] not in _COMMON_KEYS
        }
        for config in configs
    ]
    keys = dict.fromkeys(key for config in flattened for key in config)
    known = [config for config in flattened if config]
    varied = [key for key in keys if any(config.get(key) != known[0].get(key) for config in known)]
    return [{key: str(config[key]) for key in varied if key in config} for config in flattened]


def _build_points(name: str, results: Results) -> list[Point]:
    return [
        Point(
            run=name,
            role=model.role,
            name=model.name,
            top1=top1,
            images_per_second=model.images_per_second,
            size_bytes=model.size_bytes,
            macs=model.macs,
        )
        for model, top1 in iterate_accuracies(results)
    ]
