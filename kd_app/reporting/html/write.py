"""Write a report as an HTML page, JSON, CSV and Markdown."""

import csv
import errno
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kd_app.config import RequestError
from kd_app.config.csv_cells import write_rows
from kd_app.config.records import load_record
from kd_app.reporting.html.collect import build_report
from kd_app.reporting.html.run_section import label_models
from kd_app.reporting.html.schema import FilePart, Report, RunPart
from kd_app.reporting.html.sections import Section, build_overview, build_sections
from kd_app.reporting.html.tables import Table
from kd_app.reporting.metrics import Estimate
from kd_app.stages import write_atomically

if TYPE_CHECKING:
    from jinja2 import Template

PAGE = "report.html"
FILES = (PAGE, "report.json", "report.csv", "report.md")
_FOLDER = Path(__file__).parent
_FILE_METRICS = (
    "negative_flips",
    "size_bytes",
    "latency_p50",
    "latency_p95",
    "latency_p99",
    "images_per_second",
    "cost_per_million",
    "start_seconds",
    "peak_memory_bytes",
    "tier",
)


@dataclass(frozen=True)
class _RunView:
    """A run as the page shows it. id: prefix of the ids of its sections."""

    id: str
    name: str
    title: str
    answer: str
    outcome: str | None
    basis: list[str]
    sections: list[Section]


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    budgets: Sequence[float] = (),
) -> Path:
    """Write the report of the runs in these folders to the folder `out` (report.html,
    report.json, report.csv and report.md), and return the path of the page.

    budgets: limits of the p95 latency of one image, milliseconds; the report names the
    best exported file for each.

    Raises `RequestError` if none of the runs can be read, or `out` can't be created or
    written to.
    """
    report, folder = build_report([Path(run) for run in runs], budgets), Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _build_folder_error(folder, "created", error) from None
    views, overview = _build_run_views(report), build_overview(report)
    contents = (
        render_html(report, views, overview),
        report.model_dump_json(indent=1, by_alias=True) + "\n",
        render_csv(report),
        render_markdown(report, views, overview),
    )
    for name, content in zip(FILES, contents, strict=True):
        try:
            write_atomically(folder / name, content)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise _build_folder_error(folder, "written to", error) from None
            raise
    return folder / PAGE


def _build_folder_error(folder: Path, what: str, error: OSError) -> RequestError:
    return RequestError(
        f"The folder out={str(folder)!r} can't be {what}: {error.strerror or error}. Choose"
        " another folder with out=."
    )


def check_owner(folder: Path) -> None:
    """Raise `RequestError` if the folder holds files of these names that are not those
    of a report.
    """
    names = [name for name in FILES if (folder / name).exists()]
    try:
        record = load_record(folder / "report.json", expected="")
    except RequestError:
        record = None
    is_report = isinstance(record, dict) and set(record) == set(Report.model_fields)
    if names and not is_report:
        raise RequestError(
            f"out={str(folder)!r} holds {names[0]}, which kd-report did not write, and was not"
            " changed. Choose another folder with out=."
        )


def _build_run_views(report: Report) -> list[_RunView]:
    is_single = len(report.rows) == 1
    return [
        _RunView(
            id="" if is_single else f"run-{number}-",
            name=run.name,
            title=run.title,
            answer=run.answer,
            outcome=run.verdict.outcome if run.verdict else None,
            basis=run.basis,
            sections=build_sections(report, run),
        )
        for number, run in enumerate(report.runs, 1)
    ]


@cache
def _load_template() -> "Template":
    """The page's template, compiled once in a process."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["label"] = lambda role: label_models([role])[role]
    return environment.get_template("page.html.jinja")


def render_html(report: Report, runs: Sequence[_RunView], overview: Sequence[Section]) -> str:
    """Render one page without scripts and external resources."""
    from markupsafe import Markup

    outcomes = {row.outcome for row in report.rows}
    return _load_template().render(
        report=report,
        runs=runs,
        overview=overview,
        title=f"{len(report.rows)} runs" if overview else runs[0].title,
        outcome=outcomes.pop() if len(outcomes) == 1 else None,
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
    )


def render_csv(report: Report) -> str:
    """Render CSV with one row per number: run, split, about (a model, 'pair', a class
    ...), figure (name of the number), value, low, high.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "split", "about", "figure", "value", "low", "high"])
    for row in report.rows:
        for split, estimate in (("validation", row.validation), ("test", row.test)):
            if estimate is not None:
                cells = [row.name, split, "student", "top1", *_list_bounds(estimate)]
                write_rows(writer, [cells])
    for run in report.runs:
        write_rows(writer, ([run.name, run.split, *cells] for cells in _iterate_metrics(run)))
    for family in report.families:
        rows = (cells for part in family.files for cells in _iterate_file_metrics(part))
        write_rows(writer, rows)
    return text.getvalue()


def _list_bounds(estimate: Estimate) -> list[object]:
    return [estimate.value, estimate.low, estimate.high]


def _iterate_metrics(run: RunPart) -> Iterator[list[object]]:
    for model in run.models:
        for name, estimate in model.metrics.items():
            yield [model.role, name, *_list_bounds(estimate)]
        for name in ("params", "macs", "size_bytes", "images_per_second"):
            yield [model.role, name, getattr(model, name), None, None]
    yield from _iterate_embedding_metrics(run)
    for part in run.pair:
        yield ["pair", part.key, *_list_bounds(part.estimate)]
    verdict = run.verdict
    if verdict is not None:
        bounds = [verdict.difference, verdict.low, verdict.high]
        yield ["verdict", f"{verdict.metric} difference", *bounds]
    for row in run.classes:
        for role, accuracy in row.accuracy.items():
            yield [role, f"accuracy of {row.name}", accuracy, None, None]
    for name, group in run.groups.items():
        for role, estimate in group.accuracy.items():
            yield [role, f"accuracy of group {name}", *_list_bounds(estimate)]
    yield from _iterate_routing_metrics(run)
    for corrupted in run.robustness:
        name = f"accuracy under {corrupted.corruption} {corrupted.severity}"
        for role, accuracy in corrupted.accuracy.items():
            yield [role, name, accuracy, None, None]


def _iterate_embedding_metrics(run: RunPart) -> Iterator[list[object]]:
    last = run.embedding.last if run.embedding else None
    for role, metrics in last[1].models.items() if last else ():
        for name, value in metrics:
            if isinstance(value, Estimate):
                yield [role, name, value.value, value.low, value.high]
            elif value is not None:
                yield [role, name, value, None, None]


def _iterate_routing_metrics(run: RunPart) -> Iterator[list[object]]:
    for curve in run.cascade.curves if run.cascade else []:
        about = f"cascade by {curve.measure}"
        for rung in curve.rungs:
            place = f"where {rung.shares[1]:.4g} is forwarded"
            yield [about, f"accuracy {place}", rung.accuracy, None, None]
            yield [about, f"milliseconds {place}", rung.cost_ms, None, None]


def _iterate_file_metrics(part: FilePart) -> Iterator[list[object]]:
    about = part.label.removeprefix(part.run).lstrip("/: ")
    for split, estimate in (("validation", part.validation), ("test", part.test)):
        if estimate is not None:
            yield [part.run, split, about, "top1", *_list_bounds(estimate)]
    split = "test" if part.test else "validation"
    for name in _FILE_METRICS:
        value = getattr(part, name)
        if value is not None:
            yield [part.run, split, about, name, value, None, None]


def render_markdown(report: Report, runs: Sequence[_RunView], overview: Sequence[Section]) -> str:
    """Render the page as Markdown, without charts and images."""
    is_single = len(report.rows) == 1
    lines = [f"# {report.question}", "", *_render_answer(report.answer, report.basis)]
    lines += _render_sections(overview, "##")
    for run in runs:
        if not is_single:
            lines += [f"## {_escape(run.name)}: {_escape(run.title)}", ""]
            lines += _render_answer(run.answer, run.basis)
        lines += _render_sections(run.sections, "##" if is_single else "###")
    return "\n".join(lines).rstrip() + "\n"


def _render_answer(answer: str, basis: Sequence[str]) -> list[str]:
    return [f"**{_escape(answer)}**", "", *(f"{_escape(sentence)}\n" for sentence in basis)]


def _render_sections(sections: Sequence[Section], level: str) -> Iterator[str]:
    for section in sections:
        content = [f"{_escape(paragraph)}\n" for paragraph in section.paragraphs]
        content += [f"- {_escape(item)}" for item in section.items]
        for table in (*section.tables, *section.folded):
            content += _render_table(table)
        if content:
            yield from (f"{level} {section.title}", "", *content, "")


def _render_table(table: Table) -> Iterator[str]:
    yield from ("", f"{_escape(table.title)}:", "")
    yield "| " + " | ".join(_escape(column) for column in table.columns) + " |"
    alignments = (
        "---" if number in table.text_columns else "---:" for number in range(len(table.columns))
    )
    yield "|" + "|".join(alignments) + "|"
    for row in table.rows:
        texts = (f"{cell.text} ({cell.detail})" if cell.detail else cell.text for cell in row)
        yield "| " + " | ".join(_escape(text) for text in texts) + " |"


def _escape(text: str) -> str:
    """Put `text` on one line and escape the characters of tables, tags and links."""
    for sign in "\\|<>[]*_`":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
