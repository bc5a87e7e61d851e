"""``kd-predict``: label images with an artifact, a run or a cascade."""

from typing import Any, NoReturn

from kd_app.commands.app import run
from kd_app.config import RequestError


def _run_task(config: dict[str, Any], trial: int | None) -> None:
    if trial is not None:
        raise RequestError(
            "kd-predict writes one file and does not support -m. Run the command once for each"
            " setting, each with another out=."
        )
    from kd_app.jobs.predict import predict

    predict(config)


def main() -> NoReturn:
    """Run kd-predict."""
    run(_run_task, "predict")


if __name__ == "__main__":
    main()
