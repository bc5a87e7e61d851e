"""All trackers of one run behind one face. Their faults are told in a line and end the tracking, never the run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kd_app.config.private import cleaned
from kd_app.tracking.base import STUDENT, Backend, Opening, Run
from kd_app.tracking.outcome import outcome

Listener = Callable[[dict[str, float], int], None]
_WHERE = ("out", "stages", "remake", "overwrite", "logger")
"""Keys of the configuration that say where and how to run, not what."""


class Tracker:
    """Follows one run in every tracker of `kinds` (the ``logger`` group, made).

    Each stage that trains is a run of its own, of the group `group`; `config` is told without secrets and machine paths.
    """

    def __init__(
        self,
        kinds: Mapping[str, Backend],
        *,
        out: Path,
        name: str,
        group: str,
        tags: Sequence[str],
        config: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._backends = dict(kinds)
        self._failed: set[str] = set()
        self._out = out.absolute()
        self._name = name
        self._group = group
        self._tags = tuple(tags)
        self._config = cleaned({key: value for key, value in config.items() if key not in _WHERE})
        self._say = say
        self._open: dict[str, dict[str, Run]] = {}
        self._lineage: Mapping[str, Any] | None = None

    def start(self, stage: str, lineage: Mapping[str, Any] | None = None) -> Listener:
        """Open the run of `stage`; returns what is called with each row of its curves and the row's step.

        `lineage` refers to the model that this stage learns from: name, source, sha256, stage.
        """
        assert stage not in self._open, f"{stage} is open already"
        config = dict(self._config)
        if lineage:
            self._lineage = lineage
            config["lineage"] = {"teacher": cleaned(lineage)}
        opening = Opening(stage, f"{self._name} {stage}", self._group, self._tags, config, self._out)
        runs = self._open[stage] = {}
        for kind, backend in self._backends.items():
            if kind in self._failed:
                continue
            with self._guarded(kind):
                run = backend.open(opening, self._say)
                if run is not None:
                    runs[kind] = run
        return lambda row, step: self._each(stage, lambda run: run.log(row, step))

    def end(self, stage: str, *, exit_code: int) -> None:
        """Close the run of `stage`, if it is open; 0 is success."""
        for kind, run in self._open.pop(stage, {}).items():
            with suppress(Exception) if kind in self._failed else self._guarded(kind):
                run.close(exit_code)

    def results(self, results: BaseModel | Mapping[str, Any], files: Sequence[Path]) -> None:
        """Give the outcome to the student's run, which is opened now when the student was found rather than trained."""
        if STUDENT not in self._open:
            self.start(STUDENT)
        plain = results.model_dump(mode="json") if isinstance(results, BaseModel) else results
        told = outcome(plain, [path.absolute() for path in files], self._out, self._lineage)
        self._each(STUDENT, lambda run: run.results(told))

    def close(self, *, exit_code: int) -> None:
        """Close what is still open; may be called again."""
        for stage in list(self._open):
            self.end(stage, exit_code=exit_code)

    def _each(self, stage: str, do: Callable[[Run], None]) -> None:
        for kind, run in self._open.get(stage, {}).items():
            if kind not in self._failed:
                with self._guarded(kind):
                    do(run)

    @contextmanager
    def _guarded(self, kind: str) -> Iterator[None]:
        """A tracker that fails gets no more to do than to close what it has open."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            self._say(f"logger {kind} failed ({type(error).__name__}: {reason}) and is left out from here on; the run goes on.")
            self._failed.add(kind)
