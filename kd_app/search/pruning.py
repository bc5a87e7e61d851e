"""Ends a trial of a sweep whose curve is worse than those of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_app.config import RunError
from kd_app.search.trials import CURVE, read_curve, require_optuna


class TrialPruned(RunError):  # noqa: N818 (Optuna names it so)
    """The trial was ended early, for example since the earlier trials were better at
    the same epoch; `hint` says how to go on all the same.
    """

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


@dataclass
class MedianPruner:
    """Looks at the curve of a sweep's trial and ends it by `TrialPruned` when the other
    trials were better: below the median of their best so far.

    The rule is Optuna's MedianPruner, after `STARTUP` trials and not before the second
    epoch.
    """

    sweep: Path
    number: int

    STARTUP = 4

    def __post_init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        require_optuna()
        import optuna
        from optuna.trial import TrialState

        from kd_app.search.study import create_study

        pruner = optuna.pruners.MedianPruner(n_startup_trials=self.STARTUP, n_warmup_steps=1)
        self._study = create_study(["maximize"], optuna.samplers.RandomSampler(seed=0), pruner)
        for folder in self.sweep.glob("[0-9]*"):
            if folder.name != str(self.number) and (points := read_curve(folder)):
                last = points[max(points)]
                self._study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.COMPLETE, value=last, intermediate_values=points
                    )
                )
        self._trial = self._study.ask()

    def start(
        self, stage: str, teacher: Any, points: Sequence[tuple[dict[str, float], int]]
    ) -> "MedianPruner":
        """Take the points of an earlier attempt."""
        for row, step in points:
            self(row, step)
        return self

    def finish(self, stage: str, model: Any, teacher: Any, points: Any) -> None:
        """A training that has ended is not pruned."""

    def __call__(self, row: Mapping[str, float], step: int) -> None:
        """Take the next point of the curves."""
        self.rows.append({**row, "step": float(step)})
        if CURVE not in row:
            return
        epoch = int(row["epoch"])
        self._trial.report(row[CURVE], epoch)
        if self._trial.should_prune():
            raise TrialPruned(
                f"Ended after epoch {epoch + 1}: validation top1 {row[CURVE]:.4f}, and the median"
                " of the other trials was better.",
                "What was trained is kept; trial_pruning=null goes on with it.",
            )
