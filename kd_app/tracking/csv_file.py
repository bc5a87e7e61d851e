"""The choice ``logger=csv``."""

from collections.abc import Callable

from kd_app.tracking.base import Backend, RunStart, TrackerRun


class Csv(Backend):
    """Curves on disk. Every training writes them, so that there is nothing to open
    here: the choice lets ``logger=[csv]`` mean 'nothing else'.
    """

    def __init__(self) -> None:
        pass

    def open(self, opening: RunStart, say: Callable[[str], None]) -> TrackerRun | None:
        """Nothing to open."""
        return None
