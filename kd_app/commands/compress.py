"""``kd-compress``: make the student of a finished run smaller, step by step."""

from collections.abc import Callable
from typing import Any, NoReturn

from kd_app.commands.app import run


def _run_task(config: dict[str, Any], trial: int | None) -> None:
    from kd_app.jobs.compress import compress

    compress(config, trial=trial)


def _finish_sweep(
    config: dict[str, Any], find_trial: Callable[[int], dict[str, Any] | None]
) -> None:
    from kd_app.jobs.sweep import compare_trials

    compare_trials(config)


def main() -> NoReturn:
    """Run kd-compress."""
    run(_run_task, "compress", after_sweep=_finish_sweep)


if __name__ == "__main__":
    main()
