"""``kd-evaluate``: a finished run's models, measured again."""

from typing import Any, NoReturn

from kd_app.commands.app import run


def _task(config: dict[str, Any], trial: int | None) -> None:
    from kd_app.training.evaluate import evaluate

    evaluate(config, trial=trial)


def main() -> NoReturn:
    """The command."""
    run(_task, "evaluate")


if __name__ == "__main__":
    main()
