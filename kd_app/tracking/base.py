"""What every tracker is: something that opens a run for a stage, takes its points and
its outcome, and closes it with an exit code.
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
"""The stage whose run gets the outcome, and the only one that belongs to a sweep's
trial.
"""


Point = tuple[Mapping[str, float], int]
"""A row of a stage's curves, and its step."""


@dataclass(frozen=True)
class Artifact:
    """What one run leaves and others build on. Whoever tells of the same thing tells of
    it in the same words, so that a tracker finds it to be one.

    kind: split, teacher, student, run or report · name: of all its versions · identity:
    sha256, or another word for this version · content: what is told of it in every run
    · about: what else this run knows of it · files: name -> path.
    """

    kind: str
    name: str
    identity: str
    content: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class RunStart:
    """What a tracker is told when a stage begins: `config` is free of secrets and of
    this machine's paths; files go under `out`.

    uses: what the stage builds on · points: the curves so far, where an earlier attempt
    began the stage · knowledge: what its teacher knows about these images, as
    results.json tells of it.
    """

    stage: str
    name: str
    group: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    out: Path
    uses: tuple[Artifact, ...] = ()
    points: Sequence[Point] = ()
    knowledge: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came out: figures by the dotted names of results.json, test figures by
    model, class names, files (name -> path), and which of them others may build on.
    """

    figures: Mapping[str, float | str]
    test: Mapping[str, Mapping[str, float]]
    classes: Sequence[str]
    files: Mapping[str, Path]
    makes: tuple[Artifact, ...]


class TrackerRun(ABC):
    """One stage, as one tracker follows it. The points of an earlier attempt are among
    those that it has when it is opened.
    """

    @abstractmethod
    def log(self, row: Mapping[str, float], step: int) -> None:
        """Take one point of the curves."""

    def log_artifact(self, artifact: Artifact) -> None:  # noqa: B027
        """Take what the stage made for others to use."""

    @abstractmethod
    def log_outcome(self, outcome: Outcome) -> None:
        """Take what came out."""

    @abstractmethod
    def close(self, exit_code: int) -> None:
        """End; 0 is success, 130 and 143 are stops."""


class Backend(Typed, ABC):
    """A tracker that ``logger=`` chooses."""

    @abstractmethod
    def open(self, opening: RunStart, say: Callable[[str], None]) -> TrackerRun | None:
        """The run for a stage; None where this tracker does not follow it."""


@contextmanager
def restore_environment(**values: str) -> Iterator[None]:
    """Set environment variables that have no value yet for a while; afterwards all are
    as before, whatever a library set meanwhile.
    """
    before = dict(os.environ)
    os.environ.update({name: value for name, value in values.items() if name not in before})
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
