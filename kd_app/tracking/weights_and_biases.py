"""Weights & Biases: one run for each stage, several in one process without mixing, and
complete without a network.
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

from kd_app.config.errors import take_first_line
from kd_app.config.redact import copy_redacted
from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.pair_metrics import PAIR_METRICS
from kd_app.stages import write_atomically
from kd_app.tracking.base import (
    STUDENT,
    Artifact,
    Backend,
    Outcome,
    RunStart,
    TrackerRun,
    restore_environment,
)
from kd_app.tracking.tables import (
    Picture,
    Table,
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
"""The best so far, as a plain number: what W&B's sweeps can be told to maximize."""

_FOLDER = "wandb"
_TOLD = ".told"
"""Hidden: a copy of a run's files is no run that somebody should find."""

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
"""Nothing about the machine is sent, nothing printed; without an answer it waits
`init_timeout` and `finish_timeout` seconds.
"""


class Wandb(Backend):
    """Runs of `project`, grouped by the run's name, with the stage as job type.

    Mode 'auto' is what WANDB_MODE says, else online for somebody who is logged in, else
    offline. It never asks. Under ``wandb agent`` the student's run is the trial, and
    other stages have none.
    """

    def __init__(self, *, project: str | None, entity: str | None, mode: Mode) -> None:
        self._project = project or os.environ.get("WANDB_PROJECT") or "kd_app"
        self._entity = entity
        self._mode: Mode = (
            _MODES.get(os.environ.get("WANDB_MODE", ""), mode) if mode == "auto" else mode
        )
        self._said = False

    def open(self, opening: RunStart, say: Callable[[str], None]) -> TrackerRun | None:
        """Open the stage's run, or go on with the one that an earlier attempt opened;
        where it can't be online, it is offline.
        """
        if self._mode == "disabled" or (
            "WANDB_SWEEP_ID" in os.environ and opening.stage != STUDENT
        ):
            return None
        opening.out.mkdir(parents=True, exist_ok=True)
        with _silence_wandb(), restore_environment(WANDB_DATA_DIR=str(opening.out / _FOLDER)):
            run, text = self._init(opening, _resolve_run_id(opening))
            _define_metrics(run)
            for artifact in opening.uses:
                _use(run, artifact, opening.out / _FOLDER)
            following = _WandbRun(run, opening)
        if not self._said:
            say(text)
            self._said = True
        return following

    def _init(self, opening: RunStart, identity: str) -> tuple[Any, str]:
        """The run and what to say of it; a second stage does not wait again for a
        server that did not answer the first.
        """
        import wandb

        why = ""
        if self._mode != "offline":
            try:
                if wandb.login(prompt=False):
                    run = self._init_as("online", opening, identity)
                    return run, f"W&B: {run.url}"
                why = " (nobody is logged in)"
            except Exception as error:
                why = f" ({take_first_line(error)})"
            self._mode = "offline"
        run = self._init_as("offline", opening, identity)
        return (
            run,
            (
                f"W&B: offline{why}; to upload it later: wandb sync"
                f" {_shorten_path(opening.out)}/wandb/offline-run-*"
            ),
        )

    def _init_as(self, mode: Literal["online", "offline"], opening: RunStart, identity: str) -> Any:
        import wandb

        return wandb.init(
            project=self._project,
            entity=self._entity,
            id=identity,
            resume="allow" if mode == "online" and opening.points else None,
            name=opening.name,
            group=opening.group,
            job_type=opening.stage,
            tags=opening.tags,
            config=dict(opening.config),
            dir=str(opening.out),
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(**_SETTINGS),
        )


class _WandbRun(TrackerRun):
    """One run; `step` is a column of its own, the x axis of every curve (validation:
    `epoch`).

    A run that goes on is told all its points again: the server's keeps those that it
    has, an offline one begins a file that holds them all.
    """

    def __init__(self, run: Any, opening: RunStart) -> None:
        self._run = run
        self._opening = opening
        self._known = int(run.starting_step)
        self._best = -math.inf
        if opening.knowledge:
            self._tell(
                {
                    name: _to_wandb_table(table)
                    for name, table in build_knowledge_tables(opening.knowledge).items()
                }
            )
        for row, step in opening.points:
            self.log(row, step)

    def log(self, row: Mapping[str, float], step: int) -> None:
        best = {}
        if _OBJECTIVE in row:
            self._best = max(self._best, row[_OBJECTIVE])
            best[BEST] = self._best
        self._tell({**row, **best, "step": step})

    def _tell(self, row: Mapping[str, Any]) -> None:
        if self._known:
            self._known -= 1
        else:
            self._run.log(dict(row))

    def log_artifact(self, artifact: Artifact) -> None:
        with _silence_wandb(), restore_environment(WANDB_DATA_DIR=str(self._folder)):
            self._run.log_artifact(*_build_artifact(artifact, self._folder))

    def log_outcome(self, outcome: Outcome) -> None:
        with _silence_wandb(), restore_environment(WANDB_DATA_DIR=str(self._folder)):
            self._run.summary.update(dict(outcome.figures))
            shown = {name: _to_wandb_table(table) for name, table in build_tables(outcome).items()}
            shown |= {
                f"confusion/{role}": _plot_confusion(role, table)
                for role, table in build_confusion_tables(outcome).items()
            }
            if shown:
                self._run.log(shown)
            for artifact in outcome.makes:
                self._run.log_artifact(*_build_artifact(artifact, self._folder))

    @property
    def _folder(self) -> Path:
        return self._opening.out / _FOLDER

    def close(self, exit_code: int) -> None:
        import wandb

        with _silence_wandb():
            try:
                self._run.finish(exit_code=exit_code)
            except Exception:
                with suppress(
                    Exception
                ):  # wandb's process is gone: else its exit hook prints a traceback
                    wandb.teardown(exit_code)
                raise
        _remember(self._opening, self._run.id, finished=exit_code == 0)


def _resolve_run_id(opening: RunStart) -> str:
    """The trial's, where an agent or somebody else says so for the student; else that
    of the earlier attempt that this one goes on with; else new.

    A file of the run has to have a name of its own: within the second in which the last
    one was begun it waits.
    """
    given = os.environ.get("WANDB_RUN_ID") if opening.stage == STUDENT else None
    before = _read(_locate_memory(opening))
    goes_on = "id" in before and (bool(opening.points) or not before.get("finished"))
    identity = given or (str(before["id"]) if goes_on else uuid.uuid4().hex[:8])
    _remember(opening, identity, finished=False)
    while any((opening.out / _FOLDER).glob(f"*run-{time.strftime('%Y%m%d_%H%M%S')}-{identity}")):
        time.sleep(0.02)
    return identity


def _locate_memory(opening: RunStart) -> Path:
    return opening.out / _FOLDER / f"{opening.stage}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(opening: RunStart, identity: str, *, finished: bool) -> None:
    path = _locate_memory(opening)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"id": identity, "finished": finished}))


def _define_metrics(run: Any) -> None:
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    run.define_metric("validation/*", step_metric="epoch")
    better = {spec.name: spec.better for spec in MODEL_METRICS}
    better |= {spec.name: spec.better for spec in PAIR_METRICS}
    for name, direction in better.items():
        summary = "max" if direction == "higher" else "min"
        run.define_metric(f"validation/{name}", step_metric="epoch", summary=summary)


def _to_wandb_table(table: Table) -> Any:
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


def _plot_confusion(role: str, table: Table) -> Any:
    """W&B's own heat map of a confusion matrix, with counts that are sent as they are
    shown.
    """
    import wandb

    columns = ("Actual", "Predicted", "nPredictions")
    fields = {name: name for name in columns}
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        _to_wandb_table(Table(columns, table.rows)),
        fields,
        {"title": f"{role}: label and answer"},
    )


def _build_artifact(artifact: Artifact, folder: Path) -> tuple[Any, None, None, list[str]]:
    """The arguments of ``log_artifact``. Files are uploaded from where they lie; below
    `folder` lie copies of those that need cleaning.

    W&B knows a version by its files alone: what is told of it is one of them.
    """
    import wandb

    made = wandb.Artifact(
        artifact.name,
        type=artifact.kind,
        metadata={**artifact.content, **artifact.about, "identity": artifact.identity},
    )
    if artifact.content:
        with made.new_file(f"{artifact.kind}.json", encoding="utf-8") as file:
            json.dump(dict(artifact.content), file, indent=1, sort_keys=True)
    for inside, path in artifact.files.items():
        made.add_file(
            str(copy_redacted(path, folder / _TOLD / inside).resolve()),
            name=inside,
            policy="immutable",
            skip_cache=True,
        )
    return made, None, None, ["latest", artifact.identity[:12]]


def _use(run: Any, artifact: Artifact, folder: Path) -> None:
    """Say that a run uses an artifact, which the server may not know yet.

    It is what ``use_artifact`` does for such a one, but without waiting for the server,
    so that it is queued offline, too, where ``use_artifact`` raises: whoever uploads
    the run makes the artifact, or finds it, and links both.
    """
    made, _, _, aliases = _build_artifact(artifact, folder)
    run._log_artifact(made, aliases=aliases, is_user_created=True, use_after_commit=True)


def _shorten_path(path: Path) -> Path:
    """`path` as seen from where the command was started."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@contextmanager
def _silence_wandb() -> Iterator[None]:
    """Let wandb work without printing, without reporting its errors elsewhere, and
    without leaving its own `sys.exit`, hook and variables here.
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
