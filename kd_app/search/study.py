"""Hyperparameter search: propose the next trial from the results of earlier trials.

The sweep's folder is the only record: ``search.json`` holds the proposals, and each
trial's results.json and metrics.csv hold the outcome. A proposal is a function of
(seed, number, finished trials), so a killed search resumes with the same proposals.
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
from optuna.trial import TrialState, create_trial
from pydantic import NonNegativeInt, PositiveInt

from kd_app.config import RequestError, Typed
from kd_app.config.records import parse_with
from kd_app.digest import hash_value, seal
from kd_app.reporting.selection import SELECTION
from kd_app.search.objectives import check_values, read_objectives
from kd_app.search.trials import EXPECTED, FILE, read_curve, read_proposals, read_trial_results
from kd_app.stages import write_atomically

DONE = ("finished", "pruned")
_EDGE = 0.1
"""A best value in this share of the range at either end is at the edge of the range."""
Params = dict[str, Any]
Space = Mapping[str, BaseDistribution]


class SearchSettings(Typed, called="hydra.sweeper"):
    """How to search: `trials` trials, proposed by Optuna's TPE or at random, or the
    cells of a grid in order.

    batch: number of trials proposed at once, for a launcher with parallel jobs.
    objectives: keys of results.json with the direction of improvement; `SELECTION` is
    what the best epoch is chosen by.
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
                "hydra.sweeper.objectives={} is empty. Expected at least one objective, for example"
                f" {{{SELECTION}: maximize}}."
            )
        self.trials = trials
        self.sampler = sampler
        self.seed = seed
        self.batch = batch
        self.objectives = objectives


class Search:
    """A new or resumed search over `space` in the sweep's folder `out`.

    Raises `RequestError` if the folder holds another search.
    """

    def __init__(self, out: Path, settings: SearchSettings, space: Space) -> None:
        self.out, self.settings, self.space = out, settings, space
        self._record = {
            "sampler": settings.sampler,
            "seed": settings.seed,
            "objectives": settings.objectives,
            "space": {k: distribution_to_json(v) for k, v in space.items()},
        }
        self.proposed: list[Params] = []
        previous = read_proposals(out)
        if previous is not None:
            if previous["search"] != self._record:
                raise RequestError(
                    f"{str(out)!r} holds another search: expected {previous['search']}, got"
                    f" {self._record}. Nothing was changed. Choose another out=, or repeat the"
                    " earlier settings to resume that search (hydra.sweeper.trials may grow)."
                )
            self.proposed = previous["proposed"]
            _check_proposals(out, self.proposed, space)

    @property
    def size(self) -> int:
        """The number of trials: at most the number of cells for a grid."""
        if self.settings.sampler == "grid":
            return min(self.settings.trials, len(_list_cells(self.space)))
        return self.settings.trials

    def iterate_batches(self) -> Iterator[list[tuple[int, Params]]]:
        """Yield batches of consecutive unfinished trials: numbers and parameters."""
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
                trials = (read_trial_results(self.out / str(each)) for each in range(number))
                check_values(trials, self.settings.objectives)
            else:
                # restores the proposal of a finished trial if search.json was lost
                self._read_params(number)
                number += 1

    def _is_done(self, number: int) -> bool:
        results = read_trial_results(self.out / str(number))
        return results is not None and results.status in DONE

    def _read_params(self, number: int) -> Params:
        if number == len(self.proposed):
            self.proposed.append(self._propose(number))
            self.out.mkdir(parents=True, exist_ok=True)
            record = {"search": self._record, "proposed": self.proposed}
            write_atomically(self.out / FILE, json.dumps(seal(record), indent=1))
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
        proposal = study.ask(dict(self.space)).params
        return {key: _round_value(value, self.space[key]) for key, value in proposal.items()}

    def _freeze_trial(self, number: int, params: Params) -> optuna.trial.FrozenTrial:
        results = read_trial_results(self.out / str(number))
        values = read_objectives(results, self.settings.objectives)
        states = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        state = TrialState.COMPLETE
        if not values:
            state = states.get(results.status if results else "", TrialState.RUNNING)
        has_one_objective = len(self.settings.objectives) == 1
        intermediate = read_curve(self.out / str(number)) if has_one_objective else {}
        return optuna.trial.create_trial(
            state=state,
            params=params,
            distributions=dict(self.space),
            values=values,
            intermediate_values=intermediate,
        )


def _check_proposals(out: Path, proposed: Any, space: Space) -> None:
    """Raise `RequestError` for proposals outside of the space. They become overrides of
    trials, and the file may come from another person.
    """
    for number, params in enumerate(proposed if isinstance(proposed, list) else [proposed]):
        is_complete = isinstance(params, dict) and set(params) == set(space)
        if not is_complete or not all(_contains(space[key], params[key]) for key in space):
            raise RequestError(
                f"{str(out / FILE)!r} proposes {params!r} for trial {number}, which is not in the"
                f" search space. Expected a value in its range for each of {', '.join(space)}. Move"
                " that file away to start a new search; the trials are not affected."
            )


def _contains(kind: BaseDistribution, value: Any) -> bool:
    if isinstance(kind, CategoricalDistribution):
        return any(value == choice and type(value) is type(choice) for choice in kind.choices)
    assert isinstance(kind, IntDistribution | FloatDistribution)
    numbers = int if isinstance(kind, IntDistribution) else int | float
    is_number = isinstance(value, numbers) and not isinstance(value, bool)
    return is_number and kind.low <= value <= kind.high and kind._contains(value)


def suggest_next(out: Path) -> list[str]:
    """Suggestions after the search in `out`, as sentences; empty if there is no search.

    With one objective: the settings whose best value is at an end of the range, and the
    most important setting. With several objectives: the trials of the Pareto front.
    """
    record = read_proposals(out)
    if record is None:
        return []
    objectives = record["search"]["objectives"]
    space = parse_with(
        out / FILE,
        lambda: {
            key: json_to_distribution(kind) for key, kind in record["search"]["space"].items()
        },
        expected=EXPECTED,
    )
    _check_proposals(out, record["proposed"], space)
    study, numbers = create_study(objectives.values(), optuna.samplers.RandomSampler(seed=0)), []
    for number, params in enumerate(record["proposed"]):
        values = read_objectives(read_trial_results(out / str(number)), objectives)
        if values is not None:
            study.add_trial(create_trial(values=values, params=params, distributions=space))
            numbers.append(number)
    if len(numbers) < 2:
        return []
    best = study.best_trials
    if len(objectives) > 1:
        front = ", ".join(str(numbers[trial.number]) for trial in best)
        return [f"Trials that no other trial beats in all of {', '.join(objectives)}: {front}."]
    sentences = [
        sentence
        for key, kind in space.items()
        if (sentence := _suggest_range(key, kind, best[0].params[key]))
    ]
    if len(numbers) >= 8 and len(space) > 1 and len({trial.value for trial in study.trials}) > 1:
        weights = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
        most = max(weights, key=lambda key: weights[key])
        sentences.append(
            f"The most important setting in these {len(numbers)} trials is {most}"
            f" ({100 * weights[most]:.0f} % of the importance, by PED-ANOVA)."
        )
    return sentences


def _suggest_range(key: str, kind: BaseDistribution, value: Any) -> str:
    """The suggestion for a best value at an end of its range, else an empty string."""
    if not isinstance(kind, FloatDistribution | IntDistribution) or kind.low == kind.high:
        return ""
    share = (value - kind.low) / (kind.high - kind.low)
    if _EDGE < share < 1 - _EDGE:
        return ""
    side, beyond = ("lower", "below") if share <= _EDGE else ("upper", "above")
    return (
        f"The best {key}={value:g} is at the {side} end of {kind.low:g} to {kind.high:g}: also"
        f" search {beyond} this range."
    )


def create_study(
    directions: Iterable[str],
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study:
    """Create a study in memory; Optuna logs errors only."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        directions=[optuna.study.StudyDirection[direction.upper()] for direction in directions],
        sampler=sampler,
        pruner=pruner,
    )


def _list_cells(space: Space) -> list[Params]:
    """List all combinations; the last setting changes fastest."""
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
        f"hydra.sweeper.sampler=grid needs discrete values, but {key} has none. Use choice(...) or"
        " range(...), or hydra.sweeper.sampler=tpe."
    )


def _round_value(value: Any, kind: BaseDistribution) -> Any:
    """Round a float to four digits, for readable commands and folders."""
    if not isinstance(kind, FloatDistribution) or kind.step:
        return value
    return min(max(float(f"{value:.4g}"), kind.low), kind.high)
