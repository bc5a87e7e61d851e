"""Exported files of several runs, grouped by data set and device. The files that no
other file beats in both accuracy and cost are numbered as tiers, and the best file for
each goal is selected.
"""

from collections.abc import Callable, Iterator, Sequence

from kd_app.config import RequestError
from kd_app.reporting.exports import Exports, FileMetrics, ModelMeasurement, read_exports
from kd_app.reporting.html.schema import Choice, FamilyPart, FilePart
from kd_app.reporting.metrics import Estimate
from kd_app.reporting.pareto import select_pareto_front
from kd_app.reporting.runs import Run
from kd_app.reporting.sentences import format_margin, format_percent

_NamedRuns = Sequence[tuple[str, Run]]
_Key = tuple[str, str, str]
"""Fingerprint of the data, device and currency."""


def build_families(
    runs: _NamedRuns, name_data: Callable[[Run], str], budgets: Sequence[float]
) -> list[FamilyPart]:
    """Build one family for each data set and device.

    runs: pairs of name and run · name_data: returns the name of a run's data set ·
    budgets: limits of the p95 latency, milliseconds.
    """
    groups: dict[_Key, list[FilePart]] = {}
    data: dict[_Key, str] = {}
    for name, run in runs:
        try:
            exports = read_exports(run.path)
        except RequestError:
            continue  # `build_run_part` lists the error in `RunPart.missing`
        fingerprint = run.results.data.fingerprint if run.results.data else ""
        for device, currency, part in _iterate_parts(name, exports) if exports else ():
            key = (fingerprint, device, currency)
            groups.setdefault(key, []).append(part)
            data[key] = name_data(run)
    return [_build_family(data[key], *key[1:], parts, budgets) for key, parts in groups.items()]


def _iterate_parts(run: str, exports: Exports) -> Iterator[tuple[str, str, FilePart]]:
    """Yield device, currency and part of each model in torch and each file."""
    for role, model in exports.torch.items():
        label = f"{run}: {role} in torch ({model.name})"
        part = _build_part(model, run=run, file="", role=role, label=label, format="torch")
        yield model.device or "an unknown device", model.currency or "", part
    for name, file in exports.files.items():
        label = f"{run}/{name}"
        part = _build_part(
            file, run=run, file=name, role=file.role, label=label, format=file.format
        )
        part = part.model_copy(update={"size_bytes": file.size_bytes, "ship": name == exports.ship})
        yield file.device or "an unknown device", file.currency or "", part


def _build_part(export: ModelMeasurement, **identity: str) -> FilePart:
    metrics, latency = export.test or export.validation, export.latency_ms
    verdict = metrics.verdict if metrics else None
    validation_verdict = export.validation.verdict if export.validation else None
    return FilePart(
        **identity,
        license=export.license,
        size_bytes=None,
        validation=_build_estimate(export.validation),
        test=_build_estimate(export.test),
        outcome_validation=validation_verdict.outcome if validation_verdict else None,
        outcome=verdict.outcome if verdict else None,
        margin=verdict.margin if verdict else None,
        negative_flips=metrics.negative_flips if metrics else None,
        latency_p50=latency.p50 if latency else None,
        latency_p95=latency.p95 if latency else None,
        latency_p99=latency.p99 if latency else None,
        images_per_second=export.images_per_second,
        batch_size=export.batch_size,
        cost_per_million=export.cost_per_million,
        start_seconds=export.start_seconds,
        peak_memory_bytes=export.peak_memory_bytes,
    )


def _build_estimate(metrics: FileMetrics | None) -> Estimate | None:
    if metrics is None or metrics.top1 is None:
        return None
    return Estimate(value=metrics.top1, low=metrics.top1_low, high=metrics.top1_high)


def _build_family(
    data: str, device: str, currency: str, parts: list[FilePart], budgets: Sequence[float]
) -> FamilyPart:
    files = [part for part in parts if part.file]
    tiers = select_pareto_front(
        [part for part in files if part.cost_per_million is not None and part.validation],
        cost=_read_cost,
        value=_read_validation,
    )
    numbers = {id(part): number for number, part in enumerate(tiers, 1)}
    by_cost = sorted(parts, key=_read_cost)
    choices = [_select_within_margin(files, currency)]
    choices += [_select_within_budget(files, budget, currency) for budget in budgets]
    return FamilyPart(
        data=data,
        device=device,
        currency=currency,
        files=[part.model_copy(update={"tier": numbers.get(id(part))}) for part in by_cost],
        choices=choices,
        basis=list(_write_basis(parts, device)),
    )


def _read_cost(part: FilePart) -> float:
    return float("inf") if part.cost_per_million is None else part.cost_per_million


def _read_validation(part: FilePart) -> float:
    return (part.validation.value if part.validation else None) or 0.0


def _select_within_margin(files: Sequence[FilePart], currency: str) -> Choice:
    goal = "Cheapest file within the margin"
    within = [part for part in files if part.outcome_validation == "kept"]
    if within:
        best = min(within, key=_read_cost)
        margin = f" of {format_margin(best.margin)}" if best.margin is not None else ""
        sentence = f"{goal}{margin}: {_describe_file(best, currency)}"
        return Choice(goal=goal, run=best.run, file=best.file, sentence=sentence)
    if any(part.outcome_validation for part in files):
        reason = "no file was shown to be within the margin on validation"
    else:
        reason = "no file has a verdict on validation"
    return Choice(goal=goal, run=None, file=None, sentence=f"{goal}: {reason}.")


def _select_within_budget(files: Sequence[FilePart], budget: float, currency: str) -> Choice:
    goal = f"Best file under {budget:g} ms"
    timed = [(part.latency_p95, part) for part in files if part.latency_p95 is not None]
    within = [part for latency, part in timed if latency <= budget]
    if within:
        best = max(within, key=lambda part: (_read_validation(part), -_read_cost(part)))
        sentence = f"{goal} (p95 latency, one image at a time): {_describe_file(best, currency)}"
        return Choice(goal=goal, run=best.run, file=best.file, sentence=sentence)
    if timed:
        latency, fastest = min(timed, key=lambda pair: pair[0])
        reason = f"none. The fastest is {fastest.label} with {format_milliseconds(latency)} (p95)"
    else:
        reason = "no latency was measured"
    return Choice(goal=goal, run=None, file=None, sentence=f"{goal}: {reason}.")


def _describe_file(part: FilePart, currency: str) -> str:
    accuracy, split = part.accuracy, "test" if part.test else "validation"
    texts = [part.label]
    if accuracy:
        texts.append(f"{format_percent(accuracy.value)} on {split}")
    else:
        texts.append("accuracy unknown")
    if part.outcome:
        texts.append(f"verdict on {split}: {part.outcome}")
    if part.latency_p95 is not None:
        texts.append(f"{format_milliseconds(part.latency_p95)} (p95)")
    if part.cost_per_million is not None:
        texts.append(f"{format_price(part.cost_per_million, currency)} per million images")
    return f"{', '.join(texts)}; license: {part.license}."


def format_price(value: float, currency: str) -> str:
    """'0.00123 USD'."""
    return f"{value:.3g} {currency}".rstrip()


def format_milliseconds(value: float) -> str:
    """'0.312 ms', '12.5 ms'."""
    return f"{value:.3g} ms"


def _write_basis(parts: Sequence[FilePart], device: str) -> Iterator[str]:
    yield f"Every file was measured in the runtime of its format, with one thread, on {device}."
    yield (
        "Tiers and recommended files are selected on validation. The metrics of these files"
        " are from test, if test was read."
    )
    if len({part.run for part in parts}) > 1:
        yield (
            "Files of one run were timed in turns, files of different runs at different times."
            " Small differences in speed between runs mean little."
        )
