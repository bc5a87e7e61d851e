"""The rules for Lightning's callbacks: which ones work in a training of kd_app, what
they may monitor, and how their failures are reported.
"""

import math
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import combinations
from traceback import walk_tb
from typing import Any, Final

from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, WeightAveraging
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from kd_app.config import RequestError, RunError, suggest_closest
from kd_app.config.errors import take_first_line
from kd_app.config.length import LengthNeed
from kd_app.config.make import make
from kd_app.config.targets import resolve_target
from kd_app.tasks.base import Direction, Task
from kd_app.tasks.build import TASKS

_AUTO: Final = "auto"
"""The monitor that stands for the metric by which the best epoch is chosen."""
_PREFIX = "validation/"
_LIGHTNING = "lightning.pytorch.callbacks"
_REMAINING = 0.05
"""Share of the first weights in an average that is small enough."""
_UNSUPPORTED = {
    "LearningRateFinder": (
        "it searches with the trainer's own schedule, which kd_app replaces",
        "Search with kd-distill -m hparams_search=optimizer, or set optimizer.lr",
    ),
    "BatchSizeFinder": (
        "it changes a batch size that kd_app has already read",
        "Set data.batch_size",
    ),
    "ModelPruning": (
        "it masks weights, which makes the model neither smaller nor faster",
        "Prune the finished run with kd-compress run=<run> 'steps=[prune,finetune]'",
    ),
    "StochasticWeightAveraging": (
        "its average is computed after the last validation, so it could not be compared with"
        " the other epochs or exported",
        "Use 'callbacks=[ema]'",
    ),
    "GradientAccumulationScheduler": (
        "it changes the number of steps that the learning rate's schedule counts on",
        "Set trainer.accumulate_grad_batches",
    ),
    "BaseFinetuning": (
        "it needs a module with a backbone of its own, and changes the optimizer in mid-training",
        "Set student.freeze=backbone",
    ),
    "ProgressBar": ("kd_app prints the progress itself", "Leave it out"),
    "ModelSummary": ("kd_app prints the models itself", "Leave it out"),
    "BasePredictionWriter": (
        "a training makes no predictions",
        "Use predictions.parquet in the run's folder",
    ),
    "LambdaCallback": (
        "its arguments are functions, which a configuration can't hold",
        "Put a class of your own into a module and name it in callbacks.<name>._target_",
    ),
    "ThroughputMonitor": (
        "its arguments are functions, which a configuration can't hold",
        "Read images_per_second in results.json",
    ),
}
"""By class: why a callback can't work here, as a clause, and the alternative."""


def build_callback(
    name: str, node: Mapping[str, Any], task: Task, *, has_teacher: bool
) -> Callback:
    """Build the callback `name`. Raises `RequestError` for a callback that can't work
    in a training of kd_app, and for a metric that a training of `task` does not have.
    """
    check_supported(name, node)
    if node.get("monitor") == _AUTO:
        node = {**node, "monitor": _PREFIX + task.selection.metric}
    callback: Callback = make(node, Callback)
    monitor = getattr(callback, "monitor", None)
    if isinstance(monitor, str):
        known = list_metrics(task, has_teacher=has_teacher)
        check_monitor(f"callbacks.{name}.monitor", monitor, known)
        mode, direction = getattr(callback, "mode", None), known[monitor]
        expected = "max" if direction == "higher" else "min"
        if mode in ("min", "max") and mode != expected:
            raise RequestError(
                f"callbacks.{name}.mode={mode}, but {monitor} is better when it is {direction}. Set"
                f" callbacks.{name}.mode={expected} (with + in front, if it is not set yet)."
            )
    return callback


def check_supported(name: str, node: Mapping[str, Any]) -> None:
    """Raise `RequestError` for a class of Lightning that can't work here, and for the
    classes derived from it.
    """
    target = node.get("_target_")
    if not isinstance(target, str):
        return
    for base in getattr(resolve_target(f"callbacks.{name}", target), "__mro__", ()):
        if base.__module__.startswith(_LIGHTNING) and base.__name__ in _UNSUPPORTED:
            reason, instead = _UNSUPPORTED[base.__name__]
            raise RequestError(
                f"callbacks.{name}={target} does not work in kd_app: {reason}. {instead}."
            )


def check_together(callbacks: Mapping[str, Callback]) -> None:
    """Raise `RequestError` for two callbacks that would overwrite each other."""
    for (name, one), (other_name, other) in combinations(callbacks.items(), 2):
        is_stateful = type(one).state_dict is not Callback.state_dict
        are_averages = isinstance(one, WeightAveraging) and isinstance(other, WeightAveraging)
        if are_averages or (is_stateful and one.state_key == other.state_key):
            raise RequestError(
                f"callbacks.{name} ({type(one).__name__}) and callbacks.{other_name}"
                f" ({type(other).__name__}) can't be used together: both keep the same state."
                f" Leave one out, for example ~callbacks.{other_name}."
            )


def list_metrics(task: Task, *, has_teacher: bool) -> dict[str, Direction]:
    """The metrics that a callback can monitor, with the direction of better values."""
    metrics = task.list_metrics(has_teacher=has_teacher)
    return {_PREFIX + name: better for name, better in metrics.items()}


@cache
def list_all_metrics() -> dict[str, Direction]:
    """The metrics of all tasks."""
    metrics: dict[str, Direction] = {}
    for task in TASKS:
        metrics |= list_metrics(task(), has_teacher=True)
    return metrics


def check_monitor(setting: str, monitor: str, known: Mapping[str, Direction]) -> None:
    """Raise `RequestError` for a metric that is not `known`."""
    if monitor in known:
        return
    words = {"loss": "nll", "acc": "top1", "accuracy": "top1"}
    last = monitor.replace("/", "_").rpartition("_")[2]
    name = _PREFIX + words.get(last, last)
    hint = f"Did you mean {name!r}? " if name in known else suggest_closest(monitor, known)
    raise RequestError(
        f"{setting}={monitor!r} is not a metric of this training. {hint}Known:"
        f" {', '.join(known)}. They are computed on the validation images after each epoch."
    )


def list_callback_needs(callback: Callback, node: Mapping[str, Any]) -> Iterator[LengthNeed]:
    """The lengths that a callback needs; node: its configuration."""
    if hasattr(callback, "list_length_needs"):
        yield from callback.list_length_needs()
    elif isinstance(callback, LightningEarlyStopping):
        yield build_patience_need(callback.patience)
    elif isinstance(callback, EMAWeightAveraging):
        decay, every = node.get("decay", 0.999), node.get("update_every_n_steps", 1)
        yield LengthNeed(
            f"decay={decay:g}",
            math.ceil(every * math.log(_REMAINING) / math.log(decay)),
            "steps",
            "the average consists mostly of the first weights",
            "Use 'callbacks=[ema]', whose decay fits the number of steps, or a smaller decay",
        )


def build_patience_need(patience: int) -> LengthNeed:
    """The epochs that early stopping needs: the first epoch is the best so far, then
    `patience` epochs pass.
    """
    return LengthNeed(
        f"patience={patience}",
        patience + 2,
        "epochs",
        "the training can't stop early",
        "Set a smaller patience or more epochs",
    )


def explain_callback_error(
    error: BaseException, callbacks: Mapping[str, Callback]
) -> RunError | None:
    """The failure of a training by one of its configured `callbacks`; None if the
    error came from elsewhere.
    """
    if isinstance(error, SystemExit) and error.code in (130, 143):
        return None  # a signal that arrived in the callback
    for frame, _ in walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        for name, callback in callbacks.items():
            if owner is callback:
                return RunError(
                    f"The callback {name} ({type(callback).__name__}) failed in"
                    f" {frame.f_code.co_name}: {type(error).__name__}: {take_first_line(error)}"
                    f" Change its settings, or leave it out: ~callbacks.{name}. The training so far"
                    " is saved."
                )
    return None
