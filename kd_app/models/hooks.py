"""Look into a model without leaving a trace: hooks that end with the block they were
made in, and a pass that disturbs nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Recorder:
    """Records what enters and leaves modules while its ``with`` block lasts; of a
    module that runs several times, the last.
    """

    def __init__(self) -> None:
        self.entered: dict[nn.Module, Tensor] = {}
        self.left: dict[nn.Module, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def watch_input(self, modules: Iterable[nn.Module], *, clone: bool = False) -> None:
        """Record the first argument; a `clone` keeps it from being changed by an
        in-place module such as ``ReLU(inplace=True)``.
        """

        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and isinstance(arguments[0], Tensor):
                self.entered[module] = arguments[0].clone() if clone else arguments[0]

        self._handles += [module.register_forward_pre_hook(hook) for module in modules]

    def watch_output(self, modules: Iterable[nn.Module]) -> None:
        """Record the output where it is a tensor, in the order of the run (a container
        comes after what it holds).
        """

        def hook(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                self.left.pop(module, None)
                self.left[module] = output

        self._handles += [module.register_forward_hook(hook) for module in modules]

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()


@contextmanager
def freeze_state(model: nn.Module) -> Iterator[nn.Module]:
    """`model` in eval mode and without gradients; each module gets its own mode back,
    and no running statistic or random state moves.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode


def unwrap_compiled(model: nn.Module) -> Any:
    """What to call so that hooks run: the model, or its plain ``forward`` where
    ``model.compile()`` was used (compiled code sees no new hook).
    """
    return model if getattr(model, "_compiled_call_impl", None) is None else model.forward
