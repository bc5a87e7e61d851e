"""Weights & Biases: one run per stage.

One process can have several open runs. Offline runs are complete.
"""

import io
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Literal

from kd_app.config import RequestError
from kd_app.config.errors import take_first_line
from kd_app.config.records import read_record
from kd_app.config.redact import copy_redacted, redact
from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.pair_metrics import PAIR_METRICS
from kd_app.stages import write_atomically
from kd_app.tracking.base import (
    STUDENT,
    Backend,
    Outcome,
    RunStart,
    TrackedArtifact,
    TrackerRun,
    restore_environment,
)
from kd_app.tracking.tables import (
    Picture,
    TrackedTable,
    build_confusion_tables,
    build_knowledge_tables,
    build_tables,
)

Mode = Literal["auto", "online", "offline", "disabled"]
_MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_OBJECTIVE = "validation/top1"
BEST = "validation/best_top1"
"""Best top1 so far, as a plain number, which W&B's sweeps can maximize."""

_FOLDER = "wandb"
_REDACTED = ".told"
"""Folder for redacted copies; hidden, so that searches for runs skip these copies."""

_SETTINGS = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "silent": True,
    "symlink": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "init_timeout": 30,
    "finish_timeout": 120,
}
"""W&B sends nothing about the machine and prints nothing. Timeouts are in seconds."""


class Wandb(Backend):
    """Runs of `project`, grouped by the run's name, with the stage as job type.

    The mode 'auto' uses WANDB_MODE if set; otherwise it is online with a login and
    offline without, and never prompts for a login. Under ``wandb agent``, the student's
    run is the trial, and the other stages have no runs.
    """

    def __init__(self, *, project: str | None, entity: str | None, mode: Mode) -> None:
        self._project = project or os.environ.get("WANDB_PROJECT") or "kd_app"
        self._entity = entity
        self._mode: Mode = (
            _MODES.get(os.environ.get("WANDB_MODE", ""), mode) if mode == "auto" else mode
        )
        self._announced = False

    def open(self, start: RunStart, say: Callable[[str], None]) -> TrackerRun | None:
        """Open the run of the stage, or resume that of an earlier attempt.

        Falls back to offline mode if W&B is not reachable.
        """
        is_trial = "WANDB_SWEEP_ID" in os.environ
        if self._mode == "disabled" or (is_trial and start.stage != STUDENT):
            return None
        start.out.mkdir(parents=True, exist_ok=True)
        with _silence_wandb(), restore_environment(WANDB_DATA_DIR=str(start.out / _FOLDER)):
            run, message = self._init(start, _resolve_run_id(start))
            _define_metrics(run)
            for artifact in start.uses:
                _use(run, artifact, start.out / _FOLDER)
            tracker_run = _WandbRun(run, start)
        if not self._announced:
            say(message)
            self._announced = True
        return tracker_run

    def _init(self, start: RunStart, identity: str) -> tuple[Any, str]:
        """Open the run; return it with a message for the user.

        After a failed attempt to go online, later stages are offline without waiting.
        """
        import wandb

        reason = ""
        if self._mode != "offline":
            try:
                if wandb.login(prompt=False):
                    run = self._init_as("online", start, identity)
                    return run, f"W&B: {run.url}"
                reason = " (no login)"
            except Exception as error:
                reason = f" ({take_first_line(error)})"
            self._mode = "offline"
        run = self._init_as("offline", start, identity)
        pattern = f"{_shorten_path(start.out)}/wandb/offline-run-*"
        return run, f"W&B: offline{reason}; upload later with: wandb sync {pattern}"

    def _init_as(self, mode: Literal["online", "offline"], start: RunStart, identity: str) -> Any:
        import wandb

        with _skip_launch_inputs():
            return wandb.init(
                project=self._project,
                entity=self._entity,
                id=identity,
                resume="allow" if mode == "online" and start.points else None,
                name=start.name,
                group=start.group,
                job_type=start.stage,
                tags=start.tags,
                notes=redact(os.environ.get("WANDB_NOTES")),
                config=dict(start.config),
                dir=str(start.out),
                mode=mode,
                reinit="create_new",
                settings=wandb.Settings(**_SETTINGS),
            )


class _WandbRun(TrackerRun):
    """One W&B run.

    The column `step` is the x axis of every curve (`epoch` for validation). A resumed
    run logs all points again: an online run skips the points that the server has, an
    offline run writes a new file with all points.
    """

    def __init__(self, run: Any, start: RunStart) -> None:
        self._run = run
        self._start = start
        self._points_to_skip = int(run.starting_step)
        self._best = -math.inf
        if start.knowledge:
            tables = build_knowledge_tables(start.knowledge)
            self._log_row({name: _to_wandb_table(table) for name, table in tables.items()})
        for row, step in start.points:
            self.log(row, step)

    def log(self, row: Mapping[str, float], step: int) -> None:
        best = {}
        if _OBJECTIVE in row:
            self._best = max(self._best, row[_OBJECTIVE])
            best[BEST] = self._best
        self._log_row({**row, **best, "step": step})

    def _log_row(self, row: Mapping[str, Any]) -> None:
        if self._points_to_skip:
            self._points_to_skip -= 1
        else:
            self._run.log(dict(row))

    def log_artifact(self, artifact: TrackedArtifact) -> None:
        with _silence_wandb(), restore_environment(WANDB_DATA_DIR=str(self._folder)):
            self._run.log_artifact(*_build_artifact(artifact, self._folder))

    def log_outcome(self, outcome: Outcome) -> None:
        with _silence_wandb(), restore_environment(WANDB_DATA_DIR=str(self._folder)):
            self._run.summary.update(dict(outcome.metrics))
            row = {name: _to_wandb_table(table) for name, table in build_tables(outcome).items()}
            row |= {
                f"confusion/{role}": _plot_confusion(role, table)
                for role, table in build_confusion_tables(outcome).items()
            }
            if row:
                self._run.log(row)
            for artifact in outcome.artifacts:
                self._run.log_artifact(*_build_artifact(artifact, self._folder))

    @property
    def _folder(self) -> Path:
        return self._start.out / _FOLDER

    def close(self, exit_code: int) -> None:
        import wandb

        with _silence_wandb():
            try:
                self._run.finish(exit_code=exit_code)
            except Exception:
                # If wandb's process is gone, its exit hook would print a traceback.
                with suppress(Exception):
                    wandb.teardown(exit_code)
                raise
        _write_state(self._start, self._run.id, finished=exit_code == 0)


def _resolve_run_id(start: RunStart) -> str:
    """Return the id of the run.

    The student's run takes WANDB_RUN_ID, which an agent sets for a trial. Otherwise the
    id is that of the earlier attempt that is resumed, or a new one.
    """
    requested = os.environ.get("WANDB_RUN_ID") if start.stage == STUDENT else None
    state = _read_state(_locate_state(start))
    resumes = "id" in state and (bool(start.points) or not state.get("finished"))
    identity = requested or (str(state["id"]) if resumes else uuid.uuid4().hex[:8])
    _write_state(start, identity, finished=False)
    # File names contain the time in seconds: wait until the name is new.
    while any((start.out / _FOLDER).glob(f"*run-{time.strftime('%Y%m%d_%H%M%S')}-{identity}")):
        time.sleep(0.02)
    return identity


def _locate_state(start: RunStart) -> Path:
    return start.out / _FOLDER / f"{start.stage}.json"


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return read_record(path, dict[str, Any], expected="")
    except RequestError:
        return {}


def _write_state(start: RunStart, identity: str, *, finished: bool) -> None:
    path = _locate_state(start)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"id": identity, "finished": finished}))


def _define_metrics(run: Any) -> None:
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    run.define_metric("validation/*", step_metric="epoch")
    better = {spec.name: spec.better for spec in MODEL_METRICS}
    better |= {spec.name: spec.better for spec in PAIR_METRICS}
    better |= {"overlap": "higher", "distance": "lower"}  # of an embedding
    for name, direction in better.items():
        summary = "max" if direction == "higher" else "min"
        run.define_metric(f"validation/{name}", step_metric="epoch", summary=summary)


def _to_wandb_table(table: TrackedTable) -> Any:
    import wandb

    rows: list[Iterable[Any]] = [
        [_to_wandb_image(cell) if isinstance(cell, Picture) else cell for cell in row]
        for row in table.rows
    ]
    return wandb.Table(columns=list(table.columns), data=rows)


def _to_wandb_image(picture: Picture) -> Any:
    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(picture.png))) if picture.png else None


def _plot_confusion(role: str, table: TrackedTable) -> Any:
    """W&B's heat map of a confusion matrix, from counts instead of predictions."""
    import wandb

    columns = ("Actual", "Predicted", "nPredictions")
    fields = {name: name for name in columns}
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        _to_wandb_table(TrackedTable(columns, table.rows)),
        fields,
        {"title": f"{role}: label and prediction"},
    )


def _build_artifact(artifact: TrackedArtifact, folder: Path) -> tuple[Any, None, None, list[str]]:
    """Build the arguments of ``log_artifact``.

    Files are uploaded from their own folders; `folder` gets redacted copies of files
    with machine paths. W&B identifies a version by its files only, so the content is
    also one of the files.
    """
    import wandb

    version = wandb.Artifact(
        artifact.name,
        type=artifact.kind,
        metadata={**artifact.content, **artifact.about, "identity": artifact.identity},
    )
    if artifact.content:
        with version.new_file(f"{artifact.kind}.json", encoding="utf-8") as file:
            json.dump(dict(artifact.content), file, indent=1, sort_keys=True)
    for inside, path in artifact.files.items():
        version.add_file(
            str(copy_redacted(path, folder / _REDACTED / inside).resolve()),
            name=inside,
            policy="immutable",
            skip_cache=True,
        )
    return version, None, None, ["latest", artifact.identity[:12]]


def _use(run: Any, artifact: TrackedArtifact, folder: Path) -> None:
    """Log that a run uses an artifact, which the server may not have yet.

    ``use_artifact`` does the same but waits for the server and raises offline. This
    call is queued offline: a later upload creates or reuses the artifact and links
    both.
    """
    version, _, _, aliases = _build_artifact(artifact, folder)
    run._log_artifact(version, aliases=aliases, is_user_created=True, use_after_commit=True)


def _shorten_path(path: Path) -> Path:
    """Make `path` relative to the current folder, if it is below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@contextmanager
def _skip_launch_inputs() -> Iterator[None]:
    """Let wandb not look for inputs of W&B Launch, whose import takes seconds.

    Inputs can only have been staged by code that has imported that part of wandb.
    """
    from wandb.sdk.wandb_run import Run

    name = "_detect_and_apply_job_inputs"
    method = getattr(Run, name, None)
    if method is None or "wandb.sdk.launch" in sys.modules:
        yield
        return
    setattr(Run, name, lambda run: None)
    try:
        yield
    finally:
        setattr(Run, name, method)


@contextmanager
def _silence_wandb() -> Iterator[None]:
    """Suppress wandb's output and error reports.

    Afterwards restore `sys.exit`, the exception hook and the environment, which wandb
    changes.
    """
    exit_before, hook_before = sys.exit, sys.excepthook
    with (
        restore_environment(WANDB_ERROR_REPORTING="false", WANDB_SILENT="true"),
        redirect_stderr(io.StringIO()),
        redirect_stdout(io.StringIO()),
    ):
        try:
            yield
        finally:
            sys.exit, sys.excepthook = exit_before, hook_before
