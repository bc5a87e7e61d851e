"""All trackers of one run behind one interface.

A tracker that fails is disabled with one message; the run continues.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kd_app.config.redact import redact
from kd_app.tracking import lineage
from kd_app.tracking.base import (
    STUDENT,
    TEACHER,
    Backend,
    Point,
    RunStart,
    TrackedArtifact,
    TrackerRun,
)
from kd_app.tracking.outcome import build_outcome

Listener = Callable[[dict[str, float], int], None]
_LOCAL_KEYS = ("out", "stages", "remake", "overwrite", "logger")
"""Configuration keys about the place and manner of execution, not the run itself."""


class Tracker:
    """Logs one run to every tracker in `backends` (the ``logger`` group).

    Each stage is a separate tracker run in the same `group`. Secrets and machine paths
    are removed from `config`, and from name, group and tags. Finished teachers and
    controls that are reused get a run, too, unless `skip_reused` is set (in a sweep,
    all trials would log the same stages).
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        *,
        out: Path,
        name: str,
        group: str,
        tags: Sequence[str],
        config: Mapping[str, Any],
        say: Callable[[str], None],
        skip_reused: bool = False,
    ) -> None:
        self._backends = dict(backends)
        self._failed: set[str] = set()
        self._out = out.absolute()
        self._name = str(redact(name))
        self._group = str(redact(group))
        self._tags = tuple(redact(list(tags)))
        self._config = redact(
            {key: value for key, value in config.items() if key not in _LOCAL_KEYS}
        )
        self._say = say
        self._skip_reused = skip_reused
        self._open: dict[str, dict[str, TrackerRun]] = {}
        self._data: tuple[TrackedArtifact, ...] = ()
        self._uses: tuple[TrackedArtifact, ...] = ()
        self._knowledge: Mapping[str, Any] = {}

    def log_data(self, name: str, fingerprint: str, sizes: Mapping[str, int], split: Path) -> None:
        """Set the data of all stages that start after this call.

        split: the CSV file with the split of each image.
        """
        self._data = (lineage.describe_split(name, fingerprint, sizes, split.absolute()),)

    def log_knowledge(self, knowledge: Mapping[str, Any]) -> None:
        """Set the section about soft labels, which the student's run logs first."""
        self._knowledge = redact(knowledge)

    def start(
        self, stage: str, teacher: Mapping[str, Any] | None = None, points: Sequence[Point] = ()
    ) -> Listener:
        """Open the run of `stage`; return a listener for further rows with steps.

        teacher: the model that this stage learns from (name, source, sha256, stage) ·
        points: the curves so far, if the stage is resumed or finished.
        """
        assert stage not in self._open, f"{stage} is open already"
        uses = (*self._data, *([lineage.describe_teacher(teacher)] if teacher else ()))
        if stage == STUDENT:
            self._uses = uses
        return self._start_run(stage, uses, points, self._knowledge if teacher else {})

    def _start_run(
        self,
        stage: str,
        uses: tuple[TrackedArtifact, ...],
        points: Sequence[Point] = (),
        knowledge: Mapping[str, Any] | None = None,
    ) -> Listener:
        config = {
            **self._config,
            "lineage": {each.kind: {**each.content, **each.about} for each in uses if each.content},
        }
        start = RunStart(
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
            with self._isolate_failures(kind):
                run = backend.open(start, self._say)
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
        """Log the finished `model` of `stage` and close the run.

        If the stage is reused rather than trained now, a run with the curves of the
        earlier training is opened first. The student's run stays open for the results.
        """
        if stage not in self._open and (stage == STUDENT or not self._skip_reused):
            self.start(stage, teacher, points())
        if stage == TEACHER:
            self._call_each(stage, lambda run: run.log_artifact(lineage.describe_teacher(model)))
        if stage != STUDENT:
            self.end(stage, exit_code=0)

    def end(self, stage: str, *, exit_code: int) -> None:
        """Close the run of `stage` if it is open; 0 is success."""
        for kind, run in self._open.pop(stage, {}).items():
            with suppress(Exception) if kind in self._failed else self._isolate_failures(kind):
                run.close(exit_code)

    def log_results(self, results: BaseModel | Mapping[str, Any], files: Sequence[Path]) -> None:
        """Log the outcome to the student's run."""
        plain = results.model_dump(mode="json") if isinstance(results, BaseModel) else results
        paths = [path.absolute() for path in files]
        outcome = build_outcome(self._name, plain, paths, self._out, self._uses)
        self._call_each(STUDENT, lambda run: run.log_outcome(outcome))

    def log_report(self, page: Path, students: Sequence[TrackedArtifact]) -> None:
        """Log a `page` about `students` of finished runs, as a separate run."""
        self._start_run("report", tuple(students))
        self._call_each(
            "report",
            lambda run: run.log_artifact(lineage.describe_report(self._name, page, students)),
        )
        self.end("report", exit_code=0)

    @contextmanager
    def close_at_exit(self) -> Iterator[None]:
        """Close all open runs at exit, with the exit code of the command."""
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
        """Close all open runs; repeated calls are harmless."""
        for stage in list(self._open):
            self.end(stage, exit_code=exit_code)

    def _call_each(self, stage: str, action: Callable[[TrackerRun], None]) -> None:
        for kind, run in self._open.get(stage, {}).items():
            if kind not in self._failed:
                with self._isolate_failures(kind):
                    action(run)

    @contextmanager
    def _isolate_failures(self, kind: str) -> Iterator[None]:
        """Disable a tracker that fails; afterwards it only closes its open runs."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            self._say(
                f"logger {kind} failed ({type(error).__name__}: {reason}) and is disabled; the run"
                " continues."
            )
            self._failed.add(kind)
