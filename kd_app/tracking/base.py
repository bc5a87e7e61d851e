"""What every tracker is: something that opens a run for a stage, takes its points and its outcome, and closes it with an exit code."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_app.config import Typed

STUDENT = "student"
"""The stage whose run gets the outcome, and the only one that belongs to a sweep's trial."""


@dataclass(frozen=True)
class Opening:
    """What a tracker is told when a stage begins: `config` is free of secrets and of this machine's paths; files go under `out`."""

    stage: str
    name: str
    group: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    out: Path


@dataclass(frozen=True)
class Outcome:
    """What came out: figures by the dotted names of results.json, test figures by model, the teacher's reference, and files (name -> path)."""

    figures: Mapping[str, float | str]
    test: Mapping[str, Mapping[str, float]]
    lineage: Mapping[str, Any]
    files: Mapping[str, Path]


class Run(ABC):
    """One stage, as one tracker follows it."""

    @abstractmethod
    def log(self, row: Mapping[str, float], step: int) -> None:
        """Take one point of the curves."""

    @abstractmethod
    def results(self, outcome: Outcome) -> None:
        """Take what came out."""

    @abstractmethod
    def close(self, exit_code: int) -> None:
        """End; 0 is success, 130 and 143 are stops."""


class Backend(Typed, ABC):
    """A tracker that ``logger=`` chooses."""

    @abstractmethod
    def open(self, opening: Opening, say: Callable[[str], None]) -> Run | None:
        """The run for a stage; None where this tracker does not follow it."""


@contextmanager
def borrowed_environment(**values: str) -> Iterator[None]:
    """Set environment variables that have no value yet for a while; afterwards all are as before, whatever a library set meanwhile."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in values.items() if name not in before})
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
