"""Measurement of a run's models on the same images."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kd_app.deployment.predictions import measure_throughput
from kd_app.measurement.builder import ResultsBuilder, SplitName
from kd_app.measurement.dark_knowledge import measure_teacher_knowledge, show_examples
from kd_app.measurement.robustness import measure_robustness
from kd_app.metrics.verdict import VerdictRule
from kd_app.models.composite import RuntimeModel
from kd_app.models.cost import count_macs, count_params
from kd_app.models.save import WEIGHTS
from kd_app.reporting.results import (
    Data,
    LicenseRecord,
    ModelRecord,
    RefitRecord,
    Results,
    Speed,
    TrainingRecord,
)
from kd_app.run.model import RunModel
from kd_app.run.open_model import ARTIFACTS
from kd_app.run.output import list_groups, write_predictions
from kd_app.run.recorded_pixels import describe_stats
from kd_app.run.refit import describe_outcome as describe_refitted
from kd_app.run.workspace import Workspace
from kd_app.run_files import SPLIT
from kd_app.training.record import describe_outcome


def start_results(
    workspace: Workspace, out: Path, rule: VerdictRule, *, before: Results | None = None
) -> ResultsBuilder:
    """A builder of a run's results.

    before: the results of a finished run whose models are measured again; the models
    keep the licenses in these results.
    """
    license = before.license if before else LicenseRecord(**workspace.spec.licenses.to_record())
    builder = ResultsBuilder(
        out,
        rule,
        config=workspace.spec.config,
        trainer=workspace.spec.trainer,
        license=license,
        stages=workspace.used,
    )
    if before is not None and before.data is not None:
        builder.teacher_labels = before.data.teacher_labels
    return builder


def measure_models(
    builder: ResultsBuilder,
    workspace: Workspace,
    models: Mapping[str, RunModel],
    splits: Mapping[SplitName, str],
    *,
    before: Results | None = None,
    sweep: Path | None = None,
    selected: Mapping[str, RunModel] | None = None,
) -> None:
    """Measure all models on `splits`, which maps each part of the results to a split of
    the data. Corrupted images are those of the last split.

    before: as in `start_results`. sweep: the folder of a sweep, whose trials share the
    measured speed. selected: the models that are measured on validation in place of
    `models`, which were trained on those images, too (`kd_app.run.refit`).
    """
    add_data(builder, workspace)
    for role, model in models.items():
        license = before.models[role].license if before else find_license(workspace, model)
        builder.models[role] = describe_model(workspace, model, license)
        builder.notes += [f"{role}: {each}" for each in describe_outcome(model.record)]
    builder.notes += describe_refitted(models)
    *_, last = splits.values()
    for part, split in splits.items():
        measured = selected if selected is not None and split == "validation" else models
        predictions = {
            role: workspace.load_predictions(model, split) for role, model in measured.items()
        }
        student = predictions["student"]
        groups = list_groups(workspace, student)
        builder.add_split_metrics(part, predictions, groups, name=split)
        write_predictions(builder.out, workspace, predictions)
        if split == last:
            builder.splits[part].robustness = measure_robustness(
                workspace, models, split, student.target
            )
        if "teacher" in models and builder.knowledge is None:
            builder.knowledge = measure_teacher_knowledge(
                workspace, predictions["teacher"], split, before=before
            )
    similar = builder.knowledge.similar if builder.knowledge else []
    show_examples(workspace, predictions, similar, builder.out)
    builder.speed = measure_speed(workspace, models, sweep)


def add_data(builder: ResultsBuilder, workspace: Workspace) -> None:
    """Add the data to the results, and write the split of each image."""
    data = Data(
        name=name_data(workspace),
        classes=list(workspace.classes),
        sizes=workspace.data.sizes,
        fingerprint=workspace.data.fingerprint,
        num_labeled=workspace.data.num_labeled,
        teacher_labels=builder.teacher_labels,
    )
    builder.add_data(data, workspace.data.notes)
    builder.image_stats = describe_stats(workspace.compute_image_stats())
    workspace.data.write_split(builder.out / SPLIT)


def name_data(workspace: Workspace) -> str:
    """The name of the data; for data in a folder followed by the last part of the
    folder's path.
    """
    module, node = workspace.spec.external.data, workspace.spec.config["data"]
    if module is not None:
        return type(module).__name__
    name = str(node.get("name") or node["_target_"].rpartition(".")[2])
    return f"{name} {Path(node['root']).name}" if node.get("root") else name


def describe_model(workspace: Workspace, model: RunModel, license: str) -> ModelRecord:
    """The part of the results about one model."""
    weights, module = model.loaded.weights, model.loaded.model
    # Operators and parameters of a model in another runtime can't be counted.
    is_opaque = isinstance(module, RuntimeModel)
    start, resolved = model.record.get("weights"), workspace.resolved.get(model.role)
    return ModelRecord(
        name=model.spec.name,
        params=None if is_opaque else count_params(module),
        macs=None if is_opaque else count_macs(module.cpu(), model.loaded.pixels),
        size_bytes=measure_size(model),
        license=license,
        source=f"trained here from {start['source']}" if start else weights.source,
        sha256=weights.sha256,
        weights=start or vars(weights),
        training=describe_training(model.record) if model.record else None,
        **({"decided": resolved} if resolved else {}),
    )


def describe_training(record: Mapping[str, Any]) -> TrainingRecord:
    """The part of the results about the training of a model."""
    best = record.get("best", {})
    return TrainingRecord(
        epochs=record.get("epochs"),
        max_epochs=record.get("max_epochs"),
        best_epoch=int(best["epoch"]) + 1 if "epoch" in best else None,
        exported=best.get("weights", "raw"),
        refit=RefitRecord(**record["refit"]) if "refit" in record else None,
    )


def find_license(workspace: Workspace, model: RunModel) -> str:
    """The license of a model's weights."""
    licenses, role = workspace.spec.licenses, model.role
    if role == "teacher" and model.folder is None:
        assert licenses.teacher is not None
        return licenses.teacher
    recipe = workspace.spec.controls.get(role, workspace.spec.recipe)
    return workspace.resolve_license(role, uses_teacher=recipe.needs_teacher)


def measure_size(model: RunModel) -> int:
    """Bytes of a model's file on disk; bytes of the weights in memory if no file holds
    the weights alone.
    """
    if model.program:
        return model.program.stat().st_size
    path = model.spec.origin.path
    for file in (path / WEIGHTS, path) if path else ():
        if file.suffix in (".safetensors", *ARTIFACTS) and file.is_file():
            return file.stat().st_size
    state = model.loaded.model.state_dict()
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def measure_speed(
    workspace: Workspace, models: Mapping[str, RunModel], sweep: Path | None = None
) -> Speed:
    """Throughput of the student and of each other architecture, measured in turns; in a
    `sweep` once for all trials.
    """
    workspace.console.print_transient("  measuring speed ...")
    student = workspace.resolve_spec("student")
    runners = {
        role: (model.load_runner(), model.loaded.pixels)
        for role, model in models.items()
        if role == "student" or workspace.resolve_spec(role) is not student
    }
    measure = partial(measure_throughput, runners, device=workspace.spec.trainer.device)
    speeds = workspace.measure_speed(models, sweep, measure) if sweep else measure()
    return Speed.model_validate(
        {
            **{role: {"images_per_second": speed} for role, speed in speeds.items()},
            "training_images_per_second": models["student"].record.get("images_per_second"),
        }
    )
