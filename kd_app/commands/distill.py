"""``kd-distill``: teacher, controls, student, results."""

from typing import Any, NoReturn

from kd_app.commands.app import run


def _task(config: dict[str, Any], trial: int | None) -> None:
    from kd_app.jobs.distill import distill

    distill(config, trial=trial)


def _after_sweep(config: dict[str, Any]) -> None:
    from kd_app.jobs.sweep import conclude

    conclude(config)


def main() -> NoReturn:
    """The command."""
    run(_task, "distill", after_sweep=_after_sweep)


if __name__ == "__main__":
    main()
