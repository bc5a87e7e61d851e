"""Trackers of curves and results: Weights & Biases, TensorBoard, MLflow.

Trackers run in the main process of a run, never in a rank.
"""

from kd_app.tracking.base import Backend, Outcome, RunStart, TrackedArtifact, TrackerRun
from kd_app.tracking.csv_file import Csv
from kd_app.tracking.lightning_loggers import MLflow, TensorBoard
from kd_app.tracking.tracker import Tracker
from kd_app.tracking.weights_and_biases import Wandb

__all__ = [
    "Backend",
    "Csv",
    "MLflow",
    "Outcome",
    "RunStart",
    "TensorBoard",
    "TrackedArtifact",
    "Tracker",
    "TrackerRun",
    "Wandb",
]
