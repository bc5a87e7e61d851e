"""Hooks limited to a ``with`` block, and forward passes that leave no trace in the
model.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Recorder:
    """Record inputs and outputs of modules inside a ``with`` block. If a module runs
    several times, the last run counts.
    """

    def __init__(self) -> None:
        self.inputs: dict[nn.Module, Tensor] = {}
        self.outputs: dict[nn.Module, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def watch_input(self, modules: Iterable[nn.Module], *, clone: bool = False) -> None:
        """Record the first argument. `clone` protects the recorded tensor from in-place
        modules such as ``ReLU(inplace=True)``.
        """

        def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and isinstance(arguments[0], Tensor):
                self.inputs[module] = arguments[0].clone() if clone else arguments[0]

        self._handles += [module.register_forward_pre_hook(record) for module in modules]

    def watch_output(self, modules: Iterable[nn.Module]) -> None:
        """Record tensor outputs in execution order (a container comes after its
        children).
        """

        def record(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                # Popped first, so that the dict keeps the order of the last execution.
                self.outputs.pop(module, None)
                self.outputs[module] = output

        self._handles += [module.register_forward_hook(record) for module in modules]

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
    """Run the block with `model` in eval mode and without gradients. Afterwards each
    module has its previous mode; running statistics and the random state do not change.
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
    """Return the callable whose hooks run: the model, or the plain ``forward`` after
    ``model.compile()`` (compiled code ignores new hooks).
    """
    return model if getattr(model, "_compiled_call_impl", None) is None else model.forward
