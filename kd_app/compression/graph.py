"""Converts a float module into an int8 graph with torchao's PT2E. The graph's weights
have the names of the module's weights.
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
"""Activations that XNNPACK fuses with the operation before."""


def load_pt2e() -> Any:
    """Import torchao's PT2E and XNNPACK's quantizer. Raises `RequestError` if torchao
    or ExecuTorch is not installed.
    """
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


def trace(model: nn.Module, input_spec: InputSpec) -> fx.GraphModule:
    """Export `model` in eval mode as a graph for batches of any size, and fold batch
    norms into the convolutions before them, in the graph and in `model`.

    A folded convolution takes the scale of its batch norm. Its bias becomes the bias of
    the batch norm, under the batch norm's name, so the module computes the same as
    before and the graph's weights equal the module's, name by name. Raises `RunError`
    if torch can't export the model.
    """
    example = torch.zeros(2, input_spec.channels, input_spec.height, input_spec.width)
    try:
        with silence_executorch():
            program = torch.export.export(
                model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
            graph: fx.GraphModule = program.module()
    except Exception as error:  # A user's model can raise anything.
        raise RunError(
            f"torch can't export this {type(model).__name__}, so it can't be quantized:"
            f" {take_first_line(error)}"
        ) from error
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for conv, norm in _find_conv_bn_pairs(graph.graph):
        weight, bias = conv.args[1], conv.args[2] if len(conv.args) > 2 else None
        gamma, beta, mean, variance = norm.args[1:5]
        operands = [
            tensors.get(str(node.target)) if isinstance(node, fx.Node) else None
            for node in (weight, bias, gamma, beta, mean, variance)
        ]
        _fold(operands, eps=float(norm.args[7]))  # type: ignore[arg-type]
        with graph.graph.inserting_before(conv):
            new_bias = graph.graph.get_attr(str(beta.target))  # type: ignore[union-attr]
        conv.args = (*conv.args[:2], new_bias, *conv.args[3:])
        norm.replace_all_uses_with(conv)
        graph.graph.erase_node(norm)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    copy_tensors(tensors, graph)
    return graph


def _find_conv_bn_pairs(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Each convolution whose only reader is a batch norm with weights, and whose weight
    has no other reader; and that batch norm.
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
def _fold(operands: list[Tensor | None], *, eps: float) -> None:
    """Move the scale of a batch norm into the convolution, and the convolution's bias
    and the running mean into the batch norm's bias; the batch norm then only adds its
    bias.
    """
    weight, bias, gamma, beta, mean, variance = operands
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
def copy_tensors(tensors: Mapping[str, Tensor], target: nn.Module) -> None:
    """Copy tensors into the parameters and buffers of `target` of the same names; names
    that `target` lacks are skipped.
    """
    own = {**dict(target.named_parameters()), **dict(target.named_buffers())}
    for name in own.keys() & tensors.keys():
        own[name].copy_(tensors[name])


def find_unit(node: fx.Node) -> str:
    """Name of the module that contains an operation: 'layer1.0.conv1' for a
    convolution, 'layer1.0' for the addition in a block.
    """
    stack = [
        value[0] if isinstance(value, tuple) else value
        for value in (node.meta.get("nn_module_stack") or {}).values()
    ]
    return str(stack[-1]).replace("L['self']", "").strip(".") if stack else ""


def prepare(
    graph: fx.GraphModule, *, float_units: Collection[str], per_channel: bool, trainable: bool
) -> fx.GraphModule:
    """Copy `graph` with observers that measure ranges. With `trainable`, the copy also
    rounds to int8 like the converted graph.

    float_units: modules that stay in float. Activations are int8 with one scale and
    zero point per tensor, weights symmetric int8 with one scale per channel
    (`per_channel`) or per tensor (Krishnamoorthi, 2018, arXiv 1806.08342). XNNPACK
    accumulates in 32 bits on every CPU, so CPUs without VNNI need no reduced range.
    """
    pt2e, xnnpack = load_pt2e()
    config = xnnpack.get_symmetric_quantization_config(is_per_channel=per_channel, is_qat=trainable)
    quantizer = (
        xnnpack.XNNPACKQuantizer()
        .set_global(config)
        .set_filter_function(lambda node: find_unit(node) not in float_units)
    )
    if not any(node.target is _NORM for node in graph.graph.nodes):
        # they need a batch norm, and are traced again for each graph
        patterns = [each for each in quantizer.SUPPORTED_PATTERNS if not each.is_qat]
        quantizer.SUPPORTED_PATTERNS = patterns
    prepare_graph = pt2e.prepare_qat_pt2e if trainable else pt2e.prepare_pt2e
    with silence_executorch():
        prepared: fx.GraphModule = prepare_graph(copy.deepcopy(graph), quantizer)
    return prepared


@torch.no_grad()
def calibrate(prepared: nn.Module, batches: Iterable[Images]) -> None:
    """Run images through a prepared graph to measure its ranges."""
    for images in batches:
        prepared(images)


def convert(prepared: fx.GraphModule) -> fx.GraphModule:
    """Convert to int8: weights are int8 numbers, with quantize and dequantize around
    every int8 operation. `prepared` can't be used afterwards.
    """
    pt2e, _ = load_pt2e()
    with silence_executorch():
        converted: fx.GraphModule = pt2e.convert_pt2e(prepared)
    return converted


def save(converted: fx.GraphModule, input_spec: InputSpec, path: Path) -> None:
    """Write the graph as an exported program (any number of normalized images to
    logits). ``torch.export.load(path).module()`` needs neither kd_app nor timm.
    """
    example = torch.zeros(2, input_spec.channels, input_spec.height, input_spec.width)
    with silence_executorch():
        program = torch.export.export(
            converted, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        torch.export.save(program, path)


class TrainableGraph(nn.Module):
    """A prepared graph as a module to train. In eval mode the graph rounds as in
    training, with frozen ranges.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, image: Images) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        logits: Tensor = self.graph(image)
        return logits

    def train(self, mode: bool = True) -> "TrainableGraph":
        """Switch the updates of the ranges. Nothing else has a mode: the remaining
        batch norms always use their running statistics.
        """
        self.training = mode
        for fake_quant in _find_fake_quants(self.graph).values():
            fake_quant.observer_enabled[0] = int(mode)
        return self


class QuantizationProbe:
    """Measures how much int8 changes the logits, with any subset of units in float: one
    graph whose fake quantizers are switched on and off.
    """

    def __init__(self, graph: fx.GraphModule, batches: list[Images], *, per_channel: bool) -> None:
        self._graph = prepare(graph, float_units=(), per_channel=per_channel, trainable=True)
        self._batches = batches
        self._fake_quants = _find_fake_quants(self._graph)
        self._switch(lambda units: False)
        calibrate(self._graph, batches)
        for fake_quant in self._fake_quants.values():
            fake_quant.observer_enabled[0] = 0
        self._expected = self._compute_log_p()

    @property
    def units(self) -> tuple[str, ...]:
        """All units that int8 changes, in the order of the graph."""
        names = (
            name
            for node in self._graph.graph.nodes
            if node.target in self._fake_quants
            for name in _find_neighbors(node)
        )
        return tuple(dict.fromkeys(names))

    def measure_only(self, unit: str) -> float:
        """Mean over the images of ``KL(float || only this unit in int8)``, nats."""
        return self._measure_divergence(lambda units: unit in units)

    def measure_without(self, float_units: Collection[str]) -> float:
        """Mean over the images of ``KL(float || others in int8)``, nats."""
        return self._measure_divergence(lambda units: bool(units - set(float_units)))

    def _measure_divergence(self, is_int8: Callable[[frozenset[str]], bool]) -> float:
        self._switch(is_int8)
        difference = self._expected - self._compute_log_p()
        return float((self._expected.exp() * difference).sum(dim=1).mean())

    def _switch(self, is_int8: Callable[[frozenset[str]], bool]) -> None:
        enabled = dict.fromkeys(self._fake_quants, False)
        for node in self._graph.graph.nodes:
            if node.target in enabled:
                enabled[node.target] |= is_int8(_find_neighbors(node))
        for name, fake_quant in self._fake_quants.items():
            fake_quant.fake_quant_enabled[0] = int(enabled[name])

    @torch.no_grad()
    def _compute_log_p(self) -> Tensor:
        logits = torch.cat([self._graph(images) for images in self._batches])
        return logits.double().log_softmax(dim=1)


def _find_fake_quants(graph: fx.GraphModule) -> dict[str, Any]:
    return {
        name: module
        for name, module in graph.named_children()
        if hasattr(module, "fake_quant_enabled")
    }


def _find_neighbors(fake_quant: fx.Node) -> frozenset[str]:
    """The units on both sides of a fake quantizer: those that read its output, and the
    one that computes its input, before a fused activation if there is one.
    """
    source: Any = fake_quant.args[0]
    if source.op == "call_function" and source.target.__name__.split(".")[0] in _ACTIVATIONS:
        source = source.args[0]
    nodes = [*fake_quant.users, source]
    return frozenset(find_unit(node) for node in nodes if node.op == "call_function") - {""}
