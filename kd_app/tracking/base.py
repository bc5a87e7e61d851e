"""Interface of trackers.

A tracker opens a run for a stage, logs points and the outcome, and closes the run with
an exit code.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_app.config import Typed

TEACHER = "teacher"
STUDENT = "student"
"""The stage whose run gets the outcome, and the only stage in a sweep's trial."""

Point = tuple[Mapping[str, float], int]
"""A row of the curves of a stage, and the step."""


@dataclass(frozen=True)
class TrackedArtifact:
    """A versioned output of a run that other runs use.

    Equal content must be logged with equal metadata, so that the tracker deduplicates
    the artifact.

    kind: split, teacher, student, run or report · name: common to all versions ·
    identity: sha256, or another identifier of this version · content: metadata that is
    the same in every run · about: metadata of this run · files: name -> path.
    """

    kind: str
    name: str
    identity: str
    content: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class RunStart:
    """Facts about a stage that begins.

    config: without secrets and paths of this machine · out: folder for the tracker's
    files · uses: artifacts that the stage uses · points: the curves of an earlier
    attempt at this stage · knowledge: the section of results.json about the teacher's
    soft labels.
    """

    stage: str
    name: str
    group: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    out: Path
    uses: tuple[TrackedArtifact, ...] = ()
    points: Sequence[Point] = ()
    knowledge: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Results of a run.

    metrics: by the dotted names of results.json · test: test metrics by model · files:
    name -> path · artifacts: outputs that other runs can use.
    """

    metrics: Mapping[str, float | str]
    test: Mapping[str, Mapping[str, float]]
    classes: Sequence[str]
    files: Mapping[str, Path]
    artifacts: tuple[TrackedArtifact, ...]


class TrackerRun(ABC):
    """One stage in one tracker.

    A new run already contains the points of an earlier attempt.
    """

    @abstractmethod
    def log(self, row: Mapping[str, float], step: int) -> None:
        """Log one point of the curves."""

    def log_artifact(self, artifact: TrackedArtifact) -> None:
        """Log an output of the stage that other runs can use."""
        # Not every tracker has artifacts.
        return

    @abstractmethod
    def log_outcome(self, outcome: Outcome) -> None:
        """Log the results of the run."""

    @abstractmethod
    def close(self, exit_code: int) -> None:
        """Close the run; 0 is success, one of `STOPPED` a signal."""


class Backend(Typed, ABC):
    """A tracker that the option ``logger=`` selects."""

    @abstractmethod
    def open(self, start: RunStart, say: Callable[[str], None]) -> TrackerRun | None:
        """Open the run of a stage; None if the tracker skips this stage."""


@contextmanager
def restore_environment(**values: str) -> Iterator[None]:
    """Set environment variables temporarily, if they are not set already.

    Afterwards the whole environment is restored, including variables that a library has
    set in the meantime.
    """
    before = dict(os.environ)
    os.environ.update({name: value for name, value in values.items() if name not in before})
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
