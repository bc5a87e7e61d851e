"""Open a finished run: to measure its models, to export them, or to continue training.

A run's folder may come from an untrusted source, so only the groups of its
configuration that the purpose needs are built: losses, optimizers and schedules for
training only, callbacks and loggers never. A run whose loss was renamed can therefore
still be measured.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from kd_app.config import RequestError
from kd_app.config.links import check_links
from kd_app.config.path_settings import relocate_paths
from kd_app.config.recorded_files import check_recorded
from kd_app.config.records import parse_record, parse_with, read_record
from kd_app.data.base import RunData
from kd_app.metrics.verdict import VerdictRule
from kd_app.models.embedding_ensemble import EmbeddingEnsemble
from kd_app.models.model_config import CONFIG as MODEL_CONFIG
from kd_app.models.save import INT8, WEIGHTS
from kd_app.models.spec import ModelSpec
from kd_app.reporting.console import Console
from kd_app.reporting.results import Results, read
from kd_app.reporting.teacher_reference import read_teacher_reference
from kd_app.run.environment import FOLDER
from kd_app.run.folder import check_out, check_stages, claim_folder
from kd_app.run.machine import (
    adapt_trainer,
    choose_limit,
    describe_unused,
    remove_machine,
)
from kd_app.run.model import RunModel
from kd_app.run.recorded_pixels import (
    RecordedPixels,
    describe_conversion,
    describe_unknown_input,
    needs_image_stats,
    read_recorded_pixels,
    set_channels,
)
from kd_app.run.workspace import Workspace
from kd_app.run_files import CONFIG, MOMENTS, RESULTS, STUDENT, TEACHER
from kd_app.specs.record_rules import check_record
from kd_app.specs.saved_config import fill_defaults
from kd_app.specs.schema import DistillSettings
from kd_app.specs.spec import Config, ExternalParts, RunSpec, assemble_spec, check_recipes
from kd_app.specs.task_choice import Purpose, fill_task, require_classifier
from kd_app.stages import RECORD, Stages
from kd_app.training.fit import MODEL

OWN, COMPRESSED = "own", "compressed"
"""Keys in a run's config.yaml that are not settings: objects passed from Python, and
how the run was compressed.
"""
STAGES = "runs/.stages"
"""The folder for stages if the run's stages are not on this machine; the default of
``conf/distill.yaml``.
"""
_SHA256_DIGITS = 64
_NO_STEP = (
    "each step of a compression is chosen, distilled and judged by predicted classes; an int8 file"
    " of it comes from kd-export 'formats=[onnx_int8,executorch_int8]'"
)
_BUILT = ("data", "teacher", "student", "trainer", "robustness", "verdict")
_BUILT_TO_TRAIN = ("loss", "optimizer", "scheduler")
_REFITTED = (
    "Student and controls of this run were trained on its validation images, too (data.refit=true),"
    " so their accuracy on validation is that on images that they know, and what is chosen on"
    " validation (a file, the thresholds of a cascade) is chosen on such images."
)


class SavedGroups(TypedDict):
    """What is used of a run's configuration before its parts are built."""

    stages: str
    data: dict[str, Any]
    trainer: dict[str, Any]
    student: dict[str, Any]
    teacher: dict[str, Any] | None
    controls: dict[str, dict[str, Any]]
    verdict: dict[str, Any]
    robustness: dict[str, Any]
    loss: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]


@dataclass(frozen=True)
class SavedRun:
    """The content of a finished run's folder.

    config: the run's configuration, adapted to this machine and the purpose. pixels:
    what its models see. has_own_data: the data are those of the run. notes: for the
    console.
    """

    folder: Path
    results: Results
    config: Config
    purpose: Purpose
    pixels: RecordedPixels
    has_own_data: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenRun:
    """A finished run with its data loaded in a workspace."""

    folder: Path
    results: Results
    config: Config
    verdict: VerdictRule
    workspace: Workspace
    has_own_data: bool = True


def read_run(folder: Path, command: Config, purpose: Purpose) -> SavedRun:
    """Read the finished run in `folder` without building any part.

    The configuration of the `command`, not the run's, decides where stages are written,
    which packages are trusted, which licenses are accepted, and, for a measurement,
    which images are used.

    Raises `RequestError` if `folder` is not a run, the run is unfinished, its
    configuration is unreadable, or names code or a location that the command does not
    allow.
    """
    check_links(folder)
    results = read(folder / RESULTS)
    if results.status != "finished":
        raise RequestError(
            f"The run {str(folder)!r} is {results.status}, not finished. Expected a finished run."
            " Run its kd-distill command again to finish it."
        )
    if purpose == "train":
        require_classifier(folder, results, why=_NO_STEP)
    config = _read_config(folder, results)
    stages = Path(config["stages"])
    names = (Path(stage.path).name for stage in results.stages)
    are_here = any((stages / name / RECORD).is_file() for name in names)
    config["stages"] = command["stages"] or os.path.abspath(stages if are_here else STAGES)
    pixels = read_recorded_pixels(folder, results)
    adapted = _adapt_config(config, command, purpose)
    DistillSettings(**fill_task(adapted))
    is_refitted = _check_refit(folder, results, purpose)
    has_own_data = purpose != "measure" or command["data"] is None
    check_record(_select_groups(config, purpose, has_own_data=has_own_data), command["allow"])
    notes = _describe_omissions(config) if purpose == "train" else describe_unused(command)
    if not has_own_data:
        adapted["data"] = set_channels(command["data"], pixels.decoding)
        notes += describe_conversion(command["data"], adapted["data"])
    elif is_refitted:
        notes += (_REFITTED,)
    return SavedRun(folder, results, adapted, purpose, pixels, has_own_data, notes)


def _check_refit(folder: Path, results: Results, purpose: Purpose) -> bool:
    """Whether the student was trained on the validation images, too. Raises
    `RequestError` if the purpose is a training that chooses on them.
    """
    training = results.models["student"].training if "student" in results.models else None
    if training is None or training.refit is None:
        return False
    if purpose == "train":
        raise RequestError(
            f"The student of {str(folder)!r} was trained on the validation images, too"
            " (data.refit=true), and each step is chosen and judged on them. Compress a run without"
            " data.refit: the same kd-distill command with data.refit=false and another out= reuses"
            " its trainings."
        )
    return True


def _adapt_config(config: Config, command: Config, purpose: Purpose) -> Config:
    """Adapt the run's configuration to this machine and the purpose."""
    adapted = {
        **config,
        "allow": command["allow"],
        "license": command.get("license") or {"accept": [], "policy": None},
        "budget": None,
        "remake": [],
    }
    trainer = adapt_trainer(config["trainer"], command, measures=purpose != "train")
    adapted["trainer"] = trainer
    if purpose == "train":
        return adapted | {"controls": {}, "callbacks": {}, "logger": {}}
    if purpose == "export":
        return adapted | {"controls": {}}
    return adapted | {
        "data": command["data"] or _move_data(config["data"], command.get("root")),
        "examples": command["examples"],
        "robustness": command["robustness"],
        "trainer": {**trainer, "limit_test_batches": choose_limit(command)},
    }


def _move_data(data: Config, root: str | None) -> Config:
    """The data of the run, at their new location `root` if there is one."""
    return data if root is None else {**data, "root": root}


def _describe_omissions(config: Config) -> tuple[str, ...]:
    callbacks = config.get("callbacks")
    if not callbacks or not isinstance(callbacks, dict):
        return ()
    names = ", ".join(map(str, callbacks))
    return (
        f"The callbacks of the run ({names}) are not used when its student is trained further.",
    )


def _read_config(folder: Path, results: Results) -> Config:
    """The configuration in a run's folder, with paths that work from here."""
    path, expected = folder / CONFIG, "Name a complete run folder."
    check_recorded(path)
    saved = read_record(path, dict[str, Any], expected=expected)
    config: Config = parse_with(
        path,
        lambda: fill_defaults(relocate_paths(saved, results.environment.get(FOLDER))),
        expected=expected,
    )
    parse_record(path, config, SavedGroups, expected=expected)
    known = {"teacher", "student", *config["controls"]}
    if unknown := sorted(set(results.models) - known):
        raise RequestError(
            "The run's results name models that its configuration does not:"
            f" {', '.join(map(repr, unknown[:5]))}. Name an unmodified run folder."
        )
    return {key: value for key, value in config.items() if key not in (OWN, COMPRESSED)}


def build_saved_spec(saved: SavedRun) -> RunSpec:
    """Build and validate the parts of the run that the purpose needs.

    Raises `RequestError` if a part is invalid.
    """
    config = saved.config
    # Of the controls only the models are needed. An entropy "auto" would build the
    # student's losses.
    controls = {
        name: {**node, "label_entropy_temperature": None}
        for name, node in config["controls"].items()
    }
    spec = assemble_spec({**config, "controls": controls}, ExternalParts())
    # The teacher of a finished run is not trained again.
    spec = replace(spec, config=config, teacher_recipe=None)
    if isinstance(spec.teacher, EmbeddingEnsemble) and (saved.folder / TEACHER / MOMENTS).is_file():
        # other images have other moments
        check_recorded(saved.folder / TEACHER)
        spec.teacher.moments = saved.folder / TEACHER / MOMENTS
    if saved.purpose == "train":
        check_recipes(spec)
    return spec


def _select_groups(config: Config, purpose: Purpose, *, has_own_data: bool) -> Config:
    """The groups of a run's configuration from which parts are built."""
    groups = {*_BUILT, *(_BUILT_TO_TRAIN if purpose == "train" else ())}
    controls = {}
    if purpose == "measure":
        groups -= {"robustness"} if has_own_data else {"robustness", "data"}
        controls = {
            name: {"student": node.get("student")} for name, node in config["controls"].items()
        }
    teacher = config["teacher"] or {}
    return {
        **{group: config[group] for group in sorted(groups)},
        "teacher": {key: value for key, value in teacher.items() if key not in _BUILT_TO_TRAIN},
        "controls": controls,
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
    prepare: Callable[[RunData], None] | None = None,
) -> Iterator[OpenRun]:
    """Open a finished run for a job that writes its results to `out`.

    `out` is locked meanwhile, and its config.yaml is `record`. `prepare` is called with
    the data before they are listed. Raises `RequestError` if
    a part is invalid, a license forbids the purpose (a measurement is always allowed),
    `out` belongs to another job, or the data have other classes than the run; `out` is
    then unchanged.
    """
    spec, verdict = build_saved_spec(saved), VerdictRule(**saved.config["verdict"])
    if saved.purpose != "measure":
        spec.licenses.check()
    for note in saved.notes:
        console.print(f"Note: {note}")
    folder = Path(saved.config["stages"])
    check_out(out, folder, saved.folder)
    check_stages(folder)
    if saved.purpose != "train":
        record = remove_machine(record)
    with claim_folder(out, record, overwrite=overwrite):
        stages = Stages(folder, remake=remake, say=console.print)
        workspace = Workspace(spec, stages, console, tracker, recorded=saved.pixels)
        if prepare is not None:
            prepare(workspace.data)
        workspace.prepare_data()
        if saved.purpose == "train":
            workspace.check_losses()
        if workspace.task.reads_labels:
            _check_classes(workspace.classes, saved.results)
        with workspace.keep_work():
            yield OpenRun(
                saved.folder, saved.results, saved.config, verdict, workspace, saved.has_own_data
            )


def _check_classes(classes: tuple[str, ...], results: Results) -> None:
    trained = tuple(results.data.classes) if results.data else ()
    if classes != trained:
        different = [name for name in classes if name not in trained] or [
            name for name in trained if name not in classes
        ]
        raise RequestError(
            f"The run's models have {len(trained)} classes, these data have {len(classes)};"
            f" they differ in {', '.join(map(repr, different[:5]))}. Expected: the same class"
            " names. Use the data of the run."
        )


def load_models(run: OpenRun, roles: Collection[str] | None = None) -> dict[str, RunModel]:
    """Load the run's models of these roles, by default of all roles.

    A model is left out, with a note on the console, if its stage was deleted, or if its
    input depends on images that the run did not record and the data have changed.
    """
    workspace = run.workspace
    models: dict[str, RunModel] = {}
    root = workspace.stages.root
    stages = {stage.name: _find_stage(Path(stage.path), root) for stage in run.results.stages}
    for role in run.results.models:
        if roles is not None and role not in roles:
            continue
        stage = stages.get(f"{role}-refit", stages.get(role, run.folder))
        folder = run.folder / STUDENT if role == "student" else stage / MODEL
        if role == "teacher":
            spec = _build_teacher_spec(workspace, run.folder)
        else:
            spec = _build_trained_spec(workspace.spec, role, folder)
        if spec is None:
            workspace.console.print(
                f"Note: {role} is left out, because its model was deleted ({stage})"
            )
            continue
        if not _is_input_known(run, spec):
            workspace.console.print(describe_unknown_input(role, run.folder))
            continue
        program = folder / INT8
        model = workspace.load_model(spec, seed=0)
        _check_weights(run, role, model)
        models[role] = replace(
            model,
            folder=_find_stage_folder(spec),
            program=program if role == "student" and program.is_file() else None,
        )
    return models


def _is_input_known(run: OpenRun, spec: ModelSpec) -> bool:
    """Whether the model gets the input that it had in the run."""
    data, workspace = run.results.data, run.workspace
    if workspace.recorded.stats is not None:
        return True
    is_unchanged = data is not None and data.fingerprint == workspace.data.fingerprint
    return (run.has_own_data and is_unchanged) or not needs_image_stats(spec)


def _check_weights(run: OpenRun, role: str, model: RunModel) -> None:
    """Raise `RequestError` if the weights are not those that the run measured."""
    expected, weights = run.results.models[role].sha256, model.loaded.weights
    if len(expected) == _SHA256_DIGITS and weights.sha256 != expected:
        raise RequestError(
            f"The weights of {role} from {model.spec.origin.path or weights.source} are not those"
            f" of the run {str(run.folder)!r}: their sha256 is {weights.sha256[:16]}, the run"
            f" recorded {expected[:16]}. They were damaged or replaced. Repeat the run's"
            " kd-distill command, which rebuilds what is damaged, or bring back the weights."
        )


def _find_stage(path: Path, root: Path) -> Path:
    """The folder of a stage that a run recorded: the stages may have moved to `root`,
    or the path be relative to another working directory.
    """
    return path if path.is_dir() else root / path.name


def _build_teacher_spec(workspace: Workspace, run: Path) -> ModelSpec | None:
    check_recorded(run / TEACHER)
    reference = read_teacher_reference(run / TEACHER)
    if reference.stage is None:
        return workspace.spec.teacher
    stage = _find_stage(reference.stage, workspace.stages.root)
    return _build_trained_spec(workspace.spec, "teacher", stage / MODEL)


def _build_trained_spec(spec: RunSpec, role: str, folder: Path) -> ModelSpec | None:
    """The spec of the model that a training saved in `folder`; None if it is missing.

    The folder is in timm's local-dir layout; for a user-provided factory it contains
    the weights for the factory's module.
    """
    if not (folder / MODEL_CONFIG).is_file():
        return None
    check_links(folder)
    control = spec.controls.get(role)
    candidates = control.students if control else ()
    student = candidates[0] if candidates else spec.student
    original = spec.teacher if role == "teacher" else student
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


def _find_stage_folder(spec: ModelSpec) -> Path | None:
    """The folder of the stage that trained a model; None for a model from elsewhere."""
    path = spec.origin.path
    for folder in (path, path.parent) if path else ():
        if folder.name == MODEL and (folder.parent / RECORD).is_file():
            return folder.parent
    return None
