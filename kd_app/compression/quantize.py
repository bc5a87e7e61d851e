"""Quantizes the student to int8, after training or with quantization-aware training."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, StrictBool
from torch import Tensor, fx, nn

from kd_app.callbacks.curve_log import FILE as CURVES
from kd_app.compression.graph import (
    QuantizationProbe,
    TrainableGraph,
    calibrate,
    convert,
    copy_tensors,
    load_pt2e,
    prepare,
    save,
    trace,
)
from kd_app.compression.step import Step
from kd_app.config import InputSpec, RequestError, build_unknown_error
from kd_app.config.records import read_record
from kd_app.data.normalize import normalize
from kd_app.deployment.formats.base import UInt8Model
from kd_app.deployment.xnnpack import lower
from kd_app.models.save import CONVERTED, INT8, INT8_OF_BYTES, save_model
from kd_app.models.spec import ModelSpec
from kd_app.run.model import RunModel
from kd_app.run.role_jobs import build_student_job
from kd_app.run.train import train
from kd_app.run.workspace import Workspace
from kd_app.schedules import LearningRate
from kd_app.stages import write_atomically
from kd_app.training.fit import MODEL, build_trained_spec
from kd_app.training.job import Recipe

RECORD = "quantize.json"
_LR_FACTOR = 0.1
"""Default learning rate, as a share of the student's."""
_MAX_BATCH = 32
"""Largest batch of the program that kd-export ships."""


class Quantize(Step):
    """Quantize the student to int8 with torchao's PT2E for XNNPACK.

    images: training images, for the ranges and the sensitivity of the units. epochs: 0
    quantizes after training. More epochs train the rounded graph with the run's loss
    terms and the float teacher (quantization-aware distillation: Jacob et al., CVPR
    2018, arXiv 1712.05877; Mishra & Marr, ICLR 2018, arXiv 1711.05852), with folded
    batch norms, without callbacks, in one process in float32. lr: null for a tenth of
    the student's. terms: names of the run's loss terms to train with; null for all. A
    graph returns only logits, so terms that read anything else can't be used.

    keep_float: units that stay in float (layers, additions or poolings by their
    module's name, or all units of a module). 'auto' keeps the most sensitive units in
    float, one by one, until the mean ``KL(float || int8)`` over `images` is at most
    `divergence` nats. per_channel: one scale per output channel.

    The result is a student's folder with float weights (trained if there were epochs,
    batch norms folded into convolutions) and three more files. ``quantized.pt2`` is the
    converted graph as an exported program, for any number of normalized images.
    ``quantized.pte`` is that graph lowered to XNNPACK, for one image at a time; the
    student's accuracy, size and speed are measured with that program.
    ``quantized_uint8.pte`` is the program that kd-export ships.
    """

    is_final = True

    def __init__(
        self,
        *,
        images: PositiveInt,
        epochs: NonNegativeInt,
        lr: LearningRate | None,
        terms: Annotated[list[str], Field(min_length=1)] | None,
        keep_float: Literal["auto"] | list[str],
        divergence: NonNegativeFloat,
        per_channel: StrictBool,
    ) -> None:
        self.images = images
        self.epochs = epochs
        self.lr = lr
        self.terms = terms
        self.keep_float = keep_float
        self.divergence = divergence
        self.per_channel = per_channel
        load_pt2e()

    def take(
        self, name: str, workspace: Workspace, student: RunModel, teacher: RunModel | None
    ) -> RunModel:
        """Quantize the student. Raises `RequestError` for loss terms that can't train a
        graph, and for units that the graph does not have.
        """
        recipe = self._build_recipe(workspace, student)
        used_teacher = teacher if recipe is not None and recipe.needs_teacher else None
        loaded, config = student.loaded, dict(vars(self))
        if recipe:
            trainer = workspace.spec.trainer.adapt_to_graph()
            config |= {"recipe": recipe.to_json(), "trainer": trainer.describe_identity()}
        config |= {"pixels": vars(loaded.pixels), "model": student.spec.name}
        inputs = {"data": workspace.data.fingerprint, "start": loaded.weights.sha256}
        if used_teacher:
            inputs["teacher"] = used_teacher.loaded.weights.sha256

        def build(folder: Path) -> None:
            self._build(folder, name, workspace, student, teacher=used_teacher, recipe=recipe)

        stage = workspace.find_or_build(name, config, inputs, build)
        model = workspace.load_model(build_trained_spec(student.spec, stage.path), seed=0)
        program = stage.path / MODEL / INT8
        return replace(model, role=student.role, folder=stage.path, program=program)

    def describe(self, model: RunModel) -> dict[str, Any]:
        """Load the settings, the units in float, and the sensitivity of each unit."""
        assert model.folder is not None
        return read_record(
            model.folder / RECORD,
            dict[str, Any],
            expected="Set remake=[quantize] to rebuild the stage.",
        )

    def _build_recipe(self, workspace: Workspace, student: RunModel) -> Recipe | None:
        """How the graph is trained; None for quantization after training."""
        if not self.epochs:
            return None
        loss = workspace.spec.recipe.loss
        for name in self.terms or ():
            if name not in loss:
                raise build_unknown_error("loss term of the run", name, loss)
        if self.terms is not None:
            loss = {name: node for name, node in loss.items() if name in self.terms}
        recipe = replace(workspace.spec.recipe, loss=loss)
        self._check_terms(recipe)
        lr = self.lr or _LR_FACTOR * recipe.make_optimizer().resolve_lr(
            student.loaded.model, from_random=not workspace.spec.student.origin.has_weights
        )
        return replace(
            recipe, max_epochs=self.epochs, callbacks={}, optimizer={**recipe.optimizer, "lr": lr}
        )

    def _check_terms(self, recipe: Recipe) -> None:
        """Raises `RequestError` for loss terms that read more than logits."""
        reads = recipe.loss_reads
        unusable = [name for name in reads if not reads[name] <= {"logits"}]
        if not unusable:
            return
        usable = [name for name in recipe.loss if name not in unusable]
        fix = (
            f"To train with the other terms, set quantize.terms=[{','.join(usable)}]."
            if usable
            else "To quantize without training, set quantize.epochs=0."
        )
        raise RequestError(
            f"quantize.epochs={self.epochs} trains a graph that returns only logits, but the run's"
            f" loss term {unusable[0]} reads more"
            f" ({', '.join(sorted(reads[unusable[0]] - {'logits'}))}). {fix}"
        )

    def _build(
        self,
        folder: Path,
        name: str,
        workspace: Workspace,
        student: RunModel,
        *,
        teacher: RunModel | None,
        recipe: Recipe | None,
    ) -> None:
        loaded, console = student.loaded, workspace.console
        input_spec = loaded.pixels
        model = deepcopy(loaded.model).cpu().float().to(memory_format=torch.contiguous_format)
        graph = trace(model, input_spec)
        batches = [
            _normalize(batch.image, input_spec)
            for batch in workspace.data.sample("train", input_spec, self.images)
        ]
        console.print_transient(
            f"  quantize: measuring the sensitivity of each layer on {self.images} images ..."
        )
        probe = QuantizationProbe(graph, batches, per_channel=self.per_channel)
        float_units, record = self.select_float_units(probe)
        prepared = prepare(
            graph,
            float_units=float_units,
            per_channel=self.per_channel,
            trainable=recipe is not None,
        )
        calibrate(prepared, batches)
        if recipe is not None:
            factory = GraphFactory(prepared, input_spec, student.spec.name)
            trained = _train_graph(name, workspace, factory, recipe, teacher)
            assert trained.folder is not None
            prepared = trained.loaded.model.graph  # type: ignore[assignment]
            copy_tensors(prepared.state_dict(), model)
            shutil.copy(trained.folder / CURVES, folder / CURVES)
        converted = convert(prepared)
        license = workspace.resolve_license(
            "student", uses_teacher=workspace.spec.recipe.needs_teacher
        )
        save_model(
            model,
            folder / MODEL,
            pixels=input_spec,
            classes=workspace.classes,
            license=license,
            widths=loaded.widths,
        )
        save(converted, input_spec, folder / MODEL / CONVERTED)
        console.print_transient("  quantize: lowering to XNNPACK ...")
        lower(converted, input_spec, folder / MODEL / INT8)
        uint8_model = UInt8Model(converted, input_spec)
        lower(uint8_model, input_spec, folder / MODEL / INT8_OF_BYTES, max_batch=_MAX_BATCH)
        settings = {"epochs": self.epochs, "per_channel": self.per_channel}
        write_atomically(folder / RECORD, json.dumps({**settings, **record}, indent=1))

    def select_float_units(self, probe: QuantizationProbe) -> tuple[list[str], dict[str, Any]]:
        """The units that stay in float, and a record with the sensitivity of each unit
        and the divergence that is left (nats).
        """
        sensitivity = {unit: probe.measure_only(unit) for unit in probe.units}
        float_units: list[str] = []
        if self.keep_float == "auto":
            order = sorted(sensitivity, key=lambda unit: -sensitivity[unit])
            divergence = probe.measure_without(float_units)
            while divergence > self.divergence and len(float_units) < len(order):
                float_units.append(order[len(float_units)])
                divergence = probe.measure_without(float_units)
        else:
            for name in self.keep_float:
                if not any(_is_within(unit, name) for unit in sensitivity):
                    raise build_unknown_error("unit to keep in float", name, sensitivity)
            float_units = [
                unit
                for unit in sensitivity
                if any(_is_within(unit, name) for name in self.keep_float)
            ]
            divergence = probe.measure_without(float_units)
        return float_units, {
            "keep_float": float_units,
            "units": len(sensitivity),
            "sensitivity": sensitivity,
            "divergence": divergence,
        }


class GraphFactory:
    """Returns copies of a prepared graph. pixels: input of the graph."""

    def __init__(self, prepared: fx.GraphModule, pixels: InputSpec, name: str) -> None:
        self.pixels = pixels
        self._prepared = prepared
        # The factory's qualified name identifies the model in records.
        self.__module__, self.__qualname__ = "int8", name

    def __call__(self) -> nn.Module:
        return TrainableGraph(deepcopy(self._prepared))


def _train_graph(
    name: str,
    workspace: Workspace,
    factory: GraphFactory,
    recipe: Recipe,
    teacher: RunModel | None,
) -> RunModel:
    """Train a graph like any other model: resumable and logged to the trackers."""
    spec = ModelSpec(
        role="student",
        name=None,
        pretrained="auto",
        checkpoint=None,
        kwargs={},
        image_size=None,
        factory=factory,
    )
    job = build_student_job(workspace, teacher, name=name, model=spec, recipe=recipe)
    trainer = workspace.spec.trainer.adapt_to_graph()
    return train(workspace, job, listener=workspace.tracker, trainer=trainer)


def _is_within(unit: str, name: str) -> bool:
    return unit == name or unit.startswith(f"{name}.")


def _normalize(image: Tensor, input_spec: InputSpec) -> Tensor:
    if image.dtype == torch.uint8:
        return normalize(image, input_spec, torch.contiguous_format)
    return image.float()
