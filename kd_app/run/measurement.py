"""The models of a run, measured on the same images."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from kd_app.deployment.predictions import measure_throughput
from kd_app.metrics.measure import estimate_rate
from kd_app.metrics.record import Predictions
from kd_app.metrics.verdict import VerdictRule
from kd_app.models.composite import RuntimeModel
from kd_app.models.cost import count_macs, count_params
from kd_app.models.save import WEIGHTS
from kd_app.reporting.results import Data, Estimate, Licenses, Model, Results, Speed
from kd_app.run.dark_knowledge import measure_teacher_knowledge, show_examples
from kd_app.run.results_builder import ResultsBuilder, SplitName
from kd_app.run.robustness import measure_robustness
from kd_app.run.run_output import SPLIT, list_groups, write_predictions
from kd_app.run.workspace import RunModel, Workspace


def start_results(
    shop: Workspace, out: Path, rule: VerdictRule, *, before: Results | None = None
) -> ResultsBuilder:
    """A builder of a run's results. Models of a finished run that are measured again
    keep the licenses that its results, `before`, give them.
    """
    license = before.license if before else Licenses(**shop.spec.licenses.to_record())
    return ResultsBuilder(
        out,
        rule,
        config=shop.spec.config,
        trainer=shop.spec.trainer,
        license=license,
        stages=shop.used,
    )


def measure_models(
    builder: ResultsBuilder,
    shop: Workspace,
    members: Mapping[str, RunModel],
    splits: Mapping[SplitName, str],
    *,
    before: Results | None = None,
    sweep: Path | None = None,
) -> None:
    """Measure all models on `splits`: for each part of the results the split of the data
    that it is about. Corrupted images are those of the last split.

    Models of a finished run that are measured again keep the licenses that its results,
    `before`, give them. The trials of a `sweep` share the measured speed.
    """
    add_data(builder, shop)
    for role, member in members.items():
        license = before.models[role].license if before else find_license(shop, member)
        builder.models[role] = describe_model(shop, member, license)
    *_, last = splits.values()
    for place, split in splits.items():
        predictions = {
            role: shop.load_predictions(member, split) for role, member in members.items()
        }
        student = predictions["student"]
        builder.add_split_metrics(place, predictions, list_groups(shop, student))
        write_predictions(builder.out, shop, predictions)
        if split == last:
            builder.splits[place].robustness = measure_robustness(
                shop, members, split, student.target
            )
        if "teacher" in members and builder.knowledge is None:
            builder.knowledge = measure_teacher_knowledge(
                shop, predictions["teacher"], split, before=before
            )
    similar = builder.knowledge.similar if builder.knowledge else []
    show_examples(shop, predictions, similar, builder.out)
    builder.speed = measure_speed(shop, members, sweep)


def add_data(builder: ResultsBuilder, shop: Workspace) -> None:
    """Add the data to the results, and write which image is in which split."""
    data = Data(
        name=name_data(shop),
        classes=list(shop.classes),
        sizes=shop.data.sizes,
        fingerprint=shop.data.fingerprint,
    )
    builder.add_data(data, shop.data.notes)
    shop.data.write_split(builder.out / SPLIT)


def name_data(shop: Workspace) -> str:
    """The name of the data; for data that are read from a folder, with the last part of
    its path.
    """
    own, node = shop.spec.own.data, shop.spec.config["data"]
    if own is not None:
        return type(own).__name__
    name = str(node.get("name") or node["_target_"].rpartition(".")[2])
    return f"{name} {Path(node['root']).name}" if node.get("root") else name


def describe_model(shop: Workspace, member: RunModel, license: str) -> Model:
    """A model's part of the results."""
    weights, model = member.loaded.weights, member.loaded.model
    opaque = isinstance(model, RuntimeModel)  # in another runtime, where nothing can be counted
    start, resolved = member.record.get("weights"), shop.resolved.get(member.role)
    return Model(
        name=member.spec.name,
        params=None if opaque else count_params(model),
        macs=None if opaque else count_macs(model.cpu(), member.loaded.pixels),
        size_bytes=measure_size(member),
        license=license,
        source=f"trained here from {start['source']}" if start else weights.source,
        sha256=weights.sha256,
        weights=start or vars(weights),
        **({"decided": resolved} if resolved else {}),
    )


def find_license(shop: Workspace, member: RunModel) -> str:
    """The license of a model's weights."""
    licenses, role = shop.spec.licenses, member.role
    if role == "teacher" and member.folder is None:
        assert licenses.teacher is not None
        return licenses.teacher
    recipe = shop.spec.controls.get(role, shop.spec.recipe)
    return shop.resolve_license(role, taught=recipe.needs_teacher)


def measure_size(member: RunModel) -> int:
    """Bytes on disk of a model's file, or of its weights in memory where no file holds
    the weights alone.
    """
    if member.program:
        return member.program.stat().st_size
    path = member.spec.origin.path
    for file in (path / WEIGHTS, path) if path else ():
        if file.suffix in (".safetensors", ".onnx") and file.is_file():
            return file.stat().st_size
    state = member.loaded.model.state_dict()
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def measure_speed(
    shop: Workspace, members: Mapping[str, RunModel], sweep: Path | None = None
) -> Speed:
    """Throughput of the student and of each other net, measured in turns, or once for
    the trials of a `sweep`.
    """
    shop.console.print_transient("  measuring speed ...")
    student = shop.resolve_spec("student")
    models = {
        role: (member.load_runner(), member.loaded.pixels)
        for role, member in members.items()
        if role == "student" or shop.resolve_spec(role) is not student
    }
    measure = partial(measure_throughput, models, device=shop.spec.trainer.device)
    measured = shop.measure_speed(members, sweep, measure) if sweep else measure()
    return Speed.model_validate(
        {
            **{role: {"images_per_second": speed} for role, speed in measured.items()},
            "training_images_per_second": members["student"].record.get("images_per_second"),
        }
    )


def estimate_top1(predictions: Predictions, confidence: float) -> Estimate:
    """Top-1 accuracy with Wilson's interval."""
    top1, (low, high) = estimate_rate(predictions.hits, confidence)
    return Estimate(value=top1, low=low, high=high)


def format_top1(predictions: Predictions) -> str:
    """'top1 0.923 (0.901 to 0.940, 10 classes, 359 images)'."""
    top1, target = estimate_top1(predictions, 0.95), predictions.target
    return (
        f"top1 {top1.value:.3f} ({top1.low:.3f} to {top1.high:.3f}, {len(np.unique(target))} classes,"
        f" {len(target)} images)"
    )
