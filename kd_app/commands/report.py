"""``kd-report``: write one page about runs, and the same metrics as JSON, CSV and
Markdown.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import Field, StrictBool

from kd_app.commands.app import run
from kd_app.config import RequestError, Typed

_Place = Annotated[str, Field(min_length=1)]


class ReportConfig(Typed, called="kd-report"):
    """The top-level settings of ``conf/report.yaml``."""

    def __init__(
        self,
        *,
        runs: list[_Place],
        out: _Place | None,
        latency_ms: list[Annotated[float, Field(gt=0)]],
        stages: _Place | None,
        free: StrictBool,
        keep_days: Annotated[float, Field(ge=0)],
        schema: StrictBool,
        logger: dict[str, dict[str, Any]],
    ) -> None:
        self.runs = runs
        self.out = out
        self.latency_ms = latency_ms
        self.stages = stages
        self.free = free
        self.keep_days = keep_days
        self.schema = schema
        if free and stages is None:
            raise RequestError(
                "free=true removes cached stages, and stages= names no folder. Set stages=<folder>,"
                " for example stages=runs/.stages."
            )
        self.logger = logger


def _run_task(config: dict[str, Any], trial: int | None) -> None:
    settings = ReportConfig(**config)
    if settings.schema:
        from kd_app.reporting.results import build_json_schema

        print(json.dumps(build_json_schema(), indent=1))
        return
    if settings.stages is not None:
        from kd_app.jobs.stages import report_stages

        report_stages(
            Path(settings.stages),
            settings.runs,
            free=settings.free,
            keep_days=settings.keep_days,
        )
        return
    if not settings.runs:
        raise RequestError(
            "kd-report needs runs, but runs= is empty. Set 'runs=[runs/a,runs/b]', or the folder of"
            " a sweep; quote the list for the shell."
        )
    from kd_app.reporting.html import check_owner, write_report
    from kd_app.reporting.runs import find_runs

    runs = find_runs(settings.runs)
    out = Path(settings.out) if settings.out else _resolve_out(runs)
    if settings.out:
        check_owner(out)
    page = write_report(runs, out if trial is None else out / str(trial), settings.latency_ms)
    if settings.logger:
        from kd_app.tracking.report import log_report

        log_report([run for run in runs if run.is_dir()], page, settings.logger)
    print(
        f"{len(runs)} run{'' if len(runs) == 1 else 's'}: {page}, and the same metrics in"
        " report.json, report.csv and report.md"
    )


def _resolve_out(runs: list[Path]) -> Path:
    """The folder of a single run, else ``report`` in the common parent folder of the
    runs.
    """
    if len(runs) == 1:
        return runs[0]
    return Path(os.path.commonpath([run.absolute().parent for run in runs])) / "report"


def main() -> NoReturn:
    """Run kd-report."""
    run(_run_task, "report")


if __name__ == "__main__":
    main()
