"""A report as a page, as JSON, as a table of figures and as text."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_app.config import RequestError
from kd_app.reporting.html.collect import report
from kd_app.reporting.html.run_section import label_models
from kd_app.reporting.html.schema import FilePart, Report, RunPart
from kd_app.reporting.html.sections import Section, build_overview, build_sections
from kd_app.reporting.html.tables import Table
from kd_app.reporting.results import Estimate
from kd_app.stages import write_atomically

PAGE = "report.html"
FILES = (PAGE, "report.json", "report.csv", "report.md")
_OF_FILE = (
    *(
        "negative_flips",
        "size_bytes",
        "latency_p50",
        "latency_p95",
        "latency_p99",
        "images_per_second",
        "cost_per_million",
    ),
    *("start_seconds", "peak_memory_bytes", "tier"),
)
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class _Shown:
    """A run as the page shows it. id: what the ids of its sections begin with."""

    id: str
    name: str
    title: str
    answer: str
    outcome: str | None
    basis: list[str]
    parts: list[Section]


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    budgets: Sequence[float] = (),
) -> Path:
    """Write what the runs in these folders show into the folder `out`: report.html,
    report.json, report.csv and report.md; the path of the page.

    budgets: of latency (95 of 100 images, one at a time), milliseconds: for each the
    best exported file is named.

    Raises `RequestError`: none of the runs can be read, or `out` can't be made.
    """
    found, folder = report([Path(run) for run in runs], budgets), Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"The folder out={str(folder)!r} can't be made: {error.strerror or error}. Choose"
            " another one with out=."
        ) from None
    for name, content in zip(
        FILES,
        (
            render_html(found),
            found.model_dump_json(indent=1) + "\n",
            render_csv(found),
            render_markdown(found),
        ),
        strict=True,
    ):
        write_atomically(folder / name, content)
    return folder / PAGE


def _arrange(found: Report) -> list[_Shown]:
    single = len(found.rows) == 1
    return [
        _Shown(
            id="" if single else f"run-{number}-",
            name=run.name,
            title=run.title,
            answer=run.answer,
            outcome=run.verdict.outcome if run.verdict else None,
            basis=run.basis,
            parts=build_sections(found, run),
        )
        for number, run in enumerate(found.runs, 1)
    ]


def render_html(found: Report) -> str:
    """One page that needs nothing beside itself, and runs nothing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["called"] = lambda role: label_models([role])[role]
    runs, several = _arrange(found), build_overview(found)
    return environment.get_template("page.html.jinja").render(
        report=found,
        runs=runs,
        overview=several,
        title=runs[0].title if not several else f"{len(found.rows)} runs",
        outcome=(
            outcomes.pop() if len(outcomes := {row.outcome for row in found.rows}) == 1 else None
        ),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
    )


def render_csv(found: Report) -> str:
    """CSV with a row a figure: run, split, about (a model, 'pair', a class ...),
    figure, value, low, high.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "split", "about", "figure", "value", "low", "high"])
    for row in found.rows:
        for split, figure in (("validation", row.validation), ("test", row.test)):
            if figure is not None:
                writer.writerow([row.name, split, "student", "top1", *_list_bounds(figure)])
    for run in found.runs:
        writer.writerows([run.name, run.split, *cells] for cells in _iterate_metrics(run))
    for family in found.families:
        writer.writerows(cells for part in family.files for cells in _iterate_file_metrics(part))
    return text.getvalue()


def _list_bounds(figure: Estimate) -> list[object]:
    return [figure.value, figure.low, figure.high]


def _iterate_metrics(run: RunPart) -> Iterator[list[object]]:
    for model in run.models:
        for name, figure in model.figures.items():
            yield [model.role, name, *_list_bounds(figure)]
        for name in ("params", "macs", "size_bytes", "images_per_second"):
            yield [model.role, name, getattr(model, name), None, None]
    for each in run.pair:
        yield ["pair", each.key, *_list_bounds(each.figure)]
    if run.verdict is not None:
        yield [
            "verdict",
            f"{run.verdict.metric} difference",
            run.verdict.difference,
            run.verdict.low,
            run.verdict.high,
        ]
    for row in run.classes:
        for role, accuracy in row.accuracy.items():
            yield [role, f"accuracy of {row.name}", accuracy, None, None]
    for name, group in run.groups.items():
        for role, estimate in group.accuracy.items():
            yield [role, f"accuracy of group {name}", *_list_bounds(estimate)]
    yield from _iterate_routing_metrics(run)
    for corrupted in run.robustness:
        for role, value in corrupted.accuracy.items():
            yield [
                role,
                f"accuracy under {corrupted.corruption} {corrupted.severity}",
                value,
                None,
                None,
            ]


def _iterate_routing_metrics(run: RunPart) -> Iterator[list[object]]:
    for curve in run.cascade.curves if run.cascade else []:
        for rung in curve.rungs:
            yield [
                f"cascade by {curve.measure}",
                f"accuracy where {rung.shares[1]:.4g} is sent on",
                rung.accuracy,
                None,
                None,
            ]
            yield [
                f"cascade by {curve.measure}",
                f"milliseconds where {rung.shares[1]:.4g} is sent on",
                rung.cost_ms,
                None,
                None,
            ]


def _iterate_file_metrics(part: FilePart) -> Iterator[list[object]]:
    about = part.label.removeprefix(part.run).lstrip("/: ")
    for split, found in (("validation", part.validation), ("test", part.test)):
        if found is not None:
            yield [part.run, split, about, "top1", *_list_bounds(found)]
    split = "test" if part.test else "validation"
    yield from (
        [part.run, split, about, name, getattr(part, name), None, None]
        for name in _OF_FILE
        if getattr(part, name) is not None
    )


def render_markdown(found: Report) -> str:
    """The page without its drawings."""
    lines = [
        f"# {found.question}",
        "",
        f"**{_flatten(found.answer)}**",
        "",
        *(f"{_flatten(said)}\n" for said in found.basis),
    ]
    lines += _iterate_texts(build_overview(found), "##")
    for run in _arrange(found):
        if len(found.rows) > 1:
            lines += [
                f"## {_flatten(run.name)}: {_flatten(run.title)}",
                "",
                f"**{_flatten(run.answer)}**",
                "",
                *(f"{_flatten(said)}\n" for said in run.basis),
            ]
        lines += _iterate_texts(run.parts, "##" if len(found.rows) == 1 else "###")
    return "\n".join(lines).rstrip() + "\n"


def _iterate_texts(parts: Sequence[Section], level: str) -> Iterator[str]:
    for part in parts:
        content = [
            *(f"{_flatten(said)}\n" for said in part.says),
            *(f"- {_flatten(item)}" for item in part.items),
        ]
        content += [line for each in (*part.tables, *part.folded) for line in _render_table(each)]
        if content:
            yield from (f"{level} {part.title}", "", *content, "")


def _render_table(of: Table) -> Iterator[str]:
    yield from ("", f"{_flatten(of.title)}:", "")
    yield "| " + " | ".join(_flatten(head) for head in of.columns) + " |"
    yield (
        "|"
        + "|".join("---" if number in of.words else "---:" for number in range(len(of.columns)))
        + "|"
    )
    for row in of.rows:
        yield (
            "| "
            + " | ".join(
                _flatten(f"{cell.text} ({cell.small})" if cell.small else cell.text) for cell in row
            )
            + " |"
        )


def _flatten(text: str) -> str:
    """On one line, and nothing in it taken for a table, a tag, or a link."""
    for sign in "\\|<>[]*_`":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
