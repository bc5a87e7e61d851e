"""Comparison of methods over seeds, as parts of a report."""

from collections.abc import Mapping, Sequence

from kd_app.metrics.seeds import SeedDifference, SeedSummary
from kd_app.reporting.comparison import Method, compare
from kd_app.reporting.html.schema import ComparisonPart, MethodPart, SeedStatistics
from kd_app.reporting.metrics import Estimate
from kd_app.reporting.runs import Run


def build_comparison(data: str, runs: Sequence[tuple[str, Run]]) -> ComparisonPart:
    """Compare the methods of runs on the same data. runs: pairs of name and run."""
    comparison = compare([run for _, run in runs])
    names = {str(run.path): name for name, run in runs}
    sentences = comparison.write_sentences()
    # Longest path first: a path may be the beginning of another one.
    for path, name in sorted(names.items(), key=lambda item: -len(item[0])):
        sentences = [sentence.replace(repr(path), repr(name)) for sentence in sentences]
    return ComparisonPart(
        data=data,
        metric=comparison.metric.title,
        control=comparison.metric.control_title,
        has_teacher=comparison.metric.has_teacher,
        split=comparison.split,
        confidence=comparison.confidence,
        correction=comparison.correction,
        baseline=comparison.baseline,
        winner=comparison.winner,
        methods=[_build_method(method, names) for method in comparison.methods],
        sentences=sentences,
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


def _summarize_seeds(summary: SeedSummary | None) -> SeedStatistics | None:
    if summary is None:
        return None
    difference = summary if isinstance(summary, SeedDifference) else None
    return SeedStatistics(
        values=summary.values,
        estimate=Estimate(value=summary.mean, low=summary.low, high=summary.high),
        p=difference.p if difference else None,
        corrected=difference.corrected if difference else None,
    )
