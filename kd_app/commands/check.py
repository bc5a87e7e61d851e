"""``kd-check``: is the teacher sound, is the set-up sound, what will it cost."""

from typing import Any, NoReturn

from kd_app.commands.app import run


def _run_task(config: dict[str, Any], trial: int | None) -> None:
    from kd_app.jobs.check import check

    check(config)


def main() -> NoReturn:
    """The command."""
    run(_run_task, "check")


if __name__ == "__main__":
    main()
