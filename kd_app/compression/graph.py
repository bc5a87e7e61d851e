"""From a float module to an int8 graph, by torchao's PT2E, under the names that the
module's weights have.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from kd_app.config import InputSpec, RequestError, RunError
from kd_app.config.errors import take_first_line
from kd_app.deployment.xnnpack import silence_executorch

Images = Float[Tensor, "batch channels height width"]
_CONV, _NORM = torch.ops.aten.conv2d.default, torch.ops.aten.batch_norm.default
_ACTIVATIONS = frozenset({"relu", "relu_", "hardtanh", "hardtanh_", "relu6", "relu6_"})
"""What XNNPACK computes together with the operation before it."""


def load_pt2e() -> Any:
    """torchao's PT2E. Raises `RequestError` where it or ExecuTorch is not installed."""
    try:
        with silence_executorch():
            from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
            from torchao.quantization.pt2e import quantize_pt2e
    except ImportError:
        raise RequestError(
            "The step quantize needs torchao and executorch, which are not installed. Install them:"
            " pip install kd_app[deploy]"
        ) from None
    return quantize_pt2e, xnnpack_quantizer


def trace(model: nn.Module, pixels: InputSpec) -> fx.GraphModule:
    """`model` in eval mode as a graph for batches of any size, its batch norms folded
    into the convolutions before them (in `model`, too).

    The weights of a convolution take the scale of its norm; what is left of the norm is
    its bias, which the convolution of the graph adds under the norm's name. So the
    module computes what it did before, and the weights of the graph are those of the
    module, name by name. Raises `RunError` where torch can't export the model.
    """
    example = torch.zeros(2, pixels.channels, pixels.height, pixels.width)
    try:
        with silence_executorch():
            program = torch.export.export(
                model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
            graph: fx.GraphModule = program.module()
    except Exception as error:  # of many kinds: what a model may hold has no bounds
        raise RunError(
            f"torch can't export this {type(model).__name__}, so it can't be quantized:"
            f" {take_first_line(error)}"
        ) from error
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for conv, norm in _find_conv_bn_pairs(graph.graph):
        weight, bias = conv.args[1], conv.args[2] if len(conv.args) > 2 else None
        gamma, beta, mean, variance = norm.args[1:5]
        named = [
            tensors.get(str(node.target)) if isinstance(node, fx.Node) else None
            for node in (weight, bias, gamma, beta, mean, variance)
        ]
        _fold(named, eps=float(norm.args[7]))  # type: ignore[arg-type]
        with graph.graph.inserting_before(conv):
            moved = graph.graph.get_attr(str(beta.target))  # type: ignore[union-attr]
        conv.args = (*conv.args[:2], moved, *conv.args[3:])
        norm.replace_all_uses_with(conv)
        graph.graph.erase_node(norm)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    put(graph, tensors)
    return graph


def _find_conv_bn_pairs(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Each convolution whose only reader is a batch norm with weights, and whose weight
    nothing else reads; and that norm.
    """
    readers: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            readers[node.target] = readers.get(node.target, 0) + len(node.users)
    for norm in list(graph.nodes):
        conv = norm.args[0] if norm.target is _NORM else None
        if (
            isinstance(conv, fx.Node)
            and conv.target is _CONV
            and len(conv.users) == 1
            and norm.args[1] is not None
            and norm.args[2] is not None
        ):
            weight: Any = conv.args[1]
            if weight.op == "get_attr" and readers[weight.target] == 1:
                yield conv, norm


@torch.no_grad()
def _fold(named: list[Tensor | None], *, eps: float) -> None:
    weight, bias, gamma, beta, mean, variance = named
    assert weight is not None
    assert gamma is not None
    assert beta is not None
    assert mean is not None
    assert variance is not None
    scale = gamma / (variance + eps).sqrt()
    weight.mul_(scale.view(-1, *[1] * (weight.dim() - 1)))
    beta.add_(((0 if bias is None else bias) - mean) * scale)
    if bias is not None:
        bias.zero_()
    gamma.fill_(1)
    mean.zero_()
    variance.fill_(1 - eps)


@torch.no_grad()
def put(target: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy what `target` has by the names of `tensors`."""
    own = {**dict(target.named_parameters()), **dict(target.named_buffers())}
    for name in own.keys() & tensors.keys():
        own[name].copy_(tensors[name])


def find_unit(node: fx.Node) -> str:
    """The module that an operation was written in: 'layer1.0.conv1' of a convolution,
    'layer1.0' of the addition of a block.
    """
    stack = [
        value[0] if isinstance(value, tuple) else value
        for value in (node.meta.get("nn_module_stack") or {}).values()
    ]
    return str(stack[-1]).replace("L['self']", "").strip(".") if stack else ""


def prepare(
    graph: fx.GraphModule, *, keep: Collection[str], per_channel: bool, learns: bool
) -> fx.GraphModule:
    """A copy of `graph` that measures its ranges and, where it `learns`, rounds to int8
    as the converted one does; units in `keep` stay in float.

    Activations are int8 with one scale and zero point a tensor, weights symmetric int8,
    with one scale a channel (`per_channel`) or a tensor (Krishnamoorthi, 2018, arXiv
    1806.08342). XNNPACK accumulates in 32 bits on every CPU, so no range is reduced
    where there is no VNNI.
    """
    pt2e, xnnpack = load_pt2e()
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=per_channel, is_qat=learns)
    quantizer = (
        xnnpack.XNNPACKQuantizer()
        .set_global(config)
        .set_filter_function(lambda node: find_unit(node) not in keep)
    )
    with silence_executorch():
        prepared: fx.GraphModule = (pt2e.prepare_qat_pt2e if learns else pt2e.prepare_pt2e)(
            copy.deepcopy(graph), quantizer
        )
    return prepared


@torch.no_grad()
def calibrate(prepared: nn.Module, batches: Iterable[Images]) -> None:
    """Show it images, so that it knows its ranges."""
    for images in batches:
        prepared(images)


def convert(prepared: fx.GraphModule) -> fx.GraphModule:
    """The int8 graph: weights are int8 numbers, quantize and dequantize around every
    operation that is computed in int8. `prepared` is used up.
    """
    pt2e, _ = load_pt2e()
    with silence_executorch():
        converted: fx.GraphModule = pt2e.convert_pt2e(prepared)
    return converted


def save(converted: fx.GraphModule, pixels: InputSpec, path: Path) -> None:
    """As an exported program (normalized images of any number -> logits):
    ``torch.export.load(path).module()`` needs neither kd_app nor timm.
    """
    example = torch.zeros(2, pixels.channels, pixels.height, pixels.width)
    with silence_executorch():
        torch.export.save(
            torch.export.export(
                converted, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            ),
            path,
        )


class Learning(nn.Module):
    """A prepared graph to train: in eval mode it rounds as in training, and its ranges
    stay as they are.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, image: Images) -> Float[Tensor, "batch classes"]:
        """Logits."""
        logits: Tensor = self.graph(image)
        return logits

    def train(self, mode: bool = True) -> "Learning":
        """Whether it follows the ranges of what it sees; a graph has no modes of its
        own, and the batch norms that are left keep their statistics.
        """
        self.training = mode
        for rounding in _find_roundings(self.graph).values():
            rounding.observer_enabled[0] = int(mode)
        return self


class QuantizationProbe:
    """What rounding to int8 does to the logits, with any of the units in float: one
    graph whose roundings are switched on and off.
    """

    def __init__(self, graph: fx.GraphModule, batches: list[Images], *, per_channel: bool) -> None:
        self._graph = prepare(graph, keep=(), per_channel=per_channel, learns=True)
        self._batches = batches
        self._roundings = _find_roundings(self._graph)
        self._switch(lambda units: False)
        calibrate(self._graph, batches)
        for rounding in self._roundings.values():
            rounding.observer_enabled[0] = 0
        self._expected = self._log_p()

    @property
    def units(self) -> tuple[str, ...]:
        """In the order of the graph."""
        found = (
            name
            for node in self._graph.graph.nodes
            if node.target in self._roundings
            for name in _find_neighbors(node)
        )
        return tuple(dict.fromkeys(found))

    def measure_only(self, unit: str) -> float:
        """Mean over the images of ``KL(float || this unit alone in int8)``, nats."""
        return self._measure_divergence(lambda units: unit in units)

    def measure_without(self, keep: Collection[str]) -> float:
        """Mean over the images of ``KL(float || all but `keep` in int8)``, nats."""
        return self._measure_divergence(lambda units: bool(units - set(keep)))

    def _measure_divergence(self, on: Callable[[frozenset[str]], bool]) -> float:
        self._switch(on)
        return float((self._expected.exp() * (self._expected - self._log_p())).sum(dim=1).mean())

    def _switch(self, on: Callable[[frozenset[str]], bool]) -> None:
        rounds = dict.fromkeys(self._roundings, False)
        for node in self._graph.graph.nodes:
            if node.target in rounds:
                rounds[node.target] |= on(_find_neighbors(node))
        for name, rounding in self._roundings.items():
            rounding.fake_quant_enabled[0] = int(rounds[name])

    @torch.no_grad()
    def _log_p(self) -> Tensor:
        return (
            torch.cat([self._graph(images) for images in self._batches]).double().log_softmax(dim=1)
        )


def _find_roundings(graph: fx.GraphModule) -> dict[str, Any]:
    return {
        name: module
        for name, module in graph.named_children()
        if hasattr(module, "fake_quant_enabled")
    }


def _find_neighbors(rounding: fx.Node) -> frozenset[str]:
    """The units whose inputs or outputs it rounds: those that read it, and the one that
    made what it rounds, an activation between them or not.
    """
    source: Any = rounding.args[0]
    if source.op == "call_function" and source.target.__name__.split(".")[0] in _ACTIVATIONS:
        source = source.args[0]
    nodes = [*rounding.users, source]
    return frozenset(find_unit(node) for node in nodes if node.op == "call_function") - {""}
