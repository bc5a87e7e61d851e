"""Find the readable outputs of a model, with one forward pass over one image."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from timm.models.xcit import XCA
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.models.attention_recorder import AttentionRecorder, find_global_calls
from kd_app.models.heads import find_classifiers, find_output_layer, find_shares, read_head
from kd_app.models.hooks import Recorder, freeze_state, unwrap_compiled
from kd_app.models.outputs import LogitsOnly, Outputs

NUM_STAGES = 4
_ACTIVATIONS = (
    "torch.nn.modules.activation",
    "timm.layers.activations",
    "timm.layers.activations_me",
)


@dataclass
class TapPlan:
    """Where to read the fields of `Outputs` in one model: modules by name, attention
    calls by number, stages shallow to deep.

    indices: indices for ``forward_intermediates``; empty if the model has no usable
    one, then `maps` names the modules to hook. missing: fields that the model can't
    provide, with the reason.
    """

    indices: tuple[int, ...] = ()
    maps: tuple[str, ...] = ()
    pre_activation: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    attention: tuple[int, ...] = ()
    num_prefix: int = 0
    has_prefix: bool = False
    missing: dict[str, str] = field(default_factory=dict)


def choose_stages(reductions: Sequence[int]) -> tuple[int, ...]:
    """Return the indices of the maps that represent the stages, given all strides.

    With several strides: the last map of each stride, at most the four deepest. With
    one stride (ViT, Mixer): the blocks at the ends of four equal parts of the depth,
    ``ceil(depth * q / 4)`` for q = 1..4.

    >>> choose_stages([2, 4, 8, 16, 32])
    (1, 2, 3, 4)
    >>> choose_stages([1, 1, 2, 4]), choose_stages([16] * 12)
    ((1, 2, 3), (2, 5, 8, 11))
    """
    depth = len(reductions)
    if len(set(reductions)) == 1:
        return tuple(
            sorted({-(-depth * quarter // NUM_STAGES) - 1 for quarter in range(1, NUM_STAGES + 1)})
        )
    last = {reduction: index for index, reduction in enumerate(reductions)}
    return tuple(sorted(last.values())[-NUM_STAGES:])


@dataclass(frozen=True)
class _Pass:
    """The forward pass: model, image, logits, and everything that the hooks
    recorded.
    """

    model: Any
    image: Tensor
    logits: Tensor
    recorder: Recorder
    names: dict[nn.Module, str]


def plan_taps(model: nn.Module, image: Tensor, attention_blocks: int) -> TapPlan:
    """Run `model` on one image ``[1, C, H, W]``, in eval mode, without gradients and
    without changing its state.

    Raises `RequestError` if the model does not return logits ``[1, K]``.
    """
    if isinstance(model, LogitsOnly):
        others = (each.name for each in fields(Outputs) if each.name != "logits")
        return TapPlan(missing=dict.fromkeys(others, model.reason))
    names = {module: name for name, module in model.named_modules()}
    plan = TapPlan()
    with freeze_state(model):
        with Recorder() as recorder:
            recorder.watch_output(names)
            recorder.watch_input(
                {
                    *find_classifiers(model),
                    *(module for module in names if isinstance(module, nn.Linear)),
                }
            )
            logits = unwrap_compiled(model)(image)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            output = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise RequestError(
                f"{type(model).__name__} returns {output} for one image; expected logits"
                " [1, classes] as one tensor."
            )
        run = _Pass(model, image, logits, recorder, names)
        _find_head(plan, run)
        if not _find_intermediates(plan, run, attention_blocks):
            _find_maps(plan, run)
    return plan


def _find_head(plan: TapPlan, run: _Pass) -> None:
    classifiers = find_classifiers(run.model)
    if not classifiers:
        classifiers = find_output_layer(run.recorder, run.logits)
        plan.heads = tuple(run.names[module] for module in classifiers)
    head = read_head(classifiers, run.recorder, find_shares(run.model))
    if head is None:
        plan.missing |= dict.fromkeys(
            ("embedding", "classifier"),
            "no linear classifier that maps one vector per image to the logits was found",
        )
    elif not _is_equal(head[1](head[0]), run.logits):
        plan.missing["classifier"] = (
            "the logits are not the classifier's output alone (an auxiliary head is added)"
        )


def _is_equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool(
        (ours - theirs).abs().max() <= 0.01 * theirs.abs().max() + 1e-6
    )


def _find_intermediates(plan: TapPlan, run: _Pass, attention_blocks: int) -> bool:
    """Fill in the fields that timm's ``forward_intermediates`` provides. Returns False
    if the method is missing, or its result leads to other logits.
    """
    model = run.model
    if not (
        hasattr(model, "forward_intermediates")
        and hasattr(model, "forward_head")
        and hasattr(model, "feature_info")
    ):
        return False
    with Recorder() as recorder, AttentionRecorder() as attention:
        recorder.watch_output(
            module for module in run.names if type(module).__module__ in _ACTIVATIONS
        )
        last, maps = model.forward_intermediates(run.image, output_fmt="NCHW")
        matches = _is_equal(model.forward_head(last), run.logits)
    if not matches:
        return False
    strides = [info["reduction"] for info in model.feature_info]
    plan.indices = choose_stages(
        strides if len(strides) == len(maps) else [-one.shape[-1] * one.shape[-2] for one in maps]
    )
    chosen = [maps[index] for index in plan.indices]
    plan.pre_activation = _find_activations(chosen, recorder, run.names)
    _find_tokens(plan, run, chosen)
    _find_attention(plan, run, attention, attention_blocks, chosen[-1])
    return True


def _find_activations(
    maps: list[Tensor], recorder: Recorder, names: dict[nn.Module, str]
) -> tuple[str, ...]:
    """Return the activation modules that produced the maps. Their inputs are the maps
    before the activation.
    """
    sources = {
        id(output): names[module]
        for module, output in recorder.outputs.items()
        if type(module).__module__ in _ACTIVATIONS
    }
    return tuple(sources[id(one)] for one in maps if id(one) in sources)


def _find_tokens(plan: TapPlan, run: _Pass, maps: list[Tensor]) -> None:
    if len({one.shape for one in maps}) > 1 or not _returns_rows(run.model, run.image):
        plan.missing["tokens"] = (
            "the blocks do not share one sequence of tokens from first to last (the model is a CNN"
            " or a pyramid)"
        )
    # Some models without prefix tokens fail if return_prefix_tokens is set.
    has_prefix = bool(getattr(run.model, "num_prefix_tokens", 0))
    plan.has_prefix = (
        has_prefix
        and "return_prefix_tokens" in inspect.signature(run.model.forward_intermediates).parameters
    )


def _returns_rows(model: Any, image: Tensor) -> bool:
    try:
        model.forward_intermediates(image, indices=1, output_fmt="NLC", intermediates_only=True)
    except AssertionError:
        return False
    return True


def _find_attention(
    plan: TapPlan, run: _Pass, attention: AttentionRecorder, blocks: int, last: Tensor
) -> None:
    patches = last.shape[-2] * last.shape[-1]
    # PiT has the attribute under its older name.
    prefix = getattr(run.model, "num_prefix_tokens", getattr(run.model, "num_tokens", 0))
    if any(isinstance(module, XCA) for module in run.names):
        plan.missing["attention"] = (
            "the model attends to channels, not to tokens (cross-covariance attention)"
        )
        return
    plan.attention = find_global_calls(
        attention.calls, blocks, patches=patches, prefixes={0, prefix}
    )
    if not plan.attention:
        plan.missing["attention"] = _explain_no_attention(attention)
        return
    plan.num_prefix = attention.calls[plan.attention[-1]].query.shape[2] - patches


def _explain_no_attention(attention: AttentionRecorder) -> str:
    if not attention.calls:
        return (
            "the model does not call torch's scaled_dot_product_attention, where query, key and"
            " value are read"
        )
    return (
        "the last blocks have no global self-attention, where every token attends to every other"
        " (windows, fewer or shared keys, folded heads)"
    )


def _find_maps(plan: TapPlan, run: _Pass) -> None:
    """Find the stages of a module without timm's interface: 4-d outputs grouped by
    size, the last of each size. Pooled 1x1 maps count only if there are no others.
    """
    outputs = {
        module: output for module, output in run.recorder.outputs.items() if output.dim() == 4
    }
    sizes = {module: output.shape[-2] * output.shape[-1] for module, output in outputs.items()}
    if max(sizes.values(), default=0) > 1:
        sizes = {module: size for module, size in sizes.items() if size > 1}
    modules = list(sizes)
    stages = (
        [modules[index] for index in choose_stages([-size for size in sizes.values()])]
        if sizes
        else []
    )
    plan.maps = tuple(run.names[module] for module in stages)
    plan.pre_activation = _find_activations(
        [outputs[module] for module in stages], run.recorder, run.names
    )
    if not stages:
        plan.missing["features"] = "no module returns a map [B, C, H, W]"
    plan.missing |= dict.fromkeys(
        ("tokens", "attention"),
        "the model has no forward_intermediates, from which the tokens of timm's transformers are"
        " read",
    )
