"""What a model costs: parameters and multiply-adds."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kd_app.config import InputSpec
from kd_app.models.hooks import freeze_state, unwrap_compiled


def count_params(model: nn.Module) -> int:
    """Number of parameters; one that is shared by several modules counts once, buffers
    (running statistics) not at all.
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, pixels: InputSpec) -> int:
    """Multiply-adds of one image of `pixels`: half the floating-point operations of its
    convolutions, matrix products and attention.

    Biases, norms, activations and pooling do not count, as is usual. Measured by one
    pass of zeros in eval mode where the model lies; its modes, statistics, hooks and
    gradients stay as they are.
    """
    like = next(iter(model.parameters()), torch.empty(0))
    image = torch.zeros(
        1, pixels.channels, pixels.height, pixels.width, device=like.device, dtype=like.dtype
    )
    # The plain kernel shows attention as the two matrix products it is; a CPU's fused one is
    # unknown to the counter.
    with (
        freeze_state(model),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        unwrap_compiled(model)(image)
    return int(counter.get_total_flops()) // 2
