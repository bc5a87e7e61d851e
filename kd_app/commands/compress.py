"""``kd-compress``: a finished run's student, made smaller step by step."""

from typing import Any, NoReturn

from kd_app.commands.app import run


def _task(config: dict[str, Any], trial: int | None) -> None:
    from kd_app.compression.run import compress

    compress(config, trial=trial)


def main() -> NoReturn:
    """The command."""
    run(_task, "compress")


if __name__ == "__main__":
    main()
