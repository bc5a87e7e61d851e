"""The curves of a training, as one JSON line per point. Lines are only appended, so a
kill loses no earlier point.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from kd_app.stages import write_atomically

FILE = "curves.jsonl"
_MAX_STEP = 2**53
Row = dict[str, float]


class CurveLogger(Logger):
    """Append every point to ``curves.jsonl`` and pass the point to `listen`, if given
    (Weights & Biases, TensorBoard ...).
    """

    def __init__(self, folder: Path, listen: Callable[[Row, int], None] | None = None) -> None:
        super().__init__()
        self.path = folder / FILE
        self._listen = listen

    @property
    def name(self) -> str:
        return "curves"

    @property
    def version(self) -> str:
        return "0"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {name: float(value) for name, value in metrics.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step or 0, **row}) + "\n")
        if self._listen:
            self._listen(row, step or 0)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's folder holds the configuration."""


def drop_points_after(path: Path, step: int) -> None:
    """Drop the points after `step`, which the resumed training logs again."""
    rows = (row for row in read_curves(path) if row["step"] <= step)
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_points(folder: Path) -> list[tuple[Row, int]]:
    """The points of the training in `folder`: each logged row with its step."""
    return [
        ({name: value for name, value in row.items() if name != "step"}, int(row["step"]))
        for row in read_curves(folder / FILE)
    ]


def read_curves(path: Path) -> Iterator[Row]:
    """The points of a ``curves.jsonl``, up to the first truncated or damaged line."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not _is_row(row):
            return
        yield row


def _is_row(row: Any) -> bool:
    """Whether a value is a point of a curve: a step, and numbers (or NaN) by name."""
    return (
        isinstance(row, dict)
        and all(isinstance(value, int | float) for value in row.values())
        and isinstance(row.get("step"), int)
        and abs(row["step"]) < _MAX_STEP
    )
