"""From runs to a report."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Any

from kd_app.config import RequestError
from kd_app.config.keys import NON_IDENTITY_KEYS
from kd_app.config.redact import redact
from kd_app.metrics.model_pair import CASCADE, DISTILLATION
from kd_app.reporting.html.family import build_families
from kd_app.reporting.html.from_predictions import read_estimate
from kd_app.reporting.html.methods import build_comparison
from kd_app.reporting.html.run_section import (
    find_split,
    iterate_accuracies,
    run_part,
    select_split,
    write_answer,
    write_question,
)
from kd_app.reporting.html.schema import ComparisonPart, Point, Report, RunRow
from kd_app.reporting.results import Estimate, Results
from kd_app.reporting.runs import Run, flatten, load_run
from kd_app.reporting.sentences import format_points

IN_FULL = 4
"""Runs up to which each is shown in full; of more, the best on each data set."""
_SAME = (*NON_IDENTITY_KEYS, "test", "seed", "own")
"""Settings by which two runs may differ and be the same otherwise; the seed has a
column of its own.
"""


@dataclass(frozen=True)
class _Named:
    """A run and what the report calls it; `run` is None, and `reason` says why, where
    it can't be read.
    """

    name: str
    run: Run | None
    reason: str = ""


def report(paths: Sequence[Path], budgets: Sequence[float] = ()) -> Report:
    """The report about the runs in these folders; budgets: of latency, milliseconds,
    for which the best file is named.

    Raises `RequestError` where there is no run that can be read.
    """
    runs = _name_runs(paths)
    read = [(each.name, each.run) for each in runs if each.run is not None]
    if not read:
        raise RequestError(runs[0].reason if runs else "There is no run to report on.")
    methods = (
        []
        if len(runs) == 1
        else [
            build_comparison(_name_data(some[0][1].results), some) for some in _group_by_data(read)
        ]
    )
    best = _select_best(methods)
    chosen = {name for part in methods for name in _list_winner_runs(part)}
    full = (
        read
        if len(read) <= IN_FULL
        else ([(name, run) for name, run in read if name in chosen] or read)[:IN_FULL]
    )
    parts = [run_part(run, name) for name, run in full]
    single = len(runs) == 1
    return Report(
        question=parts[0].question if single else write_question(read[0][1].results),
        answer=parts[0].answer if single else _write_answer(dict(read), methods),
        basis=parts[0].basis if single else _write_basis(methods),
        rows=_build_rows(runs, best),
        comparisons=methods,
        points=[point for name, run in read for point in _build_points(name, run.results)],
        families=build_families(read, lambda run: _name_data(run.results), budgets),
        runs=parts,
    )


def _name_runs(paths: Sequence[Path]) -> list[_Named]:
    """The runs by the part of their path that tells them apart."""
    whole = [path.resolve() for path in paths]
    common = Path(commonpath(whole)) if len(whole) > 1 else whole[0].parent if whole else Path()
    found = []
    for path, resolved in zip(paths, whole, strict=True):
        name = resolved.relative_to(common).as_posix()
        try:
            found.append(_Named(name, load_run(path)))
        except RequestError as error:
            found.append(_Named(name, None, str(error).replace(str(path), name)))
    return found


def _group_by_data(read: Iterable[tuple[str, Run]]) -> list[list[tuple[str, Run]]]:
    """The runs on each data set."""
    found: dict[str, list[tuple[str, Run]]] = {}
    for name, run in read:
        found.setdefault(run.results.data.fingerprint if run.results.data else "", []).append(
            (name, run)
        )
    return list(found.values())


def _list_winner_runs(part: ComparisonPart) -> list[str]:
    """The runs of the method that was chosen on validation, or of the only one."""
    chosen = part.winner or (part.methods[0].label if len(part.methods) == 1 else None)
    return [
        name for method in part.methods if method.label == chosen for name in method.runs.values()
    ]


def _select_best(methods: Iterable[ComparisonPart]) -> set[str]:
    """The run that was chosen on validation, of methods with one seed each: of several
    seeds of a method none is better than it.
    """
    return {
        name
        for part in methods
        if part.winner
        for name in _list_winner_runs(part)
        if all(len(method.runs) == 1 for method in part.methods)
    }


def _write_answer(runs: Mapping[str, Run], methods: Sequence[ComparisonPart]) -> str:
    outcomes = [
        run.results.verdict.outcome for run in runs.values() if run.results.verdict is not None
    ]
    counted = ", ".join(
        f"{outcomes.count(outcome)} {outcome}"
        for outcome in ("kept", "lost", "not shown")
        if outcome in outcomes
    )
    said = [
        (
            f"Verdicts of {len(outcomes)} runs: {counted}."
            if outcomes
            else f"{len(runs)} runs, none with a verdict."
        )
    ]
    for part in methods:
        names = _list_winner_runs(part)
        if not names:
            continue
        on = f" of those on {part.data}" if len(methods) > 1 else ""
        chosen = (
            f"Chosen on validation{on}: {part.winner}."
            if part.winner
            else f"{part.methods[0].label}{f' on {part.data}' * (len(methods) > 1)}:"
        )
        said.append(
            f"{chosen}"
            f" {write_answer(runs[names[0]].results) if len(names) == 1 else _describe_seeds(part, names)}"
        )
    return " ".join(said)


def _describe_seeds(part: ComparisonPart, names: Sequence[str]) -> str:
    """What several seeds of one method show of it beside the teacher."""
    method = next(each for each in part.methods if names[0] in each.runs.values())
    outcomes = list(method.verdicts.values())
    counted = ", ".join(
        f"{outcomes.count(each)} {each}"
        for each in ("kept", "lost", "not shown")
        if each in outcomes
    )
    found = method.to_teacher
    if found is None or found.figure.value is None:
        return f"Its {len(names)} seeds: {counted or 'no verdict'}."
    bounds = (
        f", {format_points(found.figure.low)} to {format_points(found.figure.high)}"
        if found.figure.low is not None and found.figure.high is not None
        else ""
    )
    return (
        f"Its {len(names)} seeds: {counted or 'no verdict'}; over them, student minus teacher:"
        f" {format_points(found.figure.value)} points{bounds}."
    )


def _name_data(results: Results) -> str:
    data = results.config.get("data")
    return str(data["name"]) if isinstance(data, dict) and data.get("name") else "the same data"


def _write_basis(methods: Sequence[ComparisonPart]) -> list[str]:
    found = [
        "A verdict compares two models, over the images of one split; only several seeds compare"
        " two ways of training."
    ]
    if any(part.winner for part in methods):
        found.append(
            "What is chosen is chosen on validation images; its test figure is the one to quote."
        )
    if len(methods) > 1:
        found.append(
            "These runs were measured on different data: figures of different data sets are not"
            " comparable, and nothing is chosen across them."
        )
    return found


def _build_rows(runs: Sequence[_Named], best: Collection[str]) -> list[RunRow]:
    """One row a run: the best on validation first, those without a figure last."""
    differs = _find_differences([each.run.results.config if each.run else {} for each in runs])
    rows = [
        _build_row(each, changed, each.name in best)
        for each, changed in zip(runs, differs, strict=True)
    ]
    return sorted(
        rows,
        key=lambda row: (
            -(row.validation.value if row.validation and row.validation.value is not None else -1.0)
        ),
    )


def _build_row(each: _Named, differs: dict[str, str], best: bool) -> RunRow:
    if each.run is None:
        return RunRow(
            name=each.name, differs={}, seed=None, status="unreadable", reason=each.reason
        )
    results, split = each.run.results, select_split(each.run.results)
    pair = CASCADE if results.cascade is not None else DISTILLATION
    return RunRow(
        name=each.name,
        differs=differs,
        seed=results.seed,
        status=results.status,
        reason=results.reason,
        best=best,
        outcome=results.verdict.outcome if results.verdict else None,
        validation=_drop_missing(
            read_estimate(find_split(results, "validation"), pair.candidate, "top1")
        ),
        test=_drop_missing(read_estimate(find_split(results, "test"), pair.candidate, "top1")),
        teacher=_drop_missing(read_estimate(split, pair.reference, "top1")),
        gain=_drop_missing(read_estimate(split, "pair", "gain")),
    )


def _drop_missing(figure: Estimate) -> Estimate | None:
    return None if figure.value is None else figure


def _find_differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """For each configuration the settings that not all of them share."""
    flattened = [
        {key: value for key, value in flatten(redact(config)) if key.split(".")[0] not in _SAME}
        for config in configs
    ]
    keys = dict.fromkeys(key for each in flattened for key in each)
    known = [each for each in flattened if each]
    varied = [key for key in keys if any(each.get(key) != known[0].get(key) for each in known)]
    return [{key: str(each[key]) for key in varied if key in each} for each in flattened]


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
