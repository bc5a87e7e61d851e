"""Methods over seeds, as a report tells of them."""

from collections.abc import Mapping, Sequence

from kd_app.metrics.seeds import SeedDifference
from kd_app.metrics.seeds import SeedSummary as Found
from kd_app.reporting.comparison import Method, compare
from kd_app.reporting.html.schema import ComparisonPart, MethodPart, OverSeeds
from kd_app.reporting.results import Estimate
from kd_app.reporting.runs import Run


def build_comparison(data: str, runs: Sequence[tuple[str, Run]]) -> ComparisonPart:
    """The methods of runs on the same data, each run called by its name."""
    found = compare([run for _, run in runs])
    names = {str(run.path): name for name, run in runs}
    says = found.write_sentences()
    for path, name in sorted(names.items(), key=lambda each: -len(each[0])):
        says = [said.replace(repr(path), repr(name)) for said in says]
    return ComparisonPart(
        data=data,
        split=found.split,
        confidence=found.confidence,
        correction=found.correction,
        baseline=found.baseline,
        winner=found.winner,
        methods=[_build_method(each, names) for each in found.methods],
        says=says,
    )


def _build_method(method: Method, names: Mapping[str, str]) -> MethodPart:
    return MethodPart(
        label=method.label,
        runs={seed: names[path] for seed, path in method.runs.items()},
        verdicts=method.verdicts,
        validation=_summarize_seeds(method.validation),
        test=_summarize_seeds(method.test),
        gain=_summarize_seeds(method.gain),
        to_teacher=_summarize_seeds(method.to_teacher),
        to_baseline=_summarize_seeds(method.to_baseline),
    )


def _summarize_seeds(found: Found | None) -> OverSeeds | None:
    if found is None:
        return None
    p, corrected = (found.p, found.corrected) if isinstance(found, SeedDifference) else (None, None)
    return OverSeeds(
        values=found.values,
        figure=Estimate(value=found.mean, low=found.low, high=found.high),
        p=p,
        corrected=corrected,
    )
