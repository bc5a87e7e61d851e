"""The job of ``kd-export``: writes the models of a finished run as files, measures each
file, and recommends one.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, StrictBool

import kd_app
from kd_app.config import RequestError, RunError, Typed, build_unknown_error
from kd_app.config.make import make
from kd_app.data.chained import Chained
from kd_app.deployment.artifact import open_foreign
from kd_app.deployment.export import write_manifest
from kd_app.deployment.formats.base import Format
from kd_app.deployment.logits import NonFiniteLogitsError, name_images
from kd_app.deployment.predictions import predict_with_artifact
from kd_app.deployment.price import Price
from kd_app.deployment.timing import Benchmark
from kd_app.digest import hash_file
from kd_app.files import replace_file
from kd_app.measurement.exported_benchmark import measure_accuracy, time_files
from kd_app.measurement.exported_embedding import measure_embedding_file, recommend_embedding_file
from kd_app.measurement.recommend_file import list_remarks, recommend_file
from kd_app.metrics.record import Predictions
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.console import Console
from kd_app.reporting.export_tables import (
    build_accuracy_table,
    build_cost_table,
    build_embedding_table,
)
from kd_app.reporting.exports import Exports
from kd_app.reporting.results import Results
from kd_app.run.exported_files import ExportedFile, write_files
from kd_app.run.model import RunModel
from kd_app.run.open_run import OpenRun, load_models, open_run, read_run
from kd_app.run.workspace import Workspace
from kd_app.specs.schema import Group, Place
from kd_app.specs.spec import Config
from kd_app.specs.task_choice import NeighborSettings

ROLES: dict[str, tuple[str, ...]] = {
    "student": ("student",),
    "teacher": ("teacher",),
    "both": ("student", "teacher"),
}


class Export(Typed, called="kd-export"):
    """The top level of ``conf/export.yaml``."""

    def __init__(
        self,
        *,
        run: Place,
        role: Literal["student", "teacher", "both"],
        out: Place,
        calibration_images: PositiveInt,
        compared_images: PositiveInt,
        stages: Place | None,
        remake: list[Place],
        overwrite: StrictBool,
        allow: list[Place],
        test: Literal["auto", "always", "never"],
        license: Group,
        trainer: Group,
        formats: Annotated[dict[str, Group], Field(min_length=1)],
        benchmark: Group,
        price: Group,
    ) -> None:
        self.run = Path(run)
        self.roles = ROLES[role]
        self.out = Path(out)
        self.calibration_images = calibration_images
        self.compared_images = compared_images
        self.test = test
        self.nodes = formats
        self.formats: dict[str, Format] = {
            name: make(node, Format) for name, node in formats.items()
        }
        self.benchmark: Benchmark = make(benchmark, Benchmark)
        self.price: Price = make(price, Price)
        stage_names = [_name_stage(role, name) for role in self.roles for name in formats]
        for name in remake:
            if name not in stage_names:
                raise build_unknown_error("stage to remake", name, stage_names)


@dataclass(frozen=True)
class _Job:
    """An export: its settings, and the run's data, results and models in torch."""

    settings: Export
    workspace: Workspace
    rule: VerdictRule
    before: Results
    models: Mapping[str, RunModel]
    splits: tuple[str, ...]


def export_run(config: Config, *, console: Console | None = None, trial: int | None = None) -> Path:
    """Write the models of the finished run ``config['run']`` as files, measure each
    file, and recommend one; returns the folder of the files.

    Raises `RequestError` for a wrong request, and `RunError` if a model can't be
    written in a format or if a file's logits differ from the model's in torch.
    """
    settings, console = Export(**config), console or Console()
    saved = read_run(settings.run, config, "export")
    out = settings.out if trial is None else settings.out / str(trial)
    not_cached = [
        _name_stage(role, name)
        for role in settings.roles
        for name, form in settings.formats.items()
        if not form.cacheable
    ]
    with open_run(
        saved,
        out,
        config,
        overwrite=config["overwrite"],
        console=console,
        remake=[*config["remake"], *not_cached],
    ) as run:
        read_test = settings.test == "always" or (settings.test == "auto" and trial is None)
        splits = ("validation", "test") if read_test else ("validation",)
        models = _load_models(settings, run)
        _export(_Job(settings, run.workspace, run.verdict, run.results, models, splits), out)
    return out


def _name_stage(role: str, format_name: str) -> str:
    return f"export-{role}-{format_name}"


def _load_models(settings: Export, run: OpenRun) -> dict[str, RunModel]:
    models = load_models(run, ("teacher", "student"))
    for role in settings.roles:
        if role not in models:
            raise RequestError(
                f"The run {str(settings.run)!r} has no {role} to export: the run had none, or its"
                " folder is gone. Set role=student."
            )
    return models


def _export(job: _Job, out: Path) -> None:
    files = write_files(job.workspace, job.before, job.models, job.settings)
    if job.before.embedding is not None:
        _export_embeddings(job, out, files)
        return
    predictions = {
        role: {split: job.workspace.load_predictions(model, split) for split in job.splits}
        for role, model in job.models.items()
    }
    metrics = {name: _measure_file(job, name, file, predictions) for name, file in files.items()}
    timings = time_files(job.settings, job.workspace, job.before, job.models, files)
    entries = {
        name: {**file.entry, **metrics[name], **timings.files[name]} for name, file in files.items()
    }
    models = {
        role: {**timings.torch[role], **_measure_torch_model(job, role, predictions)}
        for role in job.models
    }
    exports = Exports.model_validate({"schema_version": 1, "files": entries, "torch": models})
    recommendation = recommend_file(exports)
    _write_folder(job, out, files, entries=entries, models=models, ship=recommendation.file)
    exports.ship = recommendation.file
    console = job.workspace.console
    console.print()
    console.show(build_accuracy_table(exports, job.splits[-1]))
    console.show(build_cost_table(exports))
    for sentence in (*recommendation.reasons, *list_remarks(exports), *timings.notes):
        console.print(sentence)
    if any(model.program for model in job.models.values()):
        console.print(
            "The student is quantized: its metrics in torch are those of its int8 program, but its"
            " speed in torch is that of its float weights."
        )
    console.print(f"Everything is in {out}")


def _write_folder(
    job: _Job,
    out: Path,
    files: Mapping[str, ExportedFile],
    *,
    entries: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, Any],
    ship: str | None,
) -> None:
    for name, file in files.items():
        copy_whole(file.path, out / name)
    write_manifest(
        out,
        entries,
        kd_app=kd_app.__version__,
        role=list(job.settings.roles),
        torch=models,
        ship=ship,
    )


def _export_embeddings(job: _Job, out: Path, files: Mapping[str, ExportedFile]) -> None:
    """Measure files that output an embedding by the teacher's neighbors."""
    workspace, last = job.workspace, job.splits[-1]
    if "teacher" not in job.models:
        raise RequestError(
            f"The teacher of {str(job.settings.run)!r} is gone, and files are measured by its"
            " neighbors. Expected: the weights that the run used. Bring them back, or repeat the"
            " kd-distill command with another teacher."
        )
    k = NeighborSettings(**workspace.spec.config["neighbors"]).k
    load = {role: partial(workspace.load_predictions, model) for role, model in job.models.items()}
    load |= {
        name: partial(_load_predictions, workspace, name, file) for name, file in files.items()
    }
    metrics = {
        name: measure_embedding_file(
            workspace,
            load["teacher"],
            own,
            job.splits,
            k=k,
            confidence=job.rule.confidence,
            origin=load[files[name].role] if name in files else None,
        )
        for name, own in load.items()
    }
    timings = time_files(job.settings, workspace, job.before, job.models, files)
    entries = {
        name: {**file.entry, **metrics[name], **timings.files[name]} for name, file in files.items()
    }
    models = {role: {**timings.torch[role], **metrics[role]} for role in job.models}
    exports = Exports.model_validate({"schema_version": 1, "files": entries, "torch": models})
    choice = recommend_embedding_file(exports, last)
    _write_folder(job, out, files, entries=entries, models=models, ship=choice.file)
    exports.ship = choice.file
    console = workspace.console
    console.print()
    console.show(build_embedding_table(exports, last))
    console.show(build_cost_table(exports))
    for sentence in (*choice.sentences, *timings.notes):
        console.print(sentence)
    console.print(f"Everything is in {out}")


def _measure_file(
    job: _Job, name: str, file: ExportedFile, predictions: Mapping[str, Mapping[str, Predictions]]
) -> dict[str, Any]:
    """Metrics of a file by split: its own, compared with the teacher, and compared with
    the same model in torch.
    """
    return {
        split: measure_accuracy(
            _load_predictions(job.workspace, name, file, split),
            predictions["teacher"][split] if "teacher" in predictions else None,
            predictions[file.role][split],
            job.rule,
        )
        for split in job.splits
    }


def _measure_torch_model(
    job: _Job, role: str, predictions: Mapping[str, Mapping[str, Predictions]]
) -> dict[str, Any]:
    teacher = predictions.get("teacher")
    return {
        split: measure_accuracy(
            predictions[role][split], teacher[split] if teacher else None, None, job.rule
        )
        for split in job.splits
    }


def _load_predictions(
    workspace: Workspace, name: str, file: ExportedFile, split: str
) -> Predictions:
    """A file's predictions on a split, computed once."""

    def build(folder: Path) -> None:
        workspace.console.print_transient(f"  {name}: {split} images ...")
        artifact = open_foreign(file.path)
        batches = Chained([workspace.data.build_evaluation_loader(split, artifact.pixels)])
        try:
            with name_images(workspace.data.files):
                predictions = predict_with_artifact(
                    artifact, batches, limit=workspace.limit, spool=folder
                )
        except NonFiniteLogitsError as error:
            raise RunError(str(error)) from None
        predictions.save(folder)

    config = {"split": split, "limit": workspace.limit, "runtime": file.entry["runtime"]}
    inputs = {"data": workspace.data.fingerprint, "file": file.entry["sha256"]}
    stage = workspace.find_or_build(f"answers-{name}-{split}", config, inputs, build)
    return Predictions.load(stage.path)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that `target` is never a partial copy. Raises `RunError` if the
    copy differs from the source.
    """
    with source.open("rb") as old, replace_file(target) as new:
        shutil.copyfileobj(old, new)
    if hash_file(target) != hash_file(source):
        raise RunError(
            f"{str(target)!r} differs from the file it was copied from. Check that the disk is not"
            " full or failing, then re-run the same command: it resumes from here."
        )
