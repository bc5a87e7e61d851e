"""``kd-export``: export the student of a finished run for several runtimes, and measure
each exported file.
"""

from typing import Any, NoReturn

from kd_app.commands.app import run


def _run_task(config: dict[str, Any], trial: int | None) -> None:
    from kd_app.jobs.export import export_run

    export_run(config, trial=trial)


def main() -> NoReturn:
    """Run kd-export."""
    run(_run_task, "export")


if __name__ == "__main__":
    main()
