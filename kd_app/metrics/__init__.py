"""Teacher-versus-student measures as torchmetrics, intervals of every figure, and the verdict."""

from kd_app.metrics.classification import measures
from kd_app.metrics.figures import figures
from kd_app.metrics.pair import pair_measures
from kd_app.metrics.verdict import Judgment, Verdict

__all__ = ["Judgment", "Verdict", "figures", "measures", "pair_measures"]
