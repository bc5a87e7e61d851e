"""Record the queries, keys and values of a model's fused attention."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from kd_app.models.outputs import Attention

_FUSED_ATTENTION = functional.scaled_dot_product_attention
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class AttentionRecorder(TorchFunctionMode):
    """Record the arguments of every call of ``scaled_dot_product_attention`` inside a
    ``with`` block. The calls run unchanged.

    Calls are numbered in execution order. `numbers`: which calls to record; None
    records all.
    """

    def __init__(self, numbers: Collection[int] | None = None) -> None:
        super().__init__()
        self.calls: dict[int, Attention] = {}
        self._numbers = numbers
        self._count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is _FUSED_ATTENTION:
            if self._numbers is None or self._count in self._numbers:
                self.calls[self._count] = _build_attention(
                    **dict(zip(_ARGUMENTS, args, strict=False)), **(kwargs or {})
                )
            self._count += 1
        return func(*args, **(kwargs or {}))


def _build_attention(
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    **_: Any,
) -> Attention:
    # `Attention` has no scale: a custom scale is moved into the query.
    if scale is not None and scale != query.shape[-1] ** -0.5:
        query = query * (scale * query.shape[-1] ** 0.5)
    return Attention(query, key, value, 0, attn_mask)


def find_global_calls(
    calls: Mapping[int, Attention], count: int, *, patches: int, prefixes: Collection[int]
) -> tuple[int, ...]:
    """Return the numbers of the last `count` calls (all, if there are fewer) with
    global self-attention: every token of one image attends to every other.

    The tokens are the `patches` of the last feature map plus a number of prefix tokens
    that `prefixes` allows. Later calls of another kind (attention pooling) are skipped.
    The search ends at the first earlier call of another kind (windows, fewer keys than
    queries, another sequence length).
    """
    fits = {
        number: _is_global(call) and call.query.shape[2] - patches in prefixes
        for number, call in calls.items()
    }
    numbers = list(calls)
    # Attention after the last global block is pooling, not a block of the model.
    while numbers and not fits[numbers[-1]]:
        numbers.pop()
    chosen: list[int] = []
    while (
        numbers
        and len(chosen) < count
        and fits[numbers[-1]]
        and (not chosen or _has_same_length(calls[numbers[-1]], calls[chosen[0]]))
    ):
        chosen.insert(0, numbers.pop())
    return tuple(chosen)


def _is_global(call: Attention) -> bool:
    """Whether one image's queries and keys have the same length, without a mask."""
    unmasked = call.bias is None or call.bias.dtype != torch.bool
    return (
        call.query.dim() == 4
        and call.query.shape[0] == 1
        and call.query.shape[:3] == call.key.shape[:3] == call.value.shape[:3]
        and unmasked
    )


def _has_same_length(one: Attention, other: Attention) -> bool:
    return one.query.shape[2] == other.query.shape[2]
