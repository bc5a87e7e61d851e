"""The curves of a training: a line of JSON for each point, appended, so that a kill
loses nothing that was written.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from kd_app.stages import write_atomically

FILE = "curves.jsonl"
Row = dict[str, float]


class CurveLogger(Logger):
    """Writes every point to ``curves.jsonl`` and hands it to `listen`, if somebody
    listens (Weights & Biases, TensorBoard ...).
    """

    def __init__(self, folder: Path, listen: Callable[[Row, int], None] | None = None) -> None:
        super().__init__()
        self.path = folder / FILE
        self._listen = listen

    @property
    def name(self) -> str:
        """Loggers have names."""
        return "curves"

    @property
    def version(self) -> str:
        """There is one version."""
        return "0"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one point."""
        row = {name: float(value) for name, value in metrics.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step or 0, **row}) + "\n")
        if self._listen:
            self._listen(row, step or 0)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is kept elsewhere."""


def drop_points_after(path: Path, step: int) -> None:
    """Drop the points behind `step`: the training goes on from there and will write
    them again.
    """
    write_atomically(
        path, "".join(json.dumps(row) + "\n" for row in read_curves(path) if row["step"] <= step)
    )


def read_points(folder: Path) -> list[tuple[Row, int]]:
    """The points of the training in `folder`: the row that was logged, and its step."""
    return [
        ({name: value for name, value in row.items() if name != "step"}, int(row["step"]))
        for row in read_curves(folder / FILE)
    ]


def read_curves(path: Path) -> Iterator[Row]:
    """The points of a ``curves.jsonl``, up to a line that a kill cut off or that is
    damaged.
    """
    for line in (
        path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    ):
        try:
            yield json.loads(line)
        except ValueError:
            return
