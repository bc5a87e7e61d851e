"""TensorBoard and MLflow, as the loggers that Lightning has for them."""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from kd_app.config import RequestError
from kd_app.tracking.base import Backend, Outcome, Point, RunStart, TrackerRun, restore_environment

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_STOPPED = (130, 143)


class TensorBoard(Backend):
    """Event files under ``tensorboard/<stage>`` in the run's folder."""

    def __init__(self) -> None:
        _require_package("tensorboard", "tensorboard", choice="tensorboard")

    def open(self, opening: RunStart, say: Callable[[str], None]) -> TrackerRun | None:
        """Open the stage's event file."""
        from lightning.pytorch.loggers import TensorBoardLogger

        folder = opening.out / "tensorboard"
        begun = bool(opening.points) and (folder / opening.stage).is_dir()
        lost = (
            opening.points[-1][1] + 1 if begun else None
        )  # from here on an attempt wrote what it did not get to save
        logger = TensorBoardLogger(
            folder, name="", version=opening.stage, default_hp_metric=False, purge_step=lost
        )
        logger.log_hyperparams(dict(opening.config))
        return _LightningRun(logger, opening.points, stopped="failed", told=begun)


class MLflow(Backend):
    """A run of `experiment` for each stage, on the server or in the store that `uri`
    names.
    """

    def __init__(self, *, experiment: str, uri: str | None) -> None:
        self._experiment = experiment
        self._uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        _require_package("mlflow", "mlflow-skinny", choice="mlflow")
        if self._uri and self._uri.startswith(_DATABASES) and find_spec("sqlalchemy") is None:
            raise RequestError(
                f"logger.mlflow.uri={self._uri!r} is a database, and the package that reads and"
                " writes those is not installed. Install it with 'pip install mlflow', or use"
                " logger.mlflow.uri=null, which keeps plain files in the run's folder."
            )

    def open(self, opening: RunStart, say: Callable[[str], None]) -> TrackerRun | None:
        """Open the stage's run."""
        uri = self._uri or (opening.out / "mlflow").as_uri()
        with restore_environment(MLFLOW_ALLOW_FILE_STORE="true", MLFLOW_DISABLE_TELEMETRY="true"):
            from lightning.pytorch.loggers import MLFlowLogger

            tags = {"group": opening.group, "stage": opening.stage, "tags": ",".join(opening.tags)}
            logger = MLFlowLogger(
                self._experiment, run_name=opening.name, tracking_uri=uri, tags=tags
            )
            logger.log_hyperparams(dict(opening.config))
        return _LightningRun(logger, opening.points, stopped="KILLED", told=False)


class _LightningRun(TrackerRun):
    """One of Lightning's loggers; `stopped` is its word for a run that somebody
    stopped; earlier `points` are logged unless it was `told` them.
    """

    def __init__(
        self, logger: "Logger", points: Sequence[Point], *, stopped: str, told: bool
    ) -> None:
        self._logger = logger
        self._stopped = stopped
        self._last = points[-1][1] if points else 0
        for row, step in () if told else points:
            self.log(row, step)

    def log(self, row: Mapping[str, float], step: int) -> None:
        self._last = step
        self._logger.log_metrics(dict(row), step)

    def log_outcome(self, outcome: Outcome) -> None:
        self._logger.log_metrics(
            {
                name: float(value)
                for name, value in outcome.figures.items()
                if not isinstance(value, str)
            },
            self._last,
        )

    def close(self, exit_code: int) -> None:
        self._logger.finalize(
            "success" if exit_code == 0 else self._stopped if exit_code in _STOPPED else "failed"
        )


def _require_package(module: str, package: str, *, choice: str) -> None:
    if find_spec(module) is None:
        raise RequestError(
            f"logger={choice} needs the package {package}, which is not installed. Install it with"
            f" 'pip install {package}', or leave it out."
        )
