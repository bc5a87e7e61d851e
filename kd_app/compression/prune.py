"""Structured pruning: whole channels go, and a smaller plain module is left."""

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
from kd_app.models.cost import count_macs, count_params
from kd_app.models.create import LoadedModel
from kd_app.models.layer_widths import find_changes, read_layer_sizes
from kd_app.models.save import save_model
from kd_app.models.simkd_student import Reused
from kd_app.run.workspace import RunModel, Workspace
from kd_app.stages import write_atomically
from kd_app.training.fit import MODEL, build, build_trained_spec
from kd_app.training.job import JobTeacher, TrainingJob

Share = Annotated[float, Field(gt=0, lt=1)]
RECORD = "prune.json"
_PASSES = 100
"""Into so many passes the whole way to the smallest model is divided: how finely
channels of different layers are weighed against each other.
"""
_LABELS = {
    "cross_entropy": {
        "_target_": "kd_app.losses.cross_entropy.CrossEntropy",
        "smoothing": 0.0,
        "class_weights": None,
        "weight": 1.0,
    }
}
_TRIES = 5
"""So many nets are measured on the way to a latency."""
_MOST = 0.95
"""Share of a layer's channels that may go."""


class Prune(Step):
    """Remove the least important channels of all layers, those that depend on each
    other together, until a share of the cost is left.

    macs, params, latency: share of multiply-adds, of parameters, or of the time that
    one image takes (with one thread, as an XNNPACK program, both measured here in
    turns) that is kept; exactly one is set. By latency, shares of multiply-adds are
    tried, halving the interval. importance: 'magnitude', the L2 norm of a channel's
    weights (Li et al., ICLR 2017, arXiv 1608.08710); 'taylor', ``sum |w dL/dw|`` with
    the labels' cross-entropy on `images` of train, or 'distillation', the same with the
    run's own loss terms and teacher (Molchanov et al., CVPR 2019, arXiv 1906.10771).
    The groups of dependent channels are those of Fang et al., CVPR 2023, arXiv
    2301.12900. iterations: so often importance is measured anew on the way. round_to:
    numbers of channels that are left are multiples of it.
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
                f"prune needs one target, and macs={macs}, params={params}, latency={latency} are"
                " set. Expected exactly one share that is kept: prune.macs=0.5 (with the others"
                " null)."
            )
        self.of, self.target = chosen[0]
        self.importance = importance
        self.images = images
        self.iterations = iterations
        self.round_to = round_to
        _load_torch_pruning()

    def take(
        self, name: str, shop: Workspace, student: RunModel, teacher: RunModel | None
    ) -> RunModel:
        """The pruned student. Raises `RequestError` for a target out of reach, or a net
        whose channels can't be told apart.
        """
        if student.spec.factory is not None:
            raise RequestError(
                f"prune can't rebuild {student.spec.name}, which is no model of timm. Choose a"
                " student of timm's."
            )
        if isinstance(student.loaded.model, Reused):
            raise RequestError(
                "prune can't tell the channels of a student apart that answers by its teacher's"
                " classifier (simkd). Leave prune out, or choose a student that was taught"
                " otherwise."
            )
        listens = teacher if self.importance == "distillation" else None
        if self.importance == "distillation" and teacher is None:
            raise RequestError(
                "prune.importance=distillation needs a teacher, and the run has none. Use magnitude"
                " or taylor."
            )
        recipe = shop.spec.recipe
        loss = {"magnitude": {}, "taylor": _LABELS, "distillation": recipe.loss}[self.importance]
        config = {
            **vars(self),
            "loss": loss,
            "pixels": vars(student.loaded.pixels),
            "model": student.spec.name,
        }
        inputs = {"data": shop.data.fingerprint, "start": student.loaded.weights.sha256}
        inputs |= {"teacher": listens.loaded.weights.sha256} if listens else {}
        stage = shop.find_or_build(
            name, config, inputs, lambda folder: self._build(folder, shop, student, listens)
        )
        member = shop.load_model(build_trained_spec(student.spec, stage.path), seed=0)
        return replace(member, role=student.role, folder=stage.path)

    def describe(self, member: RunModel) -> dict[str, Any]:
        """The target, and the shares that are left."""
        assert member.folder is not None
        found: dict[str, Any] = json.loads((member.folder / RECORD).read_text(encoding="utf-8"))
        return found

    def _build(
        self, folder: Path, shop: Workspace, student: RunModel, teacher: RunModel | None
    ) -> None:
        shop.console.print_transient(
            f"  prune: removing channels until {self.target:g} of the {self.of} is left ..."
        )
        created = student.loaded
        model = deepcopy(created.model).cpu().to(memory_format=torch.contiguous_format)
        before = read_layer_sizes(model)
        measure = (
            None
            if self.importance == "magnitude"
            else lambda net: self._accumulate_gradients(shop, student, net, teacher)
        )
        told: dict[str, Any] = {}
        if self.of == "latency":
            whole = deepcopy(model)
            model, told = self.prune_by_latency(
                model,
                created.pixels,
                measure,
                lambda net: measure_latency_share(net, whole, created.pixels, folder),
            )
            kept = told["kept"]
        else:
            kept = self.prune(model, created.pixels, measure, target=self.target)
        widths = {name: dict(own) for name, own in created.widths.items()}
        for module, own in find_changes(before, read_layer_sizes(model)).items():
            widths.setdefault(module, {}).update(own)
        license = shop.resolve_license("student", uses_teacher=shop.spec.recipe.needs_teacher)
        save_model(
            model,
            folder / MODEL,
            pixels=created.pixels,
            classes=shop.classes,
            license=license,
            widths=widths,
        )
        write_atomically(
            folder / RECORD,
            json.dumps(
                {
                    "of": self.of,
                    "target": self.target,
                    "importance": self.importance,
                    "kept": kept,
                    **told,
                },
                indent=1,
            ),
        )

    def prune_by_latency(
        self,
        model: nn.Module,
        pixels: InputSpec,
        measure: Callable[[nn.Module], None] | None,
        share: Callable[[nn.Module], float],
    ) -> tuple[nn.Module, dict[str, Any]]:
        """The largest of some pruned copies of `model` whose `share` of its latency is
        at most the target; that share, and all that were tried.

        Raises `RequestError` where none of them is that fast.
        """
        low, high, macs = 0.0, 1.0, self.target
        tried: list[dict[str, float]] = []
        best: tuple[nn.Module, float] | None = None
        for _ in range(_TRIES):
            net = deepcopy(model)
            try:
                left = self.prune(net, pixels, measure, target=macs)
            except RequestError:
                low = macs
            else:
                found = share(net)
                tried.append({"macs": left, "latency": found})
                if found <= self.target:
                    best, low = (net, found), macs
                else:
                    high = macs
            macs = (low + high) / 2
        if best is None:
            fastest = min((each["latency"] for each in tried), default=1.0)
            raise RequestError(
                f"prune.latency={self.target:g} can't be reached with round_to={self.round_to}: the"
                f" fastest net that was tried takes {fastest:.3f} of the time. Choose a larger"
                " share, or a student that is smaller by design."
            )
        return best[0], {"kept": best[1], "tried": tried}

    def prune(
        self,
        model: nn.Module,
        pixels: InputSpec,
        measure: Callable[[nn.Module], None] | None,
        *,
        target: float,
    ) -> float:
        """Prune `model` in its place until at most the share `target` is left (of
        parameters, or else of multiply-adds); the share that is left.

        measure: gives the parameters gradients; None for the importance by magnitude.
        """
        cost = count_params if self.of == "params" else lambda net: count_macs(net, pixels)
        whole, left = cost(model), 1.0
        for number in range(1, self.iterations + 1):
            now = 1 - (1 - target) * number / self.iterations
            if measure is not None:
                measure(model)
            left = self._prune_toward(model, pixels, now, lambda: cost(model) / whole)
        model.zero_grad(set_to_none=True)
        if left > target:
            raise RequestError(
                f"prune.{self.of}={target:g} can't be reached: with round_to={self.round_to} and at"
                f" most {_MOST:.0%} of a layer's channels removed, {left:.3f} is left. Reachable:"
                f" {left:.3f} to 1. Choose a larger share or a smaller prune.round_to."
            )
        return left

    def _prune_toward(
        self, model: nn.Module, pixels: InputSpec, target: float, share: Callable[[], float]
    ) -> float:
        """One way down, channel group by channel group."""
        library = _load_torch_pruning()
        kinds = library.pruner.importance
        importance = (
            kinds.GroupMagnitudeImportance(p=2)
            if self.importance == "magnitude"
            else kinds.GroupTaylorImportance()
        )
        classifier = getattr(model, "get_classifier", lambda: None)()
        heads = [module for module in model.modules() if module is classifier]
        bare = [(parameter, parameter.dim() - 1) for parameter in _find_bare_parameters(model)]
        example = torch.zeros(2, pixels.channels, pixels.height, pixels.width)
        left = share()
        try:
            pruner = library.pruner.BasePruner(
                model.eval(), example, importance, global_pruning=True, pruning_ratio=1.0, max_pruning_ratio=_MOST, iterative_steps=_PASSES,
                round_to=self.round_to, ignored_layers=heads, unwrapped_parameters=bare,
            )  # fmt: skip
            for _ in range(_PASSES):
                for group in pruner.step(interactive=True):
                    if left <= target:
                        return left
                    if len(group[0].idxs):
                        group.prune()
                        left = share()
        except (
            RuntimeError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            TypeError,
            AssertionError,
        ) as error:
            raise RequestError(
                f"torch-pruning can't follow the channels of this {type(model).__name__}:"
                f" {take_first_line(error)[:200]}. Choose a student of another architecture, such as a"
                " ResNet, MobileNetV3, EfficientNet, ConvNeXt or RegNet."
            ) from None
        return left

    def _accumulate_gradients(
        self, shop: Workspace, student: RunModel, model: nn.Module, teacher: RunModel | None
    ) -> None:
        """Those of the loss, summed over `images` images of train, in eval mode."""
        recipe = shop.spec.recipe
        if teacher is None:
            recipe = replace(recipe, loss=_LABELS)
        pixels = student.loaded.pixels
        if teacher is not None:
            teacher.loaded.model.cpu()
        source = JobTeacher(teacher.spec, teacher.loaded) if teacher else None
        job = TrainingJob("prune", student.spec, pixels, recipe, source)
        module = build(
            job, LoadedModel(model, pixels, student.loaded.weights), shop.data, shop.spec.trainer
        )
        model.eval().zero_grad(set_to_none=True)
        for batch in shop.data.sample("train", pixels, self.images):
            module.compute_losses(module.prepare_batch(batch))[0].backward()
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        model.to(memory_format=torch.contiguous_format)


def _find_bare_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that lie in no layer of a known kind, such as ConvNeXt's layer scale."""
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
