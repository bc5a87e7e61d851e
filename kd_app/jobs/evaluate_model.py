"""The job of ``kd-evaluate model=...``: measures a model that need not be a run's."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.config.targets import FACTORY
from kd_app.data.evaluation import Evaluation
from kd_app.jobs.evaluate import select_split
from kd_app.measurement.classification import measure_models, start_results
from kd_app.metrics.verdict import VerdictRule
from kd_app.models.composite import ArtifactTeacher
from kd_app.models.spec import CompositeTeacher, ModelSpec
from kd_app.reporting.console import Console
from kd_app.reporting.results import read
from kd_app.reporting.tables import build_summary
from kd_app.reporting.teacher_reference import read_teacher_reference
from kd_app.run.folder import check_out, check_stages, claim_folder
from kd_app.run.known_images import KnownImages, leave_out_used
from kd_app.run.machine import (
    adapt_trainer,
    choose_limit,
    describe_unused,
    remove_machine,
)
from kd_app.run.model import RunModel
from kd_app.run.open_model import require_classes
from kd_app.run.open_run import STAGES
from kd_app.run.recorded_pixels import (
    RecordedPixels,
    choose_model_decoding,
    describe_conversion,
    describe_normalization,
    needs_image_stats,
    read_recorded_pixels,
    set_channels,
)
from kd_app.run.workspace import Workspace
from kd_app.run_files import MANIFEST, REFERENCE, RESULTS
from kd_app.specs.model_specs import build_model_spec, open_artifact_teacher
from kd_app.specs.schema import EvaluationSettings
from kd_app.specs.spec import Config, RunSpec, build_spec
from kd_app.stages import Stages

_WEIGHTS: Final = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin", ".npz", ".pkl")
_ALONE: Final = ("teacher=none", "loss=[cross_entropy]", "controls=[]", "callbacks=[]", "logger=[]")


def evaluate_model(
    config: Config, *, console: Console | None = None, trial: int | None = None
) -> Path:
    """Measure the model ``config['model']`` on ``config['data']`` and write
    results.json, in which the model has the role of a student, into the folder
    ``config['out']``; returns that folder.

    The model is a weights file, a model folder, a run (its student), the teacher's
    folder of a run, or an exported file. Raises `RequestError` if no data are named, or
    the model can't be opened or does not have the classes of the data.
    """
    EvaluationSettings(**config)
    if config["data"] is None:
        raise RequestError(
            f"model={config['model']} is measured on data that you name, and data= is not set. Use"
            " data=folder data.root=<images>. To measure a run on its own test images, use run="
            " instead of model=."
        )
    console, split = console or Console(), select_split(config)
    out = Path(config["out"]) / ("" if trial is None else str(trial))
    model, run = open_model_spec(config["model"], config["architecture"])
    if model.origin.num_classes == 0:
        require_classes(f"model={config['model']}", ())
    pixels = read_model_pixels(model, run)
    data = set_channels(config["data"], pixels.decoding)
    spec = _build_spec({**config, "data": data}, model)
    for note in (*describe_conversion(config["data"], data), *describe_unused(config)):
        console.print(f"Note: {note}")
    rule = VerdictRule(**spec.config["verdict"])
    check_out(out, Path(spec.config["stages"]), run)
    check_stages(Path(spec.config["stages"]))
    with claim_folder(out, remove_machine(config), overwrite=config["overwrite"]):
        stages = Stages(Path(spec.config["stages"]), say=console.print)
        workspace = Workspace(spec, stages, console, None, recorded=pixels)
        names = model.record.classes.names if model.record.is_named else ()
        if names:
            workspace.data.evaluate_only(Evaluation(names, split))
        workspace.prepare_data()
        notes = []
        if run is not None:
            notes += leave_out_used(
                KnownImages.read(run, read(run / RESULTS)),
                workspace.data,
                split,
                config["known_images"],
                workspace.data_folder,
            )
        elif not names:
            notes.append(
                "The model has no class names: its classes are read as those of the data, in the"
                " order of their names."
            )
        if pixels.stats is None and needs_image_stats(model):
            notes.append(
                "The model has no recorded normalization: the mean and deviation of these images"
                " are used. If it was trained with others, save it in timm's local-dir layout,"
                " whose config.json records them."
            )
        builder = start_results(workspace, out, rule)
        student = _load(workspace, model)
        if workspace.data.name is None:
            notes += describe_normalization(pixels, student.loaded.pixels)
        builder.notes += notes
        measure_models(builder, workspace, {"student": student}, {"test": split})
        results = builder.write("finished")
        console.show(build_summary(results))
        console.print(f"Measured {split} images of {config['data']['name']}: {out}")
    return out


def open_model_spec(name: str, architecture: str | None) -> tuple[ModelSpec, Path | None]:
    """The model at the path `name`, and the folder of the run that trained it, if any.

    architecture: the timm model whose weights a weights file holds.
    """
    path = Path(name).expanduser()
    if not path.exists():
        raise RequestError(
            f"model={name}: there is no such file or folder. Expected: a weights file, a model"
            " folder, a run, the teacher's folder of a run, or a file that kd-export wrote."
        )
    run = next((each for each in (path, *path.parents[:2]) if (each / RESULTS).is_file()), None)
    if path.is_file() and path.suffix not in _WEIGHTS:
        return open_artifact_teacher(path, "model"), run
    if (path / MANIFEST).is_file():
        # a torch.export program is never opened
        files = [str(each) for each in sorted(path.iterdir()) if each.suffix in (".onnx", ".pte")]
        raise RequestError(
            f"model={name} is a folder of exported files. Expected: one of the files. Name it, for"
            f" example model={next(iter(files), path / 'model.onnx')}."
        )
    if (path / REFERENCE).is_file():
        path = read_teacher_reference(path).folder or path
    if path.is_file() and architecture is None and not (path.parent / "config.json").is_file():
        raise RequestError(
            f"model={name} is a weights file, which does not name its architecture. Set"
            " architecture=<a timm model>, for example architecture=resnet18."
        )
    node: dict[str, Any] = {
        "_target_": FACTORY,
        "name": architecture,
        "checkpoint": path if path.is_dir() or architecture else path.parent,
    }
    return build_model_spec("student", node, None), run


def read_model_pixels(model: ModelSpec, run: Path | None) -> RecordedPixels:
    """What the model sees: as its run recorded it, or as the model itself does."""
    own = choose_model_decoding(model)
    if run is None:
        return RecordedPixels(decoding=own)
    recorded = read_recorded_pixels(run, read(run / RESULTS))
    is_exported = isinstance(model, ArtifactTeacher)
    return replace(recorded, decoding=own if is_exported else recorded.decoding or own)


def _build_spec(config: Config, model: ModelSpec) -> RunSpec:
    """The specification of a run whose student is `model`, without a training."""
    defaults = compose_config("distill", _ALONE)
    complete = {
        **defaults,
        "data": config["data"],
        "out": config["out"],
        "stages": config["stages"] or STAGES,
        "allow": config["allow"],
        "examples": config["examples"],
        "robustness": config["robustness"],
        "student": {**defaults["student"], "name": model.name, "checkpoint": config["model"]},
        "trainer": {
            **adapt_trainer(defaults["trainer"], config, measures=True),
            "limit_test_batches": choose_limit(config),
        },
    }
    # The model itself replaces the student of the configuration.
    spec = build_spec({**complete, "student": {**defaults["student"], "name": "resnet18"}})
    return replace(spec, config=complete, student=model)


def _load(workspace: Workspace, model: ModelSpec) -> RunModel:
    if isinstance(model, CompositeTeacher):
        model.bind_images(workspace.compute_image_stats())
        model.bind_classes(workspace.classes)
    loaded = workspace.load_model(model, seed=0)
    if loaded.loaded.weights.new_head and model.match is not None and model.match.fits:
        raise RequestError(
            f"The weights of the model {model.name} have no classifier, so there is nothing to"
            " measure. Train one with kd-distill (student.checkpoint=<the weights>), or name"
            " weights with a classifier."
        )
    if loaded.loaded.weights.new_head:
        raise RequestError(
            f"The model {model.name} does not predict {len(workspace.classes)} classes, which the"
            " data have. Name data with the classes of the model."
        )
    return replace(loaded, role="student")
