"""DOT: separate momenta for the gradients of the label terms and the teacher terms."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import timm.optim
import torch
from pydantic import Field
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.optimizers.optimizer import Optimizer
from kd_app.schedules import LearningRate, WeightDecay

Momentum = Annotated[float, Field(ge=0, lt=1)]


class DOT(Optimizer):
    """`TwoMomenta` over the student and the adapters; SGD with `momentum` if no loss
    term distills, or all do.

    lr 'auto' and the parameters without weight decay are as in `Optimizer`. Raises
    `RequestError` if ``momentum - delta`` or ``momentum + delta`` is outside [0, 1).
    """

    def __init__(
        self,
        *,
        name: Literal["dot"],
        lr: LearningRate | Literal["auto"],
        scratch_lr: LearningRate,
        finetune_lr: LearningRate,
        weight_decay: WeightDecay,
        momentum: Momentum,
        delta: Momentum,
    ) -> None:
        if not 0 <= momentum - delta <= momentum + delta < 1:
            raise RequestError(
                f"optimizer.delta={delta} gives the momenta {momentum - delta:g} and"
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
        self.attention_lr_factor = 1.0

    def make(self, model: nn.Module, *, from_random: bool, fused: bool) -> torch.optim.Optimizer:
        """Build the optimizer as `Optimizer.make` does; `fused` has no effect."""
        rate = self.resolve_lr(model, from_random=from_random)
        no_decay = tuple(getattr(model, "no_weight_decay", set)())
        groups = timm.optim.param_groups_weight_decay(
            model, self.weight_decay, no_weight_decay_list=no_decay
        )
        return TwoMomenta(
            [{**group, "initial_lr": rate} for group in groups],
            lr=rate,
            momentum=self.momentum,
            delta=self.delta,
        )

    def check_place(self, world_size: int, precision: str) -> None:
        """Raise `RequestError` for several processes and for a scaled loss: the label
        gradient is neither averaged over ranks nor unscaled.
        """
        if world_size > 1:
            raise RequestError(
                f"optimizer=dot trains in one process, but {world_size} processes are"
                " configured. Use trainer.devices=1, or optimizer=sgd."
            )
        if precision == "16-mixed":
            raise RequestError(
                "optimizer=dot does not support the loss scaling of trainer.precision=16-mixed. Use"
                " trainer.precision=bf16-mixed or 32-true, or optimizer=sgd."
            )


class TwoMomenta(torch.optim.Optimizer):
    """``v_l = (m - d) v_l + g_l + w p``, ``v_t = (m + d) v_t + g_t``, ``p = p - lr (v_l
    + v_t)``.

    g_l is the gradient of the loss terms without teacher, g_t the rest of the gradient,
    m the momentum, d `delta`, w the weight decay. Both v start at 0. The update is SGD
    with momentum m if d = 0, and in steps without a call of `split_gradients`. Zhao et
    al., "DOT: A Distillation-Oriented Trainer", ICCV 2023, arXiv 2307.08436.
    """

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float, delta: float) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": 0.0}
        )
        self._label_gradients: dict[Tensor, Tensor] | None = None

    def split_gradients(self, label_loss: Tensor) -> None:
        """Add the gradient of `label_loss` to g_l of the next step; the graph stays.

        `label_loss` is a part of the loss, so ``.grad`` will include this gradient.
        """
        parameters = self._list_parameters()
        label_gradients = self._label_gradients or {}
        gradients = torch.autograd.grad(
            label_loss, parameters, retain_graph=True, allow_unused=True
        )
        for p, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                label_gradients[p] = (
                    label_gradients[p] + gradient if p in label_gradients else gradient
                )
        self._label_gradients = label_gradients

    def clip_gradients(self, max_norm: float) -> None:
        """Scale the gradient and the label gradient by one factor, so that the norm of
        the gradient is at most `max_norm`.
        """
        gradients = [p.grad for p in self._list_parameters() if p.grad is not None]
        scale = (max_norm / (torch.nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
        for gradient in (*gradients, *(self._label_gradients or {}).values()):
            gradient.mul_(scale)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._label_gradients = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(self._compute_update(p, p.grad, group), alpha=group["lr"])
        self._label_gradients = None
        return loss

    def _compute_update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """``v_l + v_t`` after this step."""
        decay = group["weight_decay"] * p
        momentum, delta = group["momentum"], group["delta"]
        if self._label_gradients is None:
            return self._update_momentum(p, "all", momentum, gradient + decay)
        labels = self._label_gradients.get(p)
        label_part = decay if labels is None else labels + decay
        teacher_part = gradient if labels is None else gradient - labels
        label_velocity = self._update_momentum(p, "labels", momentum - delta, label_part)
        return label_velocity + self._update_momentum(p, "teacher", momentum + delta, teacher_part)

    def _update_momentum(self, p: Tensor, name: str, momentum: float, gradient: Tensor) -> Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p)
        velocity: Tensor = state[name].mul_(momentum).add_(gradient)
        return velocity

    def _list_parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]
