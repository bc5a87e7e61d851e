"""The option ``logger=csv``."""

from collections.abc import Callable

from kd_app.tracking.base import Backend, RunStart, TrackerRun


class Csv(Backend):
    """Curves as a CSV file.

    Every training writes the file, so this class does nothing. ``logger=[csv]`` selects
    no other tracker.
    """

    def __init__(self) -> None:
        pass

    def open(self, start: RunStart, say: Callable[[str], None]) -> TrackerRun | None:
        return None
