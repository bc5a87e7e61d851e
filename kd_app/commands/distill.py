"""``kd-distill``: train teacher, controls and student, and write the results."""

from collections.abc import Callable
from typing import Any, NoReturn

from kd_app.commands.app import run


def _run_task(config: dict[str, Any], trial: int | None) -> None:
    from kd_app.jobs.label_trials import distill_then_label

    distill_then_label(config, trial=trial)


def _finish_sweep(
    config: dict[str, Any], find_trial: Callable[[int], dict[str, Any] | None]
) -> None:
    from kd_app.jobs.sweep import finish_sweep

    finish_sweep(config, find_trial)


def main() -> NoReturn:
    """Run kd-distill."""
    run(_run_task, "distill", after_sweep=_finish_sweep)


if __name__ == "__main__":
    main()
