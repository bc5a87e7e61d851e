"""The files that runs were exported to, as a family: which no other beats, and which
answers what is asked.
"""

from collections.abc import Callable, Iterator, Sequence

from kd_app.config import RequestError
from kd_app.reporting.exports import Answering, Exports, Figures, read_exports
from kd_app.reporting.html.schema import Choice, FamilyPart, FilePart
from kd_app.reporting.pareto import select_pareto_front
from kd_app.reporting.results import Estimate
from kd_app.reporting.runs import Run
from kd_app.reporting.sentences import format_margin, format_percent

_Named = Sequence[tuple[str, Run]]


def build_families(
    runs: _Named, data: Callable[[Run], str], budgets: Sequence[float]
) -> list[FamilyPart]:
    """The families of `runs` with their names: one for each data set and device.
    budgets: of latency, milliseconds, p95.
    """
    found: dict[tuple[str, str, str], list[FilePart]] = {}
    called: dict[tuple[str, str, str], str] = {}
    for name, run in runs:
        try:
            exports = read_exports(run.path)
        except RequestError:
            continue  # the run itself says so, among what its page leaves out
        for device, currency, part in _iterate_parts(name, exports) if exports else ():
            key = (run.results.data.fingerprint if run.results.data else "", device, currency)
            found.setdefault(key, []).append(part)
            called[key] = data(run)
    return [
        _build_family(called[key], key[1], key[2], parts, budgets) for key, parts in found.items()
    ]


def _iterate_parts(run: str, exports: Exports) -> Iterator[tuple[str, str, FilePart]]:
    for role, model in exports.torch.items():
        yield (
            *_describe_place(model),
            _build_part(
                model,
                run=run,
                file="",
                role=role,
                label=f"{run}: {role} in torch ({model.name})",
                format="torch",
            ),
        )
    for name, file in exports.files.items():
        part = _build_part(
            file, run=run, file=name, role=file.role, label=f"{run}/{name}", format=file.format
        )
        yield (
            *_describe_place(file),
            part.model_copy(update={"size_bytes": file.size_bytes, "ship": name == exports.ship}),
        )


def _describe_place(of: Answering) -> tuple[str, str]:
    return of.device or "an unknown device", of.currency or ""


def _build_part(of: Answering, **known: str) -> FilePart:
    told, latency, chosen_by = (
        of.test or of.validation,
        of.latency_ms,
        of.validation.verdict if of.validation else None,
    )
    verdict = told.verdict if told else None
    return FilePart(
        **known,
        license=of.license,
        size_bytes=None,
        validation=_estimate(of.validation),
        test=_estimate(of.test),
        outcome_validation=chosen_by.outcome if chosen_by else None,
        outcome=verdict.outcome if verdict else None,
        margin=verdict.margin if verdict else None,
        negative_flips=told.negative_flips if told else None,
        latency_p50=latency.p50 if latency else None,
        latency_p95=latency.p95 if latency else None,
        latency_p99=latency.p99 if latency else None,
        images_per_second=of.images_per_second,
        batch_size=of.batch_size,
        cost_per_million=of.cost_per_million,
        start_seconds=of.start_seconds,
        peak_memory_bytes=of.peak_memory_bytes,
    )


def _estimate(of: Figures | None) -> Estimate | None:
    return (
        None
        if of is None or of.top1 is None
        else Estimate(value=of.top1, low=of.top1_low, high=of.top1_high)
    )


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
    shown = [
        part.model_copy(update={"tier": numbers.get(id(part))})
        for part in sorted(parts, key=_read_cost)
    ]
    choices = [
        _choose_within_margin(files, currency),
        *(_choose_within_budget(files, budget, currency) for budget in budgets),
    ]
    return FamilyPart(
        data=data,
        device=device,
        currency=currency,
        files=shown,
        choices=choices,
        basis=list(_write_basis(parts, device)),
    )


def _read_cost(part: FilePart) -> float:
    return float("inf") if part.cost_per_million is None else part.cost_per_million


def _read_validation(part: FilePart) -> float:
    return (part.validation.value if part.validation else None) or 0.0


def _choose_within_margin(files: Sequence[FilePart], currency: str) -> Choice:
    asked = "Cheapest that keeps the margin"
    kept = [part for part in files if part.outcome_validation == "kept"]
    if not kept:
        judged = (
            "none was shown to keep it on validation"
            if any(part.outcome_validation for part in files)
            else "no file has a verdict on validation"
        )
        return Choice(asked=asked, run=None, file=None, says=f"{asked}: {judged}.")
    best = min(kept, key=_read_cost)
    margin = f" of {format_margin(best.margin)}" if best.margin is not None else ""
    return Choice(
        asked=asked,
        run=best.run,
        file=best.file,
        says=f"{asked}{margin}: {_describe_file(best, currency)}",
    )


def _choose_within_budget(files: Sequence[FilePart], budget: float, currency: str) -> Choice:
    asked = f"Best under {budget:g} ms"
    timed = [(part.latency_p95, part) for part in files if part.latency_p95 is not None]
    within = [part for latency, part in timed if latency <= budget]
    if within:
        best = max(within, key=lambda part: (_read_validation(part), -_read_cost(part)))
        return Choice(
            asked=asked,
            run=best.run,
            file=best.file,
            says=f"{asked} (95 of 100 images, one at a time): {_describe_file(best, currency)}",
        )
    if not timed:
        return Choice(asked=asked, run=None, file=None, says=f"{asked}: no latency was measured.")
    latency, quickest = min(timed, key=lambda each: each[0])
    return Choice(
        asked=asked,
        run=None,
        file=None,
        says=f"{asked}: none; the quickest is {quickest.label} with {format_milliseconds(latency)} (p95).",
    )


def _describe_file(part: FilePart, currency: str) -> str:
    figure, split = part.figure, "test" if part.test else "validation"
    accuracy = f"{format_percent(figure.value)} on {split}" if figure else "of unknown accuracy"
    verdict = f", verdict there: {part.outcome}" if part.outcome else ""
    latency = "" if part.latency_p95 is None else f", {format_milliseconds(part.latency_p95)} (p95)"
    cost = (
        ""
        if part.cost_per_million is None
        else f", {format_price(part.cost_per_million, currency)} per million images"
    )
    return f"{part.label}, {accuracy}{verdict}{latency}{cost}; license: {part.license}."


def format_price(value: float, currency: str) -> str:
    """'0.00123 USD'."""
    return f"{value:.3g} {currency}".rstrip()


def format_milliseconds(value: float) -> str:
    """'0.312 ms', '12.5 ms'."""
    return f"{value:.3g} ms"


def _write_basis(parts: Sequence[FilePart], device: str) -> Iterator[str]:
    yield (
        "Every figure of a file was measured on that file, in its own runtime, with one thread, on"
        f" {device}."
    )
    yield (
        "Tiers and answers are chosen on validation; their figures are those of test, where test"
        " was read."
    )
    if len({part.run for part in parts}) > 1:
        yield (
            "Files of one run were timed in turns; those of different runs at different times, so"
            " that small differences between these mean little."
        )
