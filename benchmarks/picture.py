"""The README's picture of a finished run: accuracy and cost. ``python -m
benchmarks.picture runs/fm docs/result.svg``
"""

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt

from kd_app.reporting.metrics import ModelMetrics
from kd_app.reporting.results import ModelRecord, Results, read

NAMES = {"teacher": "teacher", "labels_only": "labels only", "student": "distilled"}
COLORS = {"teacher": "#0072B2", "labels_only": "#7F7F7F", "student": "#D55E00"}


def plot_results(results: Results, path: Path) -> None:
    """Plot the test accuracy of three models with intervals, and print the cost of
    each.
    """
    split = results.test
    assert split is not None, "the run has not read its test set"
    models: list[tuple[str, ModelMetrics, ModelRecord]] = [
        (role, metrics, results.models[role])
        for role in NAMES
        if (metrics := getattr(split, role)) is not None and role in results.models
    ]
    mpl.rcParams.update({"svg.hashsalt": "kd_app", "font.size": 11, "font.family": "DejaVu Sans"})
    figure, axis = plt.subplots(figsize=(8, 2.6), facecolor="white", layout="constrained")
    for place, (role, metrics, _) in enumerate(models):
        top1, low, high = (
            100 * (value or 0.0) for value in (metrics.top1, metrics.top1_low, metrics.top1_high)
        )
        axis.errorbar(
            top1,
            -place,
            xerr=[[top1 - low], [high - top1]],
            fmt="o",
            color=COLORS[role],
            capsize=4,
            markersize=8,
            linewidth=2,
        )
        axis.annotate(
            f"{top1:.2f} %",
            (top1, -place),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            color=COLORS[role],
        )
    axis.set_yticks(range(0, -len(models), -1), [_label(role, model) for role, _, model in models])
    axis.set_ylim(-len(models) + 0.5, 0.7)
    axis.set_xlabel(
        f"test top-1 (%), with {100 * split.confidence:g} % intervals over {split.num_images:,}"
        " images"
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", color="#DDDDDD")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _label(role: str, model: ModelRecord) -> str:
    macs = f", {model.macs / 1e6:,.1f} M multiply-adds" if model.macs else ""
    params = f"\n{model.params / 1e3:,.0f} k parameters" if model.params else ""
    return f"{NAMES[role]}: {model.name}{params}{macs}"


if __name__ == "__main__":
    plot_results(read(Path(sys.argv[1]) / "results.json"), Path(sys.argv[2]))
