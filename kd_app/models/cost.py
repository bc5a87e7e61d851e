"""Cost of a model: parameters and multiply-adds."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kd_app.config import InputSpec
from kd_app.models.hooks import freeze_state, unwrap_compiled


def count_params(model: nn.Module) -> int:
    """Count the parameters. A parameter shared by several modules counts once; buffers
    (running statistics) do not count.
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_spec: InputSpec) -> int:
    """Count the multiply-adds of one image: half the floating-point operations of
    convolutions, matrix products and attention.

    Biases, norms, activations and pooling do not count, as is usual. Runs the model
    once on zeros in eval mode, on its device; modes, statistics, hooks and gradients
    stay unchanged.
    """
    like = next(iter(model.parameters()), torch.empty(0))
    shape = (1, input_spec.channels, input_spec.height, input_spec.width)
    image = torch.zeros(shape, device=like.device, dtype=like.dtype)
    # The math kernel runs attention as two matrix products. The counter does not know
    # the CPU's fused kernel.
    with (
        freeze_state(model),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        unwrap_compiled(model)(image)
    return int(counter.get_total_flops()) // 2
