"""Early end of a sweep's trial that is worse than the other trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_app.config import RunError
from kd_app.search.trials import find_selected, read_curve, require_optuna


class TrialPruned(RunError):  # noqa: N818 (the name in Optuna)
    """The trial ended early, for example because the other trials were better.

    hint: how to continue the trial anyway.
    """

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


@dataclass
class MedianPruner:
    """End trial `number` of `sweep` with `TrialPruned` if its best value of what
    validation chooses the epoch by (top1, or the overlap of embeddings) is below the
    median of the other trials at the same epoch.

    The rule is Optuna's MedianPruner, with at least `STARTUP` other trials and from the
    second epoch on.
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
        """Replay the points of an earlier attempt."""
        for row, step in points:
            self(row, step)
        return self

    def finish(self, stage: str, model: Any, teacher: Any, points: Any) -> None:
        """Do nothing: a finished training is not pruned."""

    def __call__(self, row: Mapping[str, float], step: int) -> None:
        """Add a point of the curves; raise `TrialPruned` if the trial is worse."""
        self.rows.append({**row, "step": float(step)})
        name = find_selected(row)
        if name is None:
            return
        epoch = int(row["epoch"])
        self._trial.report(row[name], epoch)
        if self._trial.should_prune():
            raise TrialPruned(
                f"Ended after epoch {epoch + 1}: {name} is {row[name]:.4f}, and the median of the"
                " other trials was better.",
                "The trained state is kept: set trial_pruning=null to resume the trial.",
            )
