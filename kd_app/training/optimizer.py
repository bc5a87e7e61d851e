"""The optimizer, by any of timm's names, and the schedule of its learning rate."""

from typing import Any, Literal, Protocol, runtime_checkable

import timm.optim
import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from kd_app.config import RequestError, Typed, build_unknown_error
from kd_app.schedules import Share

_TAKES_FUSED = {"adam", "adamw", "sgd", "momentum"}


class Optimizer(Typed):
    """One of timm's optimizers (`name`, see timm.optim.list_optimizers).

    lr 'auto' is `scratch_lr` for a model from random weights and `finetune_lr` for one
    that has learned before. Weight decay leaves biases and norms alone, and what
    ``no_weight_decay()`` of the model names (position embeddings, class tokens), as
    timm does. `kwargs` go to the optimizer as they are.
    """

    def __init__(
        self,
        *,
        name: str,
        lr: PositiveFloat | Literal["auto"],
        scratch_lr: PositiveFloat,
        finetune_lr: PositiveFloat,
        weight_decay: NonNegativeFloat,
        momentum: Share,
        kwargs: dict[str, Any],
    ) -> None:
        known = [str(each) for each in timm.optim.list_optimizers()]
        if name.lower() not in known:
            raise build_unknown_error("optimizer", name, known)
        if "layer_decay" in kwargs:
            raise RequestError(
                "optimizer.kwargs.layer_decay is not to be had: all layers share one learning rate"
                " here. Leave it out."
            )
        self.name = name.lower()
        self.lr = lr
        self.scratch_lr = scratch_lr
        self.finetune_lr = finetune_lr
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.kwargs = kwargs
        with torch.random.fork_rng(devices=[]):
            self.make(
                nn.Linear(1, 1), from_random=True, fused=True
            )  # refuses arguments that this optimizer does not take

    def resolve_lr(self, *, from_random: bool) -> float:
        """The learning rate at the top of the schedule."""
        if self.lr == "auto":
            return self.scratch_lr if from_random else self.finetune_lr
        return self.lr

    def check_place(self, world_size: int, precision: str) -> None:
        """Raise `RequestError` where it can't work in so many processes, or at this
        precision. timm's can.
        """

    def make(self, model: nn.Module, *, from_random: bool, fused: bool) -> torch.optim.Optimizer:
        """The optimizer over everything in `model` that has a gradient; each group
        remembers the top of its schedule as 'initial_lr'.

        fused: in one kernel, where this optimizer has one.
        """
        kwargs = (
            {"fused": fused, **self.kwargs}
            if self.name in _TAKES_FUSED and "foreach" not in self.kwargs
            else self.kwargs
        )
        rate = self.resolve_lr(from_random=from_random)
        try:
            made: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
                model,
                opt=self.name,
                lr=rate,
                weight_decay=self.weight_decay,
                momentum=self.momentum,
                **kwargs,
            )
        except (TypeError, ValueError, AssertionError, RuntimeError, ImportError) as error:
            raise RequestError(
                f"The optimizer {self.name} can't be made with kwargs={self.kwargs!r}: {error}. See"
                " timm.optim for its arguments."
            ) from None
        for group in made.param_groups:
            group["initial_lr"] = rate
        return made


class Trained(nn.ModuleDict):
    """Modules that are trained by one optimizer; spares from weight decay what any of
    them, or a part of it, names in its ``no_weight_decay()``.
    """

    def no_weight_decay(self) -> set[str]:
        """Names of parameters, as timm asks for them."""
        return {
            ".".join(filter(None, (key, where, name)))
            for key, module in self.items()
            for where, part in module.named_modules()
            if hasattr(part, "no_weight_decay")
            for name in part.no_weight_decay()
        }


@runtime_checkable
class SplitsGradients(Protocol):
    """A torch optimizer that treats the gradient of the label terms apart from that of
    the others.
    """

    def split_gradients(self, label_loss: Tensor) -> None:
        """Take the gradient of `label_loss`, a part of the loss, before the backward pass
        through the whole loss; its graph must stay.
        """

    def clip_gradients(self, max_norm: float) -> None:
        """Scale the whole gradient to a norm of at most `max_norm`, and its parts with
        it.
        """
