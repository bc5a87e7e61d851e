"""A finished run, opened again: to measure its models, to export them, or to train on.

A run's folder may come from somebody else. Of its configuration only the groups that
the purpose needs are built; losses, optimizers and schedules are built to train, and
callbacks and loggers never. So a run can still be measured when one of its losses has
another name by now.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from kd_app.config import RequestError
from kd_app.config.errors import take_first_line
from kd_app.config.targets import check_targets
from kd_app.metrics.verdict import VerdictRule
from kd_app.models.save import CONFIG as MODEL_CONFIG
from kd_app.models.save import INT8, WEIGHTS
from kd_app.models.spec import ModelSpec
from kd_app.reporting.console import Console
from kd_app.reporting.results import Results, read
from kd_app.reporting.teacher_reference import read_teacher_reference
from kd_app.run.run_folder import claim_folder
from kd_app.run.schema import DistillSettings
from kd_app.run.spec import Config, ExternalParts, RunSpec, assemble_parts, check_trainings
from kd_app.run.workspace import RunModel, Workspace
from kd_app.run_files import CONFIG, RESULTS, STUDENT, TEACHER
from kd_app.stages import RECORD, Stages
from kd_app.training.fit import MODEL

Purpose = Literal["measure", "export", "train"]
OWN, COMPRESSED = "own", "compressed"
"""Keys in a run's config.yaml that are not settings: parts passed as objects from
Python, and how the run was compressed.
"""
STAGES = "runs/.stages"
"""Folder of the stages where the run's own are not on this machine; as in
``conf/distill.yaml``.
"""
_BUILT = ("data", "teacher", "student", "trainer", "robustness", "verdict")
_BUILT_TO_TRAIN = ("loss", "optimizer", "scheduler")


@dataclass(frozen=True)
class SavedRun:
    """A finished run as its folder records it. config: the run's configuration, for
    this machine and the purpose · notes: what of it is left out.
    """

    folder: Path
    results: Results
    config: Config
    purpose: Purpose
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenRun:
    """A finished run whose data are ready: in the workspace, with the run's classes."""

    folder: Path
    results: Results
    config: Config
    verdict: VerdictRule
    workspace: Workspace


def read_run(folder: Path, command: Config, purpose: Purpose) -> SavedRun:
    """Read the finished run in `folder`; nothing is built.

    The configuration of the `command` decides where stages are written, which packages
    are trusted and which licenses are accepted, whatever the run says; and to measure,
    on which images.

    Raises `RequestError`: no run, an unfinished one, or an unreadable configuration.
    """
    results = read(folder / RESULTS)
    if results.status != "finished":
        raise RequestError(
            f"The run {str(folder)!r} is {results.status}, not finished. Expected a finished run."
            " Run its kd-distill command again to finish it."
        )
    config, stages = _read_config(folder, results)
    here = any(
        (path / RECORD).is_file() and path.parent == stages
        for path in (Path(stage.path) for stage in results.stages)
    )
    config["stages"] = command["stages"] or (str(stages) if here else STAGES)
    return SavedRun(
        folder,
        results,
        _adapt_config(config, command, purpose),
        purpose,
        notes=_describe_omissions(config) if purpose == "train" else (),
    )


def _adapt_config(config: Config, command: Config, purpose: Purpose) -> Config:
    """The run's configuration for this machine and the purpose."""
    adapted = {
        **config,
        "allow": command["allow"],
        "license": command.get("license") or {"accept": [], "policy": None},
        "budget": None,
        "remake": [],
    }
    if purpose == "train":
        return adapted | {"controls": {}, "callbacks": {}, "logger": {}}
    here = {"accelerator": "auto", "devices": 1, "precision": "auto"}
    if purpose == "export":
        return adapted | {"controls": {}, "trainer": {**config["trainer"], **here}}
    return adapted | {
        "data": command["data"] or config["data"],
        "examples": command["examples"],
        "robustness": command["robustness"],
        "trainer": {**config["trainer"], **here, "limit_test_batches": command["limit"]},
    }


def _describe_omissions(config: Config) -> tuple[str, ...]:
    callbacks = config.get("callbacks")
    if not callbacks or not isinstance(callbacks, dict):
        return ()
    names = ", ".join(map(str, callbacks))
    return (f"The callbacks of the run ({names}) are not used when its student is trained on.",)


def _read_config(folder: Path, results: Results) -> tuple[Config, Path]:
    """The configuration in a run's folder, and the folder of the run's stages."""
    try:
        config: Config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        stages = Path(config["stages"])
        config["trainer"] = dict(config["trainer"])
        known = {"teacher", "student", *config["controls"]}
        config["data"] = dict(config["data"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"The run's configuration {str(folder / CONFIG)!r} can't be read: {take_first_line(error)}."
            " Name a whole run folder."
        ) from None
    if strange := sorted(set(results.models) - known):
        raise RequestError(
            "The run's results name models that its configuration does not:"
            f" {', '.join(map(repr, strange[:5]))}."
        )
    return {key: value for key, value in config.items() if key not in (OWN, COMPRESSED)}, stages


def build_parts(saved: SavedRun) -> RunSpec:
    """Build the parts that the purpose needs, each checked by its own signature.

    Raises `RequestError`: a part does not fit, or is code that the command does not
    trust.
    """
    config = saved.config
    DistillSettings(**config)
    check_targets(_select_parts(config, saved.purpose), config["allow"])
    # Only the nets of controls are needed. An entropy "auto" would build the student's losses.
    controls = {
        name: {**node, "label_entropy_temperature": None}
        for name, node in config["controls"].items()
    }
    parts = assemble_parts({**config, "controls": controls}, ExternalParts())
    # The teacher of a finished run is not trained again.
    parts = replace(parts, config=config, teacher_recipe=None)
    if saved.purpose == "train":
        check_trainings(parts)
    return parts


def _select_parts(config: Config, purpose: Purpose) -> Config:
    """The part of a run's configuration from which something is built."""
    groups = (*_BUILT, *(_BUILT_TO_TRAIN if purpose == "train" else ()))
    teacher = config["teacher"] or {}
    return {
        **{group: config[group] for group in groups},
        "teacher": {key: value for key, value in teacher.items() if key not in _BUILT_TO_TRAIN},
        "controls": {
            name: {"student": node.get("student")} for name, node in config["controls"].items()
        },
    }


@contextmanager
def open_run(
    saved: SavedRun,
    out: Path,
    record: Config,
    *,
    overwrite: bool,
    console: Console,
    remake: Sequence[str] = (),
    tracker: Any = None,
) -> Iterator[OpenRun]:
    """Open a finished run for work whose results go to `out`, which is held meanwhile
    and says `record` as its configuration.

    Raises `RequestError`: a part does not fit, a license forbids the purpose (to
    measure needs none), `out` belongs to something else, or the data have other
    classes than the run. `out` is then as it was.
    """
    parts, verdict = build_parts(saved), VerdictRule(**saved.config["verdict"])
    if saved.purpose != "measure":
        parts.licenses.check()
    for note in saved.notes:
        console.print(f"Note: {note}")
    with claim_folder(out, record, overwrite=overwrite):
        stages = Stages(Path(saved.config["stages"]), remake=remake, say=console.print)
        workspace = Workspace(parts, stages, console, tracker)
        workspace.prepare_data()
        if saved.purpose == "train":
            workspace.check_losses()
        _check_classes(workspace.classes, saved.results)
        yield OpenRun(saved.folder, saved.results, saved.config, verdict, workspace)


def _check_classes(classes: tuple[str, ...], results: Results) -> None:
    trained = tuple(results.data.classes) if results.data else ()
    if classes != trained:
        strange = [name for name in classes if name not in trained] or [
            name for name in trained if name not in classes
        ]
        raise RequestError(
            f"The run's models know {len(trained)} classes, these data have {len(classes)};"
            f" they differ in {', '.join(map(repr, strange[:5]))}. Expected the same classes by the"
            " same names."
        )


def load_models(run: OpenRun, roles: Collection[str] | None = None) -> dict[str, RunModel]:
    """Load the run's models of these roles, by default all. One whose stage was removed
    is left out, with a note on the console.
    """
    workspace = run.workspace
    models: dict[str, RunModel] = {}
    stages = {stage.name: Path(stage.path) for stage in run.results.stages}
    for role in run.results.models:
        if roles is not None and role not in roles:
            continue
        folder = run.folder / STUDENT if role == "student" else stages.get(role, run.folder) / MODEL
        if role == "teacher":
            request = _build_teacher_spec(workspace.spec, run.folder)
        else:
            request = _request_trained(workspace.spec, role, folder)
        if request is None:
            workspace.console.print(
                f"Note: the {role} is not there any more ({stages.get(role, run.folder)}); it is"
                " left out"
            )
            continue
        program = folder / INT8
        models[role] = replace(
            workspace.load_model(request, seed=0),
            folder=_find_stage_folder(request),
            program=program if role == "student" and program.is_file() else None,
        )
    return models


def _build_teacher_spec(parts: RunSpec, run: Path) -> ModelSpec | None:
    reference = read_teacher_reference(run / TEACHER)
    if reference.stage is None:
        return parts.teacher
    return _request_trained(parts, "teacher", reference.stage / MODEL)


def _request_trained(parts: RunSpec, role: str, folder: Path) -> ModelSpec | None:
    """The request for a model that a training left in `folder`: timm's local-dir, or
    weights for the module of the run's factory. None if it is not there.
    """
    if not (folder / MODEL_CONFIG).is_file():
        return None
    control = parts.controls.get(role)
    nets = control.students if control else ()
    original = parts.teacher if role == "teacher" else nets[0] if nets else parts.student
    assert original is not None
    factory = original.factory
    return ModelSpec(
        role=role,
        name=None,
        pretrained="auto",
        checkpoint=folder if factory is None else folder / WEIGHTS,
        kwargs={} if factory is None else original.kwargs,
        image_size=None if factory is None else original.image_size,
        factory=factory,
    )


def _find_stage_folder(request: ModelSpec) -> Path | None:
    """The folder of the stage that trained a model; None where it came from elsewhere."""
    path = request.origin.path
    return next(
        (
            place.parent
            for place in ((path, path.parent) if path else ())
            if place.name == MODEL and (place.parent / RECORD).is_file()
        ),
        None,
    )
