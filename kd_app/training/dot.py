"""DOT: what the labels and what the teacher say of a step are kept apart, and each has
a momentum of its own.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import timm.optim
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.training.optimizer import Optimizer

Momentum = Annotated[float, Field(ge=0, lt=1)]


class DOT(Optimizer):
    """`TwoMomenta` over the student and the adapters. Where no term distills, or none
    reads labels, it is SGD with `momentum`.

    lr 'auto': see `Optimizer`; weight decay leaves biases and norms alone as there.
    Raises `RequestError` where `delta` leaves the range of momenta.
    """

    def __init__(
        self,
        *,
        name: Literal["dot"],
        lr: PositiveFloat | Literal["auto"],
        scratch_lr: PositiveFloat,
        finetune_lr: PositiveFloat,
        weight_decay: NonNegativeFloat,
        momentum: Momentum,
        delta: Momentum,
    ) -> None:
        if not 0 <= momentum - delta <= momentum + delta < 1:
            raise RequestError(
                f"optimizer.delta={delta} takes the momenta to {momentum - delta:g} and"
                f" {momentum + delta:g}. Expected 0 or more and less than 1: lower optimizer.delta"
                f" or optimizer.momentum={momentum}."
            )
        self.name = name
        self.lr = lr
        self.scratch_lr = scratch_lr
        self.finetune_lr = finetune_lr
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.delta = delta

    def make(self, model: nn.Module, *, from_random: bool, fused: bool) -> torch.optim.Optimizer:
        """As `Optimizer.make`; there is no fused form."""
        rate = self.resolve_lr(from_random=from_random)
        spared = tuple(getattr(model, "no_weight_decay", set)())
        groups = timm.optim.param_groups_weight_decay(
            model, self.weight_decay, no_weight_decay_list=spared
        )
        return TwoMomenta(
            [{**group, "initial_lr": rate} for group in groups],
            lr=rate,
            momentum=self.momentum,
            delta=self.delta,
        )

    def check_place(self, world_size: int, precision: str) -> None:
        """Refuse several processes and a scaled loss: the labels' gradient is neither
        gathered nor scaled back.
        """
        if world_size > 1:
            raise RequestError(
                "optimizer=dot keeps the labels' gradient apart in one process, and"
                f" trainer.devices={world_size}. Use trainer.devices=1, or optimizer=sgd."
            )
        if precision == "16-mixed":
            raise RequestError(
                "optimizer=dot adds two gradients, and trainer.precision=16-mixed scales one of"
                " them. Use trainer.precision=bf16-mixed or 32-true, or optimizer=sgd."
            )


class TwoMomenta(torch.optim.Optimizer):
    """``v_l = (m - d) v_l + g_l + w p``, ``v_t = (m + d) v_t + g_t``, ``p = p - lr (v_l
    + v_t)``: g_l is the gradient of what reads no teacher, g_t the rest of the
    gradient, m the momentum, d `delta`, w the weight decay; both v are 0 at first.

    With d = 0 it is SGD with momentum; so it is, with m, in steps before which
    `split_gradients` was not called. Zhao et al., "DOT: A Distillation-Oriented Trainer",
    ICCV 2023, arXiv 2307.08436.
    """

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float, delta: float) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": 0.0}
        )
        self._apart: dict[Tensor, Tensor] | None = None

    def split_gradients(self, label_loss: Tensor) -> None:
        """Add the gradient of `label_loss`, a part of the loss whose gradient is added up
        in ``.grad``, to g_l of the next step. Its graph stays.
        """
        parameters = self._parameters()
        apart = self._apart or {}
        gradients = torch.autograd.grad(
            label_loss, parameters, retain_graph=True, allow_unused=True
        )
        for p, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                apart[p] = apart[p] + gradient if p in apart else gradient
        self._apart = apart

    def clip_gradients(self, max_norm: float) -> None:
        """Scale the gradient, and the part of it that is kept apart, so that the norm
        of the whole is at most `max_norm`.
        """
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        scale = (max_norm / (torch.nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
        for gradient in (*gradients, *(self._apart or {}).values()):
            gradient.mul_(scale)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradient and what was kept apart of it."""
        super().zero_grad(set_to_none)
        self._apart = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step with the gradients there are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(self._compute_update(p, p.grad, group), alpha=group["lr"])
        self._apart = None
        return loss

    def _compute_update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """``v_l + v_t`` after this step."""
        decay = group["weight_decay"] * p
        if self._apart is None:
            return self._update_momentum(p, "all", group["momentum"], gradient + decay)
        labels = self._apart.get(p)
        teacher = gradient if labels is None else gradient - labels
        own = self._update_momentum(
            p,
            "labels",
            group["momentum"] - group["delta"],
            decay if labels is None else labels + decay,
        )
        return own + self._update_momentum(
            p, "teacher", group["momentum"] + group["delta"], teacher
        )

    def _update_momentum(self, p: Tensor, name: str, momentum: float, gradient: Tensor) -> Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p)
        moved: Tensor = state[name].mul_(momentum).add_(gradient)
        return moved

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]
