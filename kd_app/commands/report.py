"""``kd-report``: runs -> one page, and the same figures as JSON, CSV and Markdown."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import Field, StrictBool

from kd_app.commands.app import run
from kd_app.config import RequestError, Typed

_Place = Annotated[str, Field(min_length=1)]


class ReportConfig(Typed, called="kd-report"):
    """The top level of ``conf/report.yaml``."""

    def __init__(
        self,
        *,
        runs: list[_Place],
        out: _Place | None,
        latency_ms: list[Annotated[float, Field(gt=0)]],
        schema: StrictBool,
        logger: dict[str, dict[str, Any]],
    ) -> None:
        self.runs = runs
        self.out = out
        self.latency_ms = latency_ms
        self.schema = schema
        self.logger = logger


def _run_task(config: dict[str, Any], trial: int | None) -> None:
    asked = ReportConfig(**config)
    if asked.schema:
        from kd_app.reporting.results import build_json_schema

        print(json.dumps(build_json_schema(), indent=1))
        return
    if not asked.runs:
        raise RequestError(
            "kd-report needs to know which runs: 'runs=[runs/a,runs/b]', or a sweep's folder. Quote"
            " it for the shell."
        )
    from kd_app.reporting.html import write_report
    from kd_app.reporting.runs import find_runs

    runs = find_runs(asked.runs)
    out = Path(asked.out) if asked.out else _resolve_out(runs)
    page = write_report(runs, out if trial is None else out / str(trial), asked.latency_ms)
    if asked.logger:
        from kd_app.tracking.report import tell_report

        tell_report(runs, page, asked.logger)
    print(
        f"{len(runs)} run{'' if len(runs) == 1 else 's'}: {page}, and the same figures as"
        " report.json, report.csv and report.md"
    )


def _resolve_out(runs: list[Path]) -> Path:
    """A single run's own folder; ``report`` in the folder that holds all of several."""
    return (
        runs[0]
        if len(runs) == 1
        else Path(os.path.commonpath([run.absolute().parent for run in runs])) / "report"
    )


def main() -> NoReturn:
    """The command."""
    run(_run_task, "report")


if __name__ == "__main__":
    main()
