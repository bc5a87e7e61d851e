"""Where the curves and results of a run are followed: Weights & Biases, TensorBoard,
MLflow; in the run's own process, never in a rank.
"""

from kd_app.tracking.base import Artifact, Backend, Outcome, RunStart, TrackerRun
from kd_app.tracking.csv_file import Csv
from kd_app.tracking.lightning_loggers import MLflow, TensorBoard
from kd_app.tracking.tracker import Tracker
from kd_app.tracking.weights_and_biases import Wandb

__all__ = [
    "Artifact",
    "Backend",
    "Csv",
    "MLflow",
    "Outcome",
    "RunStart",
    "TensorBoard",
    "Tracker",
    "TrackerRun",
    "Wandb",
]
