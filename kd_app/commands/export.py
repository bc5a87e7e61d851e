"""``kd-export``: a finished run's student as files for runtimes, each measured as it
is.
"""

from typing import Any, NoReturn

from kd_app.commands.app import run


def _run_task(config: dict[str, Any], trial: int | None) -> None:
    from kd_app.jobs.export import export_run

    export_run(config, trial=trial)


def main() -> NoReturn:
    """The command."""
    run(_run_task, "export")


if __name__ == "__main__":
    main()
