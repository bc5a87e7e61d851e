"""Structured pruning: removes whole channels, which leaves a smaller plain module."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from kd_app.compression.latency import measure_latency_share
from kd_app.compression.step import Step
from kd_app.config import InputSpec, RequestError
from kd_app.config.errors import take_first_line
from kd_app.config.records import read_record
from kd_app.models.attention_heads import find_head_projections, fit_heads
from kd_app.models.cost import count_macs, count_params
from kd_app.models.layer_widths import find_changes, read_layer_sizes
from kd_app.models.save import save_model
from kd_app.models.simkd_student import SimKDStudent
from kd_app.models.spec import LoadedModel
from kd_app.run.model import RunModel
from kd_app.run.role_jobs import balance_classes
from kd_app.run.workspace import Workspace
from kd_app.stages import write_atomically
from kd_app.training.fit import MODEL, build, build_trained_spec
from kd_app.training.job import JobTeacher, TrainingJob

Share = Annotated[float, Field(gt=0, lt=1)]
RECORD = "prune.json"
_PASSES = 100
"""Steps from the full to the smallest model. More steps compare channels of different
layers more finely.
"""
_LABELS = {
    "cross_entropy": {
        "_target_": "kd_app.losses.cross_entropy.CrossEntropy",
        "smoothing": 0.0,
        "class_weights": None,
        "weight": 1.0,
    }
}
_TRACING_ERRORS = (
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    AssertionError,
)
"""What torch-pruning raises for models that it does not understand."""
_TRIES = 5
"""Models that are measured in the search for a latency."""
_MAX_REMOVED = 0.95
"""Largest share of a layer's channels that is removed."""


class Prune(Step):
    """Remove the least important groups of dependent channels, across all layers, until
    a share of the cost is left.

    macs, params, latency: the share to keep, of the multiply-adds, the parameters, or
    the time per image (XNNPACK program, one thread, both models timed here in turns);
    exactly one is set. For latency, a bisection tries shares of multiply-adds.

    importance: 'magnitude' is the L2 norm of a channel's weights (Li et al., ICLR 2017,
    arXiv 1608.08710). 'taylor' is ``sum |w dL/dw|`` with cross-entropy on `images`
    training images; 'distillation' is the same with the run's loss terms and teacher
    (Molchanov et al., CVPR 2019, arXiv 1906.10771). The groups of dependent channels
    are those of Fang et al., CVPR 2023, arXiv 2301.12900.

    iterations: how often the importance is recomputed on the way. round_to: the numbers
    of channels that are left are multiples of this.
    """

    def __init__(
        self,
        *,
        macs: Share | None,
        params: Share | None,
        latency: Share | None,
        importance: Literal["magnitude", "taylor", "distillation"],
        images: PositiveInt,
        iterations: PositiveInt,
        round_to: PositiveInt,
    ) -> None:
        targets: dict[Literal["macs", "params", "latency"], float | None] = {
            "macs": macs,
            "params": params,
            "latency": latency,
        }
        chosen = [(name, share) for name, share in targets.items() if share is not None]
        if len(chosen) != 1:
            raise RequestError(
                f"prune needs one target, but got macs={macs}, params={params}, latency={latency}."
                " Expected exactly one share to keep, such as prune.macs=0.5, and null for the"
                " others."
            )
        self.of, self.target = chosen[0]
        self.importance = importance
        self.images = images
        self.iterations = iterations
        self.round_to = round_to
        _load_torch_pruning()

    def take(
        self, name: str, workspace: Workspace, student: RunModel, teacher: RunModel | None
    ) -> RunModel:
        """Prune the student. Raises `RequestError` for a target that can't be reached
        and for a model whose channels can't be pruned.
        """
        self._check_student(student)
        if self.importance == "distillation" and teacher is None:
            raise RequestError(
                "prune.importance=distillation needs a teacher, and the run has none. Use magnitude"
                " or taylor."
            )
        used_teacher = teacher if self.importance == "distillation" else None
        recipe = workspace.spec.recipe
        loss = {"magnitude": {}, "taylor": _LABELS, "distillation": recipe.loss}[self.importance]
        config = {
            **vars(self),
            "loss": loss,
            "pixels": vars(student.loaded.pixels),
            "model": student.spec.name,
        }
        inputs = {"data": workspace.data.fingerprint, "start": student.loaded.weights.sha256}
        if used_teacher:
            inputs["teacher"] = used_teacher.loaded.weights.sha256
        stage = workspace.find_or_build(
            name,
            config,
            inputs,
            lambda folder: self._build(folder, workspace, student, used_teacher),
        )
        model = workspace.load_model(build_trained_spec(student.spec, stage.path), seed=0)
        return replace(model, role=student.role, folder=stage.path)

    def _check_student(self, student: RunModel) -> None:
        if student.spec.factory is not None:
            raise RequestError(
                f"prune can't rebuild {student.spec.name}, which is not a timm model. Choose a timm"
                " model as the student."
            )
        if isinstance(student.loaded.model, SimKDStudent):
            raise RequestError(
                "prune can't prune a student that uses the teacher's classifier (simkd). Leave"
                " prune out, or choose a student that was trained with another method."
            )

    def describe(self, model: RunModel) -> dict[str, Any]:
        """Load the target, and the share that is left."""
        assert model.folder is not None
        return read_record(
            model.folder / RECORD,
            dict[str, Any],
            expected="Set remake=[prune] to rebuild the stage.",
        )

    def _build(
        self, folder: Path, workspace: Workspace, student: RunModel, teacher: RunModel | None
    ) -> None:
        workspace.console.print_transient(
            f"  prune: removing channels until {self.target:g} of the {self.of} is left ..."
        )
        loaded = student.loaded
        original = deepcopy(loaded.model).cpu().to(memory_format=torch.contiguous_format)
        model, record = self._prune_copy(original, folder, workspace, student, teacher)
        widths = {name: dict(own) for name, own in loaded.widths.items()}
        changes = find_changes(read_layer_sizes(original), read_layer_sizes(model))
        for module, own in changes.items():
            widths.setdefault(module, {}).update(own)
        save_model(
            model,
            folder / MODEL,
            pixels=loaded.pixels,
            classes=workspace.classes,
            license=workspace.resolve_license(
                "student", uses_teacher=workspace.spec.recipe.needs_teacher
            ),
            widths=widths,
        )
        settings = {"of": self.of, "target": self.target, "importance": self.importance}
        write_atomically(folder / RECORD, json.dumps({**settings, **record}, indent=1))

    def _prune_copy(
        self,
        original: nn.Module,
        folder: Path,
        workspace: Workspace,
        student: RunModel,
        teacher: RunModel | None,
    ) -> tuple[nn.Module, dict[str, Any]]:
        """A pruned copy of `original`, and the share that is left for the record."""

        def compute_gradients(model: nn.Module) -> None:
            self._accumulate_gradients(workspace, student, model, teacher)

        measure = None if self.importance == "magnitude" else compute_gradients
        input_spec = student.loaded.pixels
        model = deepcopy(original)
        if self.of != "latency":
            return model, {"kept": self.prune(model, input_spec, measure, target=self.target)}

        def measure_share(pruned: nn.Module) -> float:
            return measure_latency_share(pruned, original, input_spec, folder)

        return self.prune_by_latency(model, input_spec, measure, measure_share)

    def prune_by_latency(
        self,
        model: nn.Module,
        input_spec: InputSpec,
        measure: Callable[[nn.Module], None] | None,
        measure_share: Callable[[nn.Module], float],
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Search for the largest pruned copy of `model` with at most the target share
        of the latency. Returns the copy and a record of its share and of all trials.

        measure_share: the latency of a pruned copy divided by that of `model`. Raises
        `RequestError` if no copy is fast enough.
        """
        low, high, macs = 0.0, 1.0, self.target
        tried: list[dict[str, float]] = []
        best: tuple[nn.Module, float] | None = None
        for _ in range(_TRIES):
            pruned = deepcopy(model)
            try:
                left = self.prune(pruned, input_spec, measure, target=macs)
            except RequestError:
                low = macs
            else:
                latency = measure_share(pruned)
                tried.append({"macs": left, "latency": latency})
                if latency <= self.target:
                    best, low = (pruned, latency), macs
                else:
                    high = macs
            macs = (low + high) / 2
        if best is None:
            fastest = min((each["latency"] for each in tried), default=1.0)
            raise RequestError(
                f"prune.latency={self.target:g} can't be reached with round_to={self.round_to}: the"
                f" fastest model that was tried takes {fastest:.3f} of the time. Choose a larger"
                " share, or a smaller architecture as the student."
            )
        return best[0], {"kept": best[1], "tried": tried}

    def prune(
        self,
        model: nn.Module,
        input_spec: InputSpec,
        measure: Callable[[nn.Module], None] | None,
        *,
        target: float,
    ) -> float:
        """Prune `model` in place until at most the share `target` of the parameters or
        multiply-adds is left; returns the share that is left.

        measure: computes gradients for the importance; None for 'magnitude'.
        """
        by_params = self.of == "params"
        cost = count_params if by_params else lambda each: count_macs(each, input_spec)
        original, left = cost(model), 1.0
        for number in range(1, self.iterations + 1):
            interim = 1 - (1 - target) * number / self.iterations
            if measure is not None:
                measure(model)
            left = self._prune_toward(model, input_spec, interim, lambda: cost(model) / original)
        model.zero_grad(set_to_none=True)
        if left > target:
            raise RequestError(
                f"prune.{self.of}={target:g} can't be reached: with round_to={self.round_to} and at"
                f" most {_MAX_REMOVED:.0%} of a layer's channels removed, {left:.3f} is left."
                f" Reachable: {left:.3f} to 1. Choose a larger share or a smaller prune.round_to."
            )
        return left

    def _prune_toward(
        self,
        model: nn.Module,
        input_spec: InputSpec,
        target: float,
        measure_share: Callable[[], float],
    ) -> float:
        """Remove one channel group after another until the target is reached."""
        library = _load_torch_pruning()
        kinds = library.pruner.importance
        importance = (
            kinds.GroupMagnitudeImportance(p=2)
            if self.importance == "magnitude"
            else kinds.GroupTaylorImportance()
        )
        classifiers = getattr(model, "get_classifier", lambda: None)()
        # a DeiT with distillation token has two
        if not isinstance(classifiers, tuple):
            classifiers = (classifiers,)
        heads = [module for module in model.modules() if module in classifiers]
        bare = [(parameter, parameter.dim() - 1) for parameter in _find_bare_parameters(model)]
        example = torch.zeros(2, input_spec.channels, input_spec.height, input_spec.width)
        left = measure_share()
        try:
            pruner = library.pruner.BasePruner(
                model.eval(),
                example,
                importance,
                global_pruning=True,
                pruning_ratio=1.0,
                max_pruning_ratio=_MAX_REMOVED,
                iterative_steps=_PASSES,
                round_to=self.round_to,
                ignored_layers=heads,
                unwrapped_parameters=bare,
                num_heads=find_head_projections(model),
            )
            for _ in range(_PASSES):
                for group in pruner.step(interactive=True):
                    if left <= target:
                        return left
                    if len(group[0].idxs):
                        group.prune()
                        fit_heads(model)
                        left = measure_share()
        except _TRACING_ERRORS as error:
            raise RequestError(
                f"torch-pruning can't follow the channels of this {type(model).__name__}:"
                f" {take_first_line(error)[:200]}. Choose a student of another architecture, such"
                " as a ResNet, MobileNetV3, EfficientNet, ConvNeXt, RegNet, ViT or DeiT, or leave"
                " prune out and distill into a smaller model of this family."
            ) from None
        return left

    def _accumulate_gradients(
        self, workspace: Workspace, student: RunModel, model: nn.Module, teacher: RunModel | None
    ) -> None:
        """Sum the gradients of the loss over `images` training images, in eval mode."""
        recipe = balance_classes(replace(workspace.spec.recipe, freeze=[]), workspace.data)
        if teacher is None:
            recipe = replace(recipe, loss=_LABELS)
        else:
            teacher.loaded.model.cpu()
        source = JobTeacher(teacher.spec, teacher.loaded) if teacher else None
        input_spec = student.loaded.pixels
        job = TrainingJob("prune", student.spec, input_spec, recipe, source)
        loaded = LoadedModel(model, input_spec, student.loaded.weights)
        # in channels_last, oneDNN writes past the gradients of narrow layers
        settings = workspace.spec.trainer.adapt_to_graph()
        module = build(job, loaded, workspace.data, settings)
        model.eval().zero_grad(set_to_none=True)
        for batch in workspace.data.sample("train", input_spec, self.images):
            module.compute_losses(module.prepare_batch(batch))[0].backward()
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def _find_bare_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters outside of the common layers, such as ConvNeXt's layer scale."""
    layers = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    return [
        each
        for module in model.modules()
        if not isinstance(module, layers)
        for each in module.parameters(recurse=False)
    ]


def _load_torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError:
        raise RequestError(
            "The step prune needs torch-pruning, which is not installed. Install it: pip install"
            " kd_app[deploy]"
        ) from None
    return torch_pruning
