"""All trackers of one run behind one face. Their faults are told in a line and end the
tracking, never the run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kd_app.config.redact import redact
from kd_app.tracking import lineage
from kd_app.tracking.base import STUDENT, TEACHER, Artifact, Backend, Point, RunStart, TrackerRun
from kd_app.tracking.outcome import build_outcome

Listener = Callable[[dict[str, float], int], None]
_WHERE = ("out", "stages", "remake", "overwrite", "logger")
"""Keys of the configuration that say where and how to run, not what."""


class Tracker:
    """Follows one run in every tracker of `kinds` (the ``logger`` group, made).

    Each stage is a run of its own, of the group `group`; `config` is told without
    secrets and machine paths. A teacher or control that was found is one, too, unless a
    sweep's many trials would all tell of the same (`shares`).
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
        shares: bool = False,
    ) -> None:
        self._backends = dict(kinds)
        self._failed: set[str] = set()
        self._out = out.absolute()
        self._name = name
        self._group = group
        self._tags = tuple(tags)
        self._config = redact({key: value for key, value in config.items() if key not in _WHERE})
        self._say = say
        self._compute_shares = shares
        self._open: dict[str, dict[str, TrackerRun]] = {}
        self._data: tuple[Artifact, ...] = ()
        self._uses: tuple[Artifact, ...] = ()
        self._knowledge: Mapping[str, Any] = {}

    def log_data(self, name: str, fingerprint: str, sizes: Mapping[str, int], split: Path) -> None:
        """What all stages that start from here on are trained on; `split` is the CSV
        that says which image is where.
        """
        self._data = (lineage.split(name, fingerprint, sizes, split.absolute()),)

    def log_knowledge(self, knowledge: Mapping[str, Any]) -> None:
        """What the teacher knows about these images, for the student's run to begin
        with.
        """
        self._knowledge = redact(knowledge)

    def start(
        self, stage: str, teacher: Mapping[str, Any] | None = None, points: Sequence[Point] = ()
    ) -> Listener:
        """Open the run of `stage`; returns what is called with each further row of its
        curves and the row's step.

        teacher: the model that this stage learns from (name, source, sha256, stage) ·
        points: the curves so far, where it goes on or is ready.
        """
        assert stage not in self._open, f"{stage} is open already"
        uses = (*self._data, *([lineage.describe_teacher(teacher)] if teacher else ()))
        if stage == STUDENT:
            self._uses = uses
        return self._start_run(stage, uses, points, self._knowledge if teacher else {})

    def _start_run(
        self,
        stage: str,
        uses: tuple[Artifact, ...],
        points: Sequence[Point] = (),
        knowledge: Mapping[str, Any] | None = None,
    ) -> Listener:
        config = {
            **self._config,
            "lineage": {each.kind: {**each.content, **each.about} for each in uses if each.content},
        }
        opening = RunStart(
            stage,
            f"{self._name} {stage}",
            self._group,
            self._tags,
            config,
            self._out,
            uses,
            points,
            knowledge or {},
        )
        runs = self._open[stage] = {}
        for kind, backend in self._backends.items():
            if kind in self._failed:
                continue
            with self._catch_failures(kind):
                run = backend.open(opening, self._say)
                if run is not None:
                    runs[kind] = run
        return lambda row, step: self._call_each(stage, lambda run: run.log(row, step))

    def finish(
        self,
        stage: str,
        model: Mapping[str, Any],
        teacher: Mapping[str, Any] | None,
        points: Callable[[], Sequence[Point]],
    ) -> None:
        """The `model` of `stage` is there: trained now, which ends its run, or found,
        which is told with the curves of its training.

        The student's run stays open for the results.
        """
        if stage not in self._open and (stage == STUDENT or not self._compute_shares):
            self.start(stage, teacher, points())
        if stage == TEACHER:
            self._call_each(stage, lambda run: run.log_artifact(lineage.describe_teacher(model)))
        if stage != STUDENT:
            self.end(stage, exit_code=0)

    def end(self, stage: str, *, exit_code: int) -> None:
        """Close the run of `stage`, if it is open; 0 is success."""
        for kind, run in self._open.pop(stage, {}).items():
            with suppress(Exception) if kind in self._failed else self._catch_failures(kind):
                run.close(exit_code)

    def log_results(self, results: BaseModel | Mapping[str, Any], files: Sequence[Path]) -> None:
        """Give the outcome to the student's run."""
        plain = results.model_dump(mode="json") if isinstance(results, BaseModel) else results
        told = build_outcome(
            self._name, plain, [path.absolute() for path in files], self._out, self._uses
        )
        self._call_each(STUDENT, lambda run: run.log_outcome(told))

    def report(self, page: Path, students: Sequence[Artifact]) -> None:
        """Tell of a `page` about `students` of finished runs, as a run of its own."""
        self._start_run("report", tuple(students))
        self._call_each(
            "report", lambda run: run.log_artifact(lineage.report(self._name, page, students))
        )
        self.end("report", exit_code=0)

    @contextmanager
    def close_at_exit(self) -> Iterator[None]:
        """Close what is still open at the end, with the exit code that the command ends
        with.
        """
        code = 1
        try:
            yield
            code = 0
        except KeyboardInterrupt:
            code = 130
            raise
        except SystemExit as stop:
            code = int(stop.code or 0)
            raise
        finally:
            self.close(exit_code=code)

    def close(self, *, exit_code: int) -> None:
        """Close what is still open; may be called again."""
        for stage in list(self._open):
            self.end(stage, exit_code=exit_code)

    def _call_each(self, stage: str, do: Callable[[TrackerRun], None]) -> None:
        for kind, run in self._open.get(stage, {}).items():
            if kind not in self._failed:
                with self._catch_failures(kind):
                    do(run)

    @contextmanager
    def _catch_failures(self, kind: str) -> Iterator[None]:
        """A tracker that fails gets no more to do than to close what it has open."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            self._say(
                f"logger {kind} failed ({type(error).__name__}: {reason}) and is left out from here"
                " on; the run goes on."
            )
            self._failed.add(kind)
