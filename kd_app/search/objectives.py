"""What a search can rank its trials by."""

import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel

from kd_app.config import RequestError
from kd_app.reporting.results import Results
from kd_app.reporting.runs import flatten
from kd_app.reporting.selection import SELECTION, read_selection
from kd_app.tasks.build import TASKS

_EXPECTED: Final = (
    f"{SELECTION}, which suits every task, or a number in results.json of a finished trial, such"
    " as models.student.macs"
)


def check_objectives(objectives: Iterable[str], task: str) -> None:
    """Raise `RequestError` for an objective that no trial has: a key that results.json
    does not have, or a metric of another task than `task`.
    """
    others = {part: each.name for each in TASKS if each.name != task for part in each.parts}
    for key in objectives:
        if key == SELECTION:
            continue
        names = key.split(".")
        if not _has_key(Results, names):
            raise RequestError(
                f"hydra.sweeper.objectives ranks by {key}, and results.json has no such key."
                f" Expected: {_EXPECTED}."
            )
        if names[0] in others:
            raise RequestError(
                f"hydra.sweeper.objectives ranks by {key}, which only a trial with"
                f" task={others[names[0]]} has, and these have task={task}. Expected: {_EXPECTED}."
            )


def read_objectives(results: Results | None, objectives: Mapping[str, str]) -> list[float] | None:
    """Return the values of the objectives in a trial; None if the trial is not finished
    or a value is missing.
    """
    if results is None or results.status != "finished":
        return None
    values = _list_values(results)
    if not objectives.keys() <= values.keys():
        return None
    return [values[key] for key in objectives]


def check_values(trials: Iterable[Results | None], objectives: Iterable[str]) -> None:
    """Raise `RequestError` for an objective that no finished trial has a number for."""
    missing, has_finished = list(objectives), False
    # stops at the first trial that has them all: usually the first, and each is a file
    for each in trials:
        if each is not None and each.status == "finished":
            has_finished = True
            values = _list_values(each)
            missing = [key for key in missing if key not in values]
            if not missing:
                return
    if has_finished:
        raise RequestError(
            f"hydra.sweeper.objectives ranks by {', '.join(missing)}, and no finished trial has"
            " such a number, so the search would learn nothing from them. The test set is read for"
            f" the winner alone. Expected: {_EXPECTED}."
        )


def _list_values(results: Results) -> dict[str, float]:
    score = read_selection(results)
    metrics = dict(flatten(results.model_dump(mode="json")))
    metrics[SELECTION] = None if score is None else score.value
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}


def _has_key(kind: Any, names: list[str]) -> bool:
    """Whether a value of this type may have the nested keys `names`."""
    if not names:
        return True
    origin = get_origin(kind)
    if origin is Annotated:
        return _has_key(get_args(kind)[0], names)
    if origin in (Union, types.UnionType):
        return any(_has_key(each, names) for each in get_args(kind))
    if origin is dict or kind is dict:
        values = get_args(kind)[1:] or (Any,)
        return _has_key(values[0], names[1:])
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(names[0])
        return field is not None and _has_key(field.annotation, names[1:])
    return kind is Any
