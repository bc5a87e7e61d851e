"""Tasks by name."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from kd_app.tasks.base import Task
from kd_app.tasks.classification import Classification
from kd_app.tasks.embedding import Embedding

TaskName = Literal["classification", "embedding"]
TASKS: Final[tuple[type[Classification] | type[Embedding], ...]] = (Classification, Embedding)
_BY_NAME: Final = {each.name: each for each in TASKS}


def parse_task(record: Mapping[str, Any]) -> Task:
    """Build the task whose ``to_json()`` is `record`."""
    arguments = {key: value for key, value in record.items() if key != "name"}
    return _BY_NAME[record["name"]](**arguments)
