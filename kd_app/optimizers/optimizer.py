"""The optimizer of a training: any optimizer of timm."""

from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import timm.optim
import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from kd_app.config import RequestError, Typed, build_unknown_error
from kd_app.models.attention_layers import has_attention
from kd_app.schedules import LearningRate, Share, WeightDecay

_FUSED = {"adam", "adamw", "sgd", "momentum"}
"""Optimizers with a fused kernel."""


class Optimizer(Typed):
    """One of timm's optimizers (`name`, see timm.optim.list_optimizers).

    lr 'auto' is `scratch_lr` for a model from random weights and `finetune_lr` for a
    pretrained model, times `attention_lr_factor` for a model with attention layers. As
    in timm, weight decay excludes biases, norms and the parameters in the model's
    ``no_weight_decay()`` (position embeddings, class tokens).
    layer_decay: the factor of the learning rate from each layer group to the one below
    (timm's group_matcher; the head has the full rate); None: one rate. `kwargs` are
    passed to the optimizer unchanged.
    """

    def __init__(
        self,
        *,
        name: str,
        lr: LearningRate | Literal["auto"],
        scratch_lr: LearningRate,
        finetune_lr: LearningRate,
        weight_decay: WeightDecay,
        momentum: Share,
        kwargs: dict[str, Any],
        layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None,
        attention_lr_factor: PositiveFloat = 1.0,
    ) -> None:
        known = [str(each) for each in timm.optim.list_optimizers()]
        if name.lower() not in known:
            raise build_unknown_error("optimizer", name, known)
        if "layer_decay" in kwargs:
            raise RequestError(
                "optimizer.kwargs.layer_decay is not supported: it is no argument of the optimizer."
                f" Set optimizer.layer_decay={kwargs['layer_decay']}."
            )
        self.name = name.lower()
        self.lr = lr
        self.scratch_lr = scratch_lr
        self.finetune_lr = finetune_lr
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.kwargs = kwargs
        self.layer_decay = layer_decay
        self.attention_lr_factor = attention_lr_factor
        # raises early for kwargs that the optimizer does not accept
        with torch.random.fork_rng(devices=[]):
            self._make(nn.Linear(1, 1), lr=1.0, fused=True)

    def resolve_lr(self, student: nn.Module, *, from_random: bool) -> float:
        """The learning rate at the maximum of the schedule."""
        if self.lr != "auto":
            return self.lr
        rate = self.scratch_lr if from_random else self.finetune_lr
        names = (name for name, _ in student.named_parameters())
        return rate * self.attention_lr_factor if has_attention(names) else rate

    def check_place(self, world_size: int, precision: str) -> None:
        """Raise `RequestError` if the optimizer does not support this number of
        processes or this precision. timm's optimizers support all.
        """

    def make(self, model: nn.Module, *, from_random: bool, fused: bool) -> torch.optim.Optimizer:
        """Build the optimizer over the trainable parameters of `model`; each parameter
        group has the maximum of the schedule as 'initial_lr'.

        fused: use the fused kernel, if the optimizer has one.
        """
        student = model["student"] if isinstance(model, TrainedModules) else model
        rate = self.resolve_lr(student, from_random=from_random)
        decay = self.layer_decay
        groups = model if decay is None else self._group_by_layer(model, decay)
        optimizer = self._make(groups, lr=rate, fused=fused)
        for group in optimizer.param_groups:
            group["initial_lr"] = rate * group.get("lr_scale", 1.0)
        return optimizer

    def _group_by_layer(self, model: nn.Module, decay: float) -> list[dict[str, Any]]:
        """Parameter groups of the student with timm's scales of the learning rate, and
        of the other trained modules with the full rate.
        """
        student, others = model, None
        if isinstance(model, TrainedModules):
            student, others = model["student"], model["terms"]
        groups = timm.optim.param_groups_layer_decay(
            student,
            self.weight_decay,
            no_weight_decay_list=getattr(student, "no_weight_decay", set)(),
            layer_decay=decay,
        )
        has_frozen = not all(parameter.requires_grad for parameter in student.parameters())
        is_flat = all(group["lr_scale"] == 1 for group in groups)
        if decay != 1 and is_flat and not has_frozen:
            raise RequestError(
                f"optimizer.layer_decay={decay} needs a student with several layer"
                f" groups, but this one ({type(student).__name__}) has one. Use a model of timm, or"
                " optimizer.layer_decay=null."
            )
        if others is not None:
            rest = TrainedModules({"terms": others})
            groups += timm.optim.param_groups_weight_decay(
                rest, self.weight_decay, no_weight_decay_list=tuple(rest.no_weight_decay())
            )
        return [group for group in groups if group["params"]]

    def _make(
        self, model: nn.Module | list[dict[str, Any]], *, lr: float, fused: bool
    ) -> torch.optim.Optimizer:
        kwargs = self.kwargs
        if self.name in _FUSED and "foreach" not in kwargs:
            kwargs = {"fused": fused, **kwargs}
        try:
            optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
                model,
                opt=self.name,
                lr=lr,
                weight_decay=self.weight_decay,
                momentum=self.momentum,
                **kwargs,
            )
        except (TypeError, ValueError, AssertionError, RuntimeError, ImportError) as error:
            raise RequestError(
                f"The optimizer {self.name} does not accept kwargs={self.kwargs!r}: {error}. See"
                " timm.optim for the arguments of this optimizer."
            ) from None
        return optimizer


class TrainedModules(nn.ModuleDict):
    """Modules that share one optimizer and the exclusions from weight decay."""

    def no_weight_decay(self) -> set[str]:
        """The names in ``no_weight_decay()`` of all submodules, for timm."""
        return {
            ".".join(filter(None, (key, path, name)))
            for key, module in self.items()
            for path, part in module.named_modules()
            if hasattr(part, "no_weight_decay")
            for name in part.no_weight_decay()
        }


@runtime_checkable
class GradientSplitter(Protocol):
    """A torch optimizer that treats the gradients of label terms and teacher terms
    separately.
    """

    def split_gradients(self, label_loss: Tensor) -> None:
        """Compute and store the gradient of `label_loss`, a part of the loss.

        Called before the backward pass through the whole loss, so the graph must stay.
        """

    def clip_gradients(self, max_norm: float) -> None:
        """Scale the gradient and its parts by one factor, so that the norm of the
        gradient is at most `max_norm`.
        """
