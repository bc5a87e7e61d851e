"""Weights & Biases: one run for each stage, several in one process without mixing, and complete without a network."""

import io
import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Literal

import yaml

from kd_app.config.private import cleaned
from kd_app.tracking.base import STUDENT, Backend, Opening, Outcome, Run, borrowed_environment

Mode = Literal["auto", "online", "offline", "disabled"]
_MODES: dict[str, Mode] = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
_BEST = {"top1": "max", "top5": "max", "balanced_accuracy": "max", "agreement": "max", "nll": "min", "ece": "min", "kl_to_teacher": "min"}
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
"""Nothing about the machine is sent, nothing printed; without an answer it waits `init_timeout` and `finish_timeout` seconds."""


class Wandb(Backend):
    """Runs of `project`, grouped by the run's name, with the stage as job type.

    Mode 'auto' is what WANDB_MODE says, else online for somebody who is logged in, else offline. It never asks.
    Under ``wandb agent`` the student's run is the trial, and other stages have none.
    """

    def __init__(self, *, project: str | None, entity: str | None, mode: Mode) -> None:
        self._project = project or os.environ.get("WANDB_PROJECT") or "kd_app"
        self._entity = entity
        self._mode: Mode = _MODES.get(os.environ.get("WANDB_MODE", ""), mode) if mode == "auto" else mode
        self._said = False

    def open(self, opening: Opening, say: Callable[[str], None]) -> Run | None:
        """Open the stage's run; where it can't be online, it is offline."""
        if self._mode == "disabled" or ("WANDB_SWEEP_ID" in os.environ and opening.stage != STUDENT):
            return None
        opening.out.mkdir(parents=True, exist_ok=True)
        with _undisturbed():
            run, text = self._init(opening)
            _define_metrics(run)
        if not self._said:
            say(text)
            self._said = True
        return _WandbRun(run, opening)

    def _init(self, opening: Opening) -> tuple[Any, str]:
        """The run and what to say of it; a second stage does not wait again for a server that did not answer the first."""
        import wandb

        why = ""
        if self._mode != "offline":
            try:
                if wandb.login(prompt=False):
                    run = self._init_as("online", opening)
                    return run, f"W&B: {run.url}"
                why = " (nobody is logged in)"
            except Exception as error:
                why = f" ({_first_line(error)})"
            self._mode = "offline"
        return self._init_as("offline", opening), f"W&B: offline{why}; to upload it later: wandb sync {_shown(opening.out)}/wandb/offline-run-*"

    def _init_as(self, mode: Literal["online", "offline"], opening: Opening) -> Any:
        import wandb

        return wandb.init(
            project=self._project,
            entity=self._entity,
            id=None if opening.stage == STUDENT else uuid.uuid4().hex[:8],
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


class _WandbRun(Run):
    """One run; `step` is a column of its own, the x axis of every curve (validation: `epoch`), so that a training that goes on loses no points."""

    def __init__(self, run: Any, opening: Opening) -> None:
        self._run = run
        self._opening = opening

    def log(self, row: Mapping[str, float], step: int) -> None:
        self._run.log({**row, "step": step})

    def results(self, outcome: Outcome) -> None:
        folder = self._opening.out / "wandb"
        with _undisturbed(), borrowed_environment(WANDB_DATA_DIR=str(folder)):
            self._run.summary.update(dict(outcome.figures))
            if outcome.lineage:
                self._run.config.update({"lineage": {"teacher": dict(outcome.lineage)}}, allow_val_change=True)
            if outcome.test:
                self._run.log({"test_figures": _table(outcome.test)})
            if outcome.lineage and not self._run.offline:
                self._run.use_artifact(_reference(outcome.lineage))
            self._run.log_artifact(_files(outcome, self._opening.name, folder / "told"))

    def close(self, exit_code: int) -> None:
        import wandb

        with _undisturbed():
            try:
                self._run.finish(exit_code=exit_code)
            except Exception:
                with suppress(Exception):  # wandb's process is gone: else its exit hook prints a traceback
                    wandb.teardown(exit_code)
                raise


def _define_metrics(run: Any) -> None:
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    run.define_metric("validation/*", step_metric="epoch")
    for name, best in _BEST.items():
        run.define_metric(f"validation/{name}", step_metric="epoch", summary=best)


def _table(test: Mapping[str, Mapping[str, float]]) -> Any:
    """A row for each model, a column for each figure."""
    import wandb

    columns = list(dict.fromkeys(name for figures in test.values() for name in figures))
    rows: list[Iterable[Any]] = [[role, *(figures.get(name) for name in columns)] for role, figures in test.items()]
    return wandb.Table(columns=["model", *columns], data=rows)


def _reference(lineage: Mapping[str, Any]) -> Any:
    """The teacher as an artifact that a run used: what identifies it, not its weights."""
    import wandb

    artifact = wandb.Artifact(f"teacher-{_word(str(lineage.get('sha256') or lineage.get('name')))[:16]}", type="teacher", metadata=dict(lineage))
    with artifact.new_file("teacher.json", encoding="utf-8") as file:
        json.dump(dict(lineage), file, indent=1)
    return artifact


def _files(outcome: Outcome, name: str, told: Path) -> Any:
    """The run's files as an artifact. They are uploaded from where they lie; `told` takes copies of those that need cleaning."""
    import wandb

    artifact = wandb.Artifact(f"run-{_word(name)}", type="run", metadata={"teacher": dict(outcome.lineage)})
    for inside, path in outcome.files.items():
        artifact.add_file(str(_to_tell(path, told / inside).resolve()), name=inside, policy="immutable", skip_cache=True)
    return artifact


def _to_tell(path: Path, copy: Path) -> Path:
    """`path`, or a copy without what must not leave the machine, where it holds some of that."""
    if path.suffix not in (".json", ".yaml"):
        return path
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    clean = cleaned(content)
    if clean == content:
        return path
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(
        yaml.safe_dump(clean, sort_keys=False, allow_unicode=True) if path.suffix == ".yaml" else json.dumps(clean, indent=1), encoding="utf-8"
    )
    return copy


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _word(text: str) -> str:
    """`text` in the letters that names of artifacts may have."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)


def _shown(path: Path) -> Path:
    """`path` as seen from where the command was started."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let wandb work without printing, without reporting its errors elsewhere, and without leaving its own `sys.exit`, hook and variables here."""
    exit_before, hook_before = sys.exit, sys.excepthook
    with borrowed_environment(WANDB_ERROR_REPORTING="false"), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        try:
            yield
        finally:
            sys.exit, sys.excepthook = exit_before, hook_before
