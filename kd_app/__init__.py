"""Distill any timm model into any other, measure the retained accuracy, and export the
small model.

`distill` is the command kd-distill as a function. `load_run` and `load_runs` read the
results of runs.
"""

TYPE_CHECKING = False  # importing typing takes as long as all of this package

__version__ = "0.1.0"
__all__ = ["__version__", "distill", "load_run", "load_runs"]

if TYPE_CHECKING:
    from typing import Any

    from kd_app.jobs.api import distill
    from kd_app.reporting.runs import load_run, load_runs

_LAZY = {
    "distill": "kd_app.jobs.api",
    "load_run": "kd_app.reporting.runs",
    "load_runs": "kd_app.reporting.runs",
}


def __getattr__(name: str) -> "Any":
    """Import a public function on first use, so that ``import kd_app`` is fast."""
    if name not in _LAZY:
        raise AttributeError(f"module 'kd_app' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
