"""``kd-predict``: images labeled by an artifact, a run or a cascade."""

from typing import Any, NoReturn

from kd_app.commands.app import run
from kd_app.config import RequestError


def _run_task(config: dict[str, Any], trial: int | None) -> None:
    if trial is not None:
        raise RequestError(
            "kd-predict writes one file, and -m asks for several. Say it once for each, with an"
            " out= of its own."
        )
    from kd_app.jobs.predict import predict

    predict(config)


def main() -> NoReturn:
    """The command."""
    run(_run_task, "predict")


if __name__ == "__main__":
    main()
