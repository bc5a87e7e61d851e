"""The job of ``experiment=label_free_then_labels``: a run without labels, then
trainings on a few labels from its student and from other weights.
"""

from pathlib import Path
from typing import Any, Final

from kd_app.config import RequestError
from kd_app.jobs import distill as job
from kd_app.reporting.console import Console
from kd_app.reporting.label_trials import TrialResult, write_trials_table
from kd_app.reporting.results import read
from kd_app.run.folder import build_run_name
from kd_app.run_files import RESULTS
from kd_app.specs.label_trials import KEY, STARTS, LabelTrial, check_label_trials, list_label_trials
from kd_app.specs.spec import ExternalParts
from kd_app.stages import write_atomically

TABLE: Final = "labels.md"
"""In the run's folder: the accuracy of all trainings."""


def distill_then_label(
    config: dict[str, Any],
    *,
    own: ExternalParts | None = None,
    console: Console | None = None,
    trial: int | None = None,
) -> Path:
    """Run ``kd-distill`` with `config`, then its `label_trials` if there are any, and
    write their table; returns the run's folder. own, trial: see `distill`.

    Finished trainings are found again. Raises `RequestError` before anything is trained
    if a training is not possible.
    """
    if config.get(KEY) is None:
        return job.distill(config, own=own, console=console, trial=trial)
    if trial is not None or (own is not None and own != ExternalParts()):
        what = "objects from Python are given" if trial is None else "this is one run of a sweep"
        raise RequestError(
            f"{KEY} trains several models after a run, and {what}. Expected: one command,"
            " without -m, whose models and data are named. Remove the experiment, and start from"
            " the run with student.checkpoint=<its folder>."
        )
    console = console or Console()
    out = Path(config["out"] or Path("runs") / build_run_name(config))
    trials = list_label_trials(config, out)
    check_label_trials(trials)
    plain = {key: value for key, value in config.items() if key != KEY}
    job.distill({**plain, "out": str(out)}, console=console)
    results = [_train(trial, console) for trial in trials]
    table = write_trials_table(results)
    write_atomically(out / TABLE, f"{table}\n")
    console.print(f"\n{table}\n\nThe table: {out / TABLE}")
    return out


def _train(trial: LabelTrial, console: Console) -> TrialResult:
    console.print(f"\n{STARTS[trial.start]}, {100 * trial.fraction:g} % of the labels")
    folder = job.distill(trial.config, console=console)
    results = read(folder / RESULTS)
    split = results.test or results.validation
    if split is None:
        raise RequestError(f"{folder} holds no measurement. Set test=auto and overwrite=true.")
    return TrialResult(STARTS[trial.start], trial.fraction, split.student.look_up("top1"))
