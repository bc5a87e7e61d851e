"""What a net attends with: the queries, keys and values that its fused attention is
called on.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from kd_app.models.outputs import Attention

_FUSED = functional.scaled_dot_product_attention
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class Attended(TorchFunctionMode):
    """Keeps the arguments of the calls of ``scaled_dot_product_attention`` while its
    ``with`` block lasts; the calls themselves go on as they are.

    They are numbered in the order of the run. `wanted`: the numbers to keep, all where
    it is None.
    """

    def __init__(self, wanted: Collection[int] | None = None) -> None:
        super().__init__()
        self.calls: dict[int, Attention] = {}
        self._wanted = wanted
        self._count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by torch for each of its functions."""
        if func is _FUSED:
            if self._wanted is None or self._count in self._wanted:
                self.calls[self._count] = _build_attention(
                    **dict(zip(_NAMES, args, strict=False)), **(kwargs or {})
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
    """As one call has it; a scale of the model's own is in the query, so that
    ``softmax(q k^T / sqrt(d) + bias)`` are its weights.
    """
    if scale is not None and scale != query.shape[-1] ** -0.5:
        query = query * (scale * query.shape[-1] ** 0.5)
    return Attention(query, key, value, 0, attn_mask)


def last_calls(
    calls: Mapping[int, Attention], count: int, *, patches: int, prefixes: Collection[int]
) -> tuple[int, ...]:
    """The numbers of the last `count` calls (or of all, where there are fewer) in which
    every token of one row attends to every other of it.

    A row holds the `patches` of the last map, and as many tokens before them as
    `prefixes` allows. Calls behind the last such (pooling by attention) do not count,
    nor do those before one of another kind (windows, fewer keys than queries, another
    size).
    """
    fits = {
        number: _is_global(call) and call.query.shape[2] - patches in prefixes
        for number, call in calls.items()
    }
    numbers = list(calls)
    while numbers and not fits[numbers[-1]]:
        numbers.pop()
    chosen: list[int] = []
    while (
        numbers
        and len(chosen) < count
        and fits[numbers[-1]]
        and (not chosen or _is_alike(calls[numbers[-1]], calls[chosen[0]]))
    ):
        chosen.insert(0, numbers.pop())
    return tuple(chosen)


def _is_global(call: Attention) -> bool:
    """Of one image, with as many keys as queries, and no token kept from another."""
    seen = call.bias is None or call.bias.dtype != torch.bool
    return (
        call.query.dim() == 4
        and call.query.shape[0] == 1
        and call.query.shape[:3] == call.key.shape[:3] == call.value.shape[:3]
        and seen
    )


def _is_alike(one: Attention, other: Attention) -> bool:
    return one.query.shape[2] == other.query.shape[2]
