"""``kd-check``: check the teacher, the data and the setup before a run, and estimate
the cost.
"""

from typing import Any, NoReturn

from kd_app.commands.app import run


def _run_task(config: dict[str, Any], trial: int | None) -> None:
    from kd_app.jobs.check import check

    check(config)


def main() -> NoReturn:
    """Run kd-check."""
    run(_run_task, "check")


if __name__ == "__main__":
    main()
