"""TensorBoard and MLflow, through Lightning's loggers."""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from kd_app.config import RequestError
from kd_app.signals import STOPPED
from kd_app.tracking.base import Backend, Outcome, Point, RunStart, TrackerRun, restore_environment

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


class TensorBoard(Backend):
    """Event files under ``tensorboard/<stage>`` in the run's folder."""

    def __init__(self) -> None:
        _require_package("tensorboard", "tensorboard", choice="tensorboard")

    def open(self, start: RunStart, say: Callable[[str], None]) -> TrackerRun | None:
        from lightning.pytorch.loggers import TensorBoardLogger

        folder = start.out / "tensorboard"
        resumed = bool(start.points) and (folder / start.stage).is_dir()
        # The earlier attempt may have logged points after its last checkpoint.
        purge_step = start.points[-1][1] + 1 if resumed else None
        logger = TensorBoardLogger(
            folder, name="", version=start.stage, default_hp_metric=False, purge_step=purge_step
        )
        logger.log_hyperparams(dict(start.config))
        return _LightningRun(logger, start.points, stop_status="failed", has_points=resumed)


class MLflow(Backend):
    """A run of `experiment` for each stage, on the server or in the store at `uri`."""

    def __init__(self, *, experiment: str, uri: str | None) -> None:
        self._experiment = experiment
        self._uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or None
        _require_package("mlflow", "mlflow-skinny", choice="mlflow")
        if self._uri and self._uri.startswith(_DATABASES) and find_spec("sqlalchemy") is None:
            raise RequestError(
                f"logger.mlflow.uri={self._uri!r} is a database, but the package for databases is"
                " not installed. Install it with 'pip install mlflow', or use"
                " logger.mlflow.uri=null, which writes plain files to the run's folder."
            )

    def open(self, start: RunStart, say: Callable[[str], None]) -> TrackerRun | None:
        uri = self._uri or (start.out / "mlflow").as_uri()
        with restore_environment(MLFLOW_ALLOW_FILE_STORE="true", MLFLOW_DISABLE_TELEMETRY="true"):
            from lightning.pytorch.loggers import MLFlowLogger

            tags = {"group": start.group, "stage": start.stage, "tags": ",".join(start.tags)}
            logger = MLFlowLogger(
                self._experiment, run_name=start.name, tracking_uri=uri, tags=tags
            )
            logger.log_hyperparams(dict(start.config))
        return _LightningRun(logger, start.points, stop_status="KILLED", has_points=False)


class _LightningRun(TrackerRun):
    """A run of one of Lightning's loggers.

    points: of an earlier attempt, logged unless `has_points` · stop_status: the
    logger's status of an interrupted run.
    """

    def __init__(
        self, logger: "Logger", points: Sequence[Point], *, stop_status: str, has_points: bool
    ) -> None:
        self._logger = logger
        self._stop_status = stop_status
        self._last = points[-1][1] if points else 0
        for row, step in () if has_points else points:
            self.log(row, step)

    def log(self, row: Mapping[str, float], step: int) -> None:
        self._last = step
        self._logger.log_metrics(dict(row), step)

    def log_outcome(self, outcome: Outcome) -> None:
        numbers = {
            name: float(value)
            for name, value in outcome.metrics.items()
            if not isinstance(value, str)
        }
        self._logger.log_metrics(numbers, self._last)

    def close(self, exit_code: int) -> None:
        status = self._stop_status if exit_code in STOPPED else "failed"
        self._logger.finalize("success" if exit_code == 0 else status)


def _require_package(module: str, package: str, *, choice: str) -> None:
    if find_spec(module) is None:
        raise RequestError(
            f"logger={choice} needs the package {package}, which is not installed. Install it with"
            f" 'pip install {package}', or remove {choice} from logger=[...]."
        )
