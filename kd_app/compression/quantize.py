"""Int8: after training, or learned by distilling on."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, StrictBool
from torch import Tensor, fx, nn

from kd_app.compression.graph import (
    Learning,
    QuantizationProbe,
    calibrate,
    convert,
    load_pt2e,
    prepare,
    put,
    save,
    trace,
)
from kd_app.compression.step import Step
from kd_app.config import InputSpec, RequestError, build_unknown_error
from kd_app.data.normalize import normalize
from kd_app.deployment.formats.base import UInt8Model
from kd_app.deployment.xnnpack import lower
from kd_app.models.save import CONVERTED, INT8, INT8_OF_BYTES, save_model
from kd_app.models.spec import ModelSpec
from kd_app.run.role_jobs import build_student_job
from kd_app.run.train import train
from kd_app.run.workspace import RunModel, Workspace
from kd_app.stages import write_atomically
from kd_app.training.curve_log import FILE as CURVES
from kd_app.training.fit import MODEL, build_trained_spec
from kd_app.training.job import Recipe

RECORD = "quantize.json"
_OF_THE_RATE = 0.1
_BATCH = 32
"""Images that the program takes at once which kd-export ships."""


class Quantize(Step):
    """Compute the student in int8, by PT2E of torchao for XNNPACK.

    images: of train, from which the ranges are taken and the units' sensitivity.
    epochs: 0 quantizes after training; more train the rounded graph on the run's own
    loss terms from the float teacher, as quantization-aware distillation (Jacob et al.,
    CVPR 2018, arXiv 1712.05877; Mishra & Marr, ICLR 2018, arXiv 1711.05852): batch
    norms are folded first, callbacks stay out, one process in float32. lr: null is a
    tenth of the student's. terms: the run's terms to train on, by name; null all. A
    graph gives logits alone, so only terms that read nothing else can teach it.
    keep_float: units (layers, additions, poolings, by their module's name, or all in a
    module) that stay in float; 'auto' takes the most sensitive out, one by one, until
    the mean ``KL(float || int8)`` over `images` is at most `divergence` nats.
    per_channel: a scale for each output channel.

    What comes out is a student's folder as ever, with float weights (trained on, where
    there were epochs; batch norms folded into the convolutions) and three files more:
    ``quantized.pt2``, the converted graph with its scales as an exported program, for
    any number of normalized images, ``quantized.pte``, the same lowered to XNNPACK for
    one image at a time, and ``quantized_uint8.pte``, which kd-export ships. What is
    said of the student's accuracy, size and speed is that of the second, run in its own
    integer arithmetic.
    """

    ends = True

    def __init__(
        self,
        *,
        images: PositiveInt,
        epochs: NonNegativeInt,
        lr: PositiveFloat | None,
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
        self, name: str, shop: Workspace, student: RunModel, teacher: RunModel | None
    ) -> RunModel:
        """The quantized student. Raises `RequestError` for terms that a graph can't be
        taught by, and for units that it has not.
        """
        created, recipe = student.loaded, self._build_recipe(shop)
        listens = teacher if recipe is not None and recipe.needs_teacher else None
        how = (
            {
                "recipe": recipe.to_json(),
                "trainer": shop.spec.trainer.adapt_to_graph().describe_identity(),
            }
            if recipe
            else {}
        )
        config = {
            **vars(self),
            **how,
            "pixels": vars(created.pixels),
            "model": student.spec.name,
        }
        inputs = {"data": shop.data.fingerprint, "start": created.weights.sha256}
        inputs |= {"teacher": listens.loaded.weights.sha256} if listens else {}
        stage = shop.find_or_build(
            name,
            config,
            inputs,
            lambda folder: self._build(folder, name, shop, student, teacher=listens, recipe=recipe),
        )
        member = shop.load_model(build_trained_spec(student.spec, stage.path), seed=0)
        return replace(
            member, role=student.role, folder=stage.path, program=stage.path / MODEL / INT8
        )

    def describe(self, member: RunModel) -> dict[str, Any]:
        """How it was quantized, what stayed in float, and how sensitive each unit is."""
        assert member.folder is not None
        found: dict[str, Any] = json.loads((member.folder / RECORD).read_text(encoding="utf-8"))
        return found

    def _build_recipe(self, shop: Workspace) -> Recipe | None:
        """How the graph is trained; None where it isn't."""
        if not self.epochs:
            return None
        loss = shop.spec.recipe.loss
        for name in self.terms or ():
            if name not in loss:
                raise build_unknown_error("loss term of the run", name, loss)
        recipe = replace(
            shop.spec.recipe,
            loss={
                name: node
                for name, node in loss.items()
                if self.terms is None or name in self.terms
            },
        )
        reads = recipe.loss_reads
        deaf = [name for name in reads if not reads[name] <= {"logits"}]
        if deaf:
            others = [name for name in recipe.loss if name not in deaf]
            fix = (
                f"quantize.terms=[{','.join(others)}] trains on the others"
                if others
                else "quantize.epochs=0 quantizes without training"
            )
            raise RequestError(
                f"quantize.epochs={self.epochs} trains a graph that gives logits alone, and the"
                f" run's loss term {deaf[0]} reads more"
                f" ({', '.join(sorted(reads[deaf[0]] - {'logits'}))}). {fix}."
            )
        lr = self.lr or _OF_THE_RATE * recipe.make_optimizer().resolve_lr(
            from_random=not shop.spec.student.origin.has_weights
        )
        return replace(
            recipe, max_epochs=self.epochs, callbacks={}, optimizer={**recipe.optimizer, "lr": lr}
        )

    def _build(
        self,
        folder: Path,
        name: str,
        shop: Workspace,
        student: RunModel,
        *,
        teacher: RunModel | None,
        recipe: Recipe | None,
    ) -> None:
        created = student.loaded
        pixels = created.pixels
        model = deepcopy(created.model).cpu().float().to(memory_format=torch.contiguous_format)
        graph = trace(model, pixels)
        batches = [
            _normalize(batch.image, pixels)
            for batch in shop.data.sample("train", pixels, self.images)
        ]
        shop.console.print_transient(
            f"  quantize: measuring on {self.images} images which layers int8 spoils ..."
        )
        keep, found = self.keep(QuantizationProbe(graph, batches, per_channel=self.per_channel))
        prepared = prepare(
            graph, keep=keep, per_channel=self.per_channel, learns=recipe is not None
        )
        calibrate(prepared, batches)
        if recipe is not None:
            learned = _train_graph(
                name, shop, Start(prepared, pixels, student.spec.name), recipe, teacher
            )
            assert learned.folder is not None
            prepared = learned.loaded.model.graph  # type: ignore[assignment]
            put(model, prepared.state_dict())
            shutil.copy(learned.folder / CURVES, folder / CURVES)
        converted = convert(prepared)
        license = shop.resolve_license("student", uses_teacher=shop.spec.recipe.needs_teacher)
        save_model(
            model,
            folder / MODEL,
            pixels=pixels,
            classes=shop.classes,
            license=license,
            widths=created.widths,
        )
        save(converted, pixels, folder / MODEL / CONVERTED)
        shop.console.print_transient("  quantize: lowering to XNNPACK ...")
        lower(converted, pixels, folder / MODEL / INT8)
        lower(
            UInt8Model(converted, pixels), pixels, folder / MODEL / INT8_OF_BYTES, max_batch=_BATCH
        )
        write_atomically(
            folder / RECORD,
            json.dumps({"epochs": self.epochs, "per_channel": self.per_channel, **found}, indent=1),
        )

    def keep(self, probe: QuantizationProbe) -> tuple[list[str], dict[str, Any]]:
        """The units that stay in float, and what is told of that: sensitivity (nats) of
        each, and the divergence that is left after training.
        """
        sensitivity = {each: probe.measure_only(each) for each in probe.units}
        if self.keep_float == "auto":
            keep: list[str] = []
            order = sorted(sensitivity, key=lambda each: -sensitivity[each])
            while (left := probe.measure_without(keep)) > self.divergence and len(keep) < len(
                order
            ):
                keep.append(order[len(keep)])
        else:
            for name in self.keep_float:
                if not any(_is_within(each, name) for each in sensitivity):
                    raise build_unknown_error("unit to keep in float", name, sensitivity)
            keep = [
                each
                for each in sensitivity
                if any(_is_within(each, name) for name in self.keep_float)
            ]
            left = probe.measure_without(keep)
        return keep, {
            "keep_float": keep,
            "units": len(sensitivity),
            "sensitivity": sensitivity,
            "divergence": left,
        }


class Start:
    """A factory of a prepared graph to train: copies of it, for images of `pixels`."""

    def __init__(self, prepared: fx.GraphModule, pixels: InputSpec, name: str) -> None:
        self.pixels = pixels
        self._prepared = prepared
        self.__module__, self.__qualname__ = "int8", name

    def __call__(self) -> nn.Module:
        """One to train."""
        return Learning(deepcopy(self._prepared))


def _train_graph(
    name: str, shop: Workspace, start: Start, recipe: Recipe, teacher: RunModel | None
) -> RunModel:
    """A training like any other: gone on with after a kill, followed by the trackers."""
    request = ModelSpec(
        role="student",
        name=None,
        pretrained="auto",
        checkpoint=None,
        kwargs={},
        image_size=None,
        factory=start,
    )
    job = build_student_job(shop, teacher, name=name, model=request, recipe=recipe)
    return train(shop, job, listener=shop.tracker, trainer=shop.spec.trainer.adapt_to_graph())


def _is_within(unit: str, name: str) -> bool:
    return unit == name or unit.startswith(f"{name}.")


def _normalize(image: Tensor, pixels: InputSpec) -> Tensor:
    return (
        normalize(image, pixels, torch.contiguous_format)
        if image.dtype == torch.uint8
        else image.float()
    )
