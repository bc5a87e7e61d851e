"""A search over settings: what the next trial is, told by what the earlier ones came
to.

The trials' folders are the record: what was proposed lies in ``search.json``, what came
of it in each trial's results.json and metrics.csv. There is no database to lose. Every
proposal is a function of (seed, number, finished trials), so a search that was killed
proposes what it would have proposed.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import TrialState
from pydantic import NonNegativeInt, PositiveInt

from kd_app.config import RequestError, Typed
from kd_app.reporting.results import Results
from kd_app.reporting.runs import flatten
from kd_app.search.trials import FILE, read_curve, read_proposals, read_trial_results
from kd_app.stages import hash_value, write_atomically

DONE = ("finished", "pruned")
Params = dict[str, Any]
Space = Mapping[str, BaseDistribution]


class SearchSettings(Typed, called="hydra.sweeper"):
    """How to search: so many trials, proposed by Optuna's TPE or at random, or the
    cells of a grid in order.

    objectives: keys of results.json and the way that is better; `batch` trials are
    proposed at once, for a launcher that runs several.
    """

    def __init__(
        self,
        *,
        trials: PositiveInt,
        sampler: Literal["tpe", "random", "grid"],
        seed: NonNegativeInt,
        batch: PositiveInt,
        objectives: dict[str, Literal["maximize", "minimize"]],
    ) -> None:
        if not objectives:
            raise RequestError(
                "hydra.sweeper.objectives={} names nothing to search for. Expected for example"
                " {validation.student.top1: maximize}."
            )
        self.trials, self.sampler, self.seed, self.batch, self.objectives = (
            trials,
            sampler,
            seed,
            batch,
            objectives,
        )


class Search:
    """The search in the sweep's folder `out` over `space`, begun or gone on with.
    Raises `RequestError` for another search in that folder.
    """

    def __init__(self, out: Path, settings: SearchSettings, space: Space) -> None:
        self.out, self.settings, self.space = out, settings, space
        asked = {
            "sampler": settings.sampler,
            "seed": settings.seed,
            "objectives": settings.objectives,
            "space": {k: distribution_to_json(v) for k, v in space.items()},
        }
        self.proposed: list[Params] = []
        found = read_proposals(out)
        if found is not None:
            if found["search"] != asked:
                raise RequestError(
                    f"{str(out)!r} holds another search: it was {found['search']}, now {asked}."
                    " Nothing was written over. Choose another out=, or say the same as before to"
                    " go on (hydra.sweeper.trials may grow)."
                )
            self.proposed = found["proposed"]
        self._asked = asked

    @property
    def size(self) -> int:
        """How many trials there will be; a grid has no more than its cells."""
        return (
            min(self.settings.trials, len(_list_cells(self.space)))
            if self.settings.sampler == "grid"
            else self.settings.trials
        )

    def iterate_batches(self) -> Iterator[list[tuple[int, Params]]]:
        """What is to be run next: neighboring numbers of trials that are not done, with
        their settings.
        """
        number = 0
        while number < self.size:
            batch: list[tuple[int, Params]] = []
            while (
                number < self.size
                and len(batch) < self.settings.batch
                and not self._is_done(number)
            ):
                batch.append((number, self._read_params(number)))
                number += 1
            if batch:
                yield batch
            else:
                self._read_params(number)  # in the record also where that was lost
                number += 1

    def _is_done(self, number: int) -> bool:
        found = read_trial_results(self.out / str(number))
        return found is not None and found.status in DONE

    def _read_params(self, number: int) -> Params:
        if number == len(self.proposed):
            self.proposed.append(self._propose(number))
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomically(
                self.out / FILE,
                json.dumps({"search": self._asked, "proposed": self.proposed}, indent=1),
            )
        return self.proposed[number]

    def _propose(self, number: int) -> Params:
        if self.settings.sampler == "grid":
            return _list_cells(self.space)[number]
        seed = int(hash_value([self.settings.seed, number])[:8], 16)
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
        if self.settings.sampler == "tpe":
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        study = create_study(self.settings.objectives.values(), sampler)
        for other, params in enumerate(self.proposed):
            study.add_trial(self._freeze_trial(other, params))
        return {
            key: _round_value(value, self.space[key])
            for key, value in study.ask(dict(self.space)).params.items()
        }

    def _freeze_trial(self, number: int, params: Params) -> optuna.trial.FrozenTrial:
        found = read_trial_results(self.out / str(number))
        values = _read_values(found, self.settings.objectives)
        states = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        state = (
            TrialState.COMPLETE
            if values
            else states.get(found.status if found else "", TrialState.RUNNING)
        )
        single = len(self.settings.objectives) == 1
        intermediate = read_curve(self.out / str(number)) if single else {}
        return optuna.trial.create_trial(
            state=state,
            params=params,
            distributions=dict(self.space),
            values=values,
            intermediate_values=intermediate,
        )


def _read_values(found: Results | None, objectives: Mapping[str, str]) -> list[float] | None:
    """What the objectives came to in a trial; None where it is not finished, or one is
    missing.
    """
    if found is None or found.status != "finished":
        return None
    figures = dict(flatten(found.model_dump(mode="json")))
    values = [figures.get(key) for key in objectives]
    return None if None in values else [float(value) for value in values if value is not None]


def suggest_next(out: Path) -> list[str]:
    """What to try next after the search in `out`, in sentences: settings whose best
    value lies at an end of their range, what mattered most, and with several objectives
    the trials that no other beats in all of them. Nothing where there was no search.
    """
    found = read_proposals(out)
    if found is None:
        return []
    objectives, space = (
        found["search"]["objectives"],
        {key: json_to_distribution(kind) for key, kind in found["search"]["space"].items()},
    )
    study, numbers = create_study(objectives.values(), optuna.samplers.RandomSampler(seed=0)), []
    for number, params in enumerate(found["proposed"]):
        values = _read_values(read_trial_results(out / str(number)), objectives)
        if values is not None:
            study.add_trial(
                optuna.trial.create_trial(values=values, params=params, distributions=space)
            )
            numbers.append(number)
    if len(numbers) < 2:
        return []
    best = study.best_trials
    if len(objectives) > 1:
        front = ", ".join(str(numbers[trial.number]) for trial in best)
        return [f"No other trial beats these in all of {', '.join(objectives)}: {front}."]
    said = [
        sentence
        for key, kind in space.items()
        if (sentence := _is_at_edge(key, kind, best[0].params[key]))
    ]
    if len(numbers) >= 8 and len(space) > 1 and len({trial.value for trial in study.trials}) > 1:
        weights = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
        most = max(weights, key=lambda key: weights[key])
        said.append(
            f"What mattered most in these {len(numbers)} trials: {most} ({100 * weights[most]:.0f}"
            " % of the importance, by PED-ANOVA)."
        )
    return said


def _is_at_edge(key: str, kind: BaseDistribution, value: Any) -> str:
    if not isinstance(kind, FloatDistribution | IntDistribution) or kind.low == kind.high:
        return ""
    share = (value - kind.low) / (kind.high - kind.low)
    if 0.1 < share < 0.9:
        return ""
    side, beyond = ("lower", "below") if share <= 0.1 else ("upper", "above")
    return (
        f"The best {key}={value:g} lies at the {side} end of {kind.low:g} to {kind.high:g}: search"
        f" {beyond} it, too."
    )


def create_study(
    directions: Iterable[str],
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """A study in memory that logs errors alone."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        directions=[optuna.study.StudyDirection[direction.upper()] for direction in directions],
        sampler=sampler,
        pruner=pruner,
    )


def _list_cells(space: Space) -> list[Params]:
    """All combinations, the last setting changing fastest."""
    return [
        dict(zip(space, values, strict=True))
        for values in itertools.product(*(_list_steps(key, kind) for key, kind in space.items()))
    ]


def _list_steps(key: str, kind: BaseDistribution) -> list[Any]:
    if isinstance(kind, CategoricalDistribution):
        return list(kind.choices)
    if isinstance(kind, IntDistribution) and not kind.log:
        return list(range(kind.low, kind.high + 1, kind.step))
    if isinstance(kind, FloatDistribution) and kind.step:
        return [
            round(kind.low + number * kind.step, 10)
            for number in range(round((kind.high - kind.low) / kind.step) + 1)
        ]
    raise RequestError(
        f"{key} has no steps, and hydra.sweeper.sampler=grid needs them. Use choice(...) or"
        " range(...), or hydra.sweeper.sampler=tpe."
    )


def _round_value(value: Any, kind: BaseDistribution) -> Any:
    """Four digits are enough to try."""
    if not isinstance(kind, FloatDistribution) or kind.step:
        return value
    return min(max(float(f"{value:.4g}"), kind.low), kind.high)
