"""One measured pass over one image: what can be read of a model, and where it is found."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from timm.models.xcit import XCA
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.models.attention_recorder import Attended, last_calls
from kd_app.models.heads import find_shares, last_linear, own_classifiers, read_head
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
    """Where the fields of `Outputs` are found in one model; modules by name, calls of
    attention by number, stages shallow to deep.

    indices: what to ask of ``forward_intermediates``; empty where the model has none to
    rely on, and `maps` names modules to hook instead. lacks: fields that the model
    can't give, and why.
    """

    indices: tuple[int, ...] = ()
    maps: tuple[str, ...] = ()
    pre_activation: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    attention: tuple[int, ...] = ()
    num_prefix: int = 0
    gives_prefix: bool = False
    lacks: dict[str, str] = field(default_factory=dict)


def choose_stages(reductions: Sequence[int]) -> tuple[int, ...]:
    """Which maps stand for the stages of a model, given each map's stride.

    Maps of several strides: the last map of each stride, of which the four deepest. All
    of one stride (ViT, Mixer): the blocks at the ends of four equal parts of the depth,
    ``ceil(depth * q / 4)`` for q = 1..4.

    >>> choose_stages([2, 4, 8, 16, 32]), choose_stages([1, 1, 2, 4]),
    choose_stages([16] * 12)
    ((1, 2, 3, 4), (1, 2, 3), (2, 5, 8, 11))
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
    """The measured pass: what ran on which image, what came out, and what the hooks
    saw.
    """

    model: Any
    image: Tensor
    logits: Tensor
    seen: Recorder
    names: dict[nn.Module, str]


def plan_taps(model: nn.Module, image: Tensor, attention_blocks: int) -> TapPlan:
    """Run `model` in eval mode, without gradients and without a trace, on one image
    ``[1, C, H, W]`` as it is fed.

    Raises `RequestError` where the model gives no logits ``[1, K]``.
    """
    if isinstance(model, LogitsOnly):
        return TapPlan(
            lacks=dict.fromkeys(
                (each.name for each in fields(Outputs) if each.name != "logits"), model.why
            )
        )
    names = {module: name for name, module in model.named_modules()}
    found = TapPlan()
    with freeze_state(model):
        with Recorder() as seen:
            seen.watch_output(names)
            seen.watch_input(
                {
                    *own_classifiers(model),
                    *(module for module in names if isinstance(module, nn.Linear)),
                }
            )
            logits = unwrap_compiled(model)(image)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise RequestError(
                f"{type(model).__name__} gives {what} for one image; expected logits [1, classes]"
                " as one tensor."
            )
        run = _Pass(model, image, logits, seen, names)
        _find_head(found, run)
        if not _find_intermediates(found, run, attention_blocks):
            _find_maps(found, run)
    return found


def _find_head(found: TapPlan, run: _Pass) -> None:
    classifiers = own_classifiers(run.model)
    if not classifiers:
        classifiers = last_linear(run.seen, run.logits)
        found.heads = tuple(run.names[module] for module in classifiers)
    read = read_head(classifiers, run.seen, find_shares(run.model))
    if read is None:
        found.lacks |= dict.fromkeys(
            ("embedding", "classifier"),
            "no linear classifier that turns one vector an image into the logits was found",
        )
    elif not _is_equal(read[1](read[0]), run.logits):
        found.lacks["classifier"] = (
            "its logits are more than its classifier's output (an auxiliary head is added)"
        )


def _is_equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool(
        (ours - theirs).abs().max() <= 0.01 * theirs.abs().max() + 1e-6
    )


def _find_intermediates(found: TapPlan, run: _Pass, attention_blocks: int) -> bool:
    """Fill in what timm's ``forward_intermediates`` gives, if it is there and leads to
    the same logits.
    """
    model = run.model
    if not (
        hasattr(model, "forward_intermediates")
        and hasattr(model, "forward_head")
        and hasattr(model, "feature_info")
    ):
        return False
    with Recorder() as seen, Attended() as attended:
        seen.watch_output(module for module in run.names if type(module).__module__ in _ACTIVATIONS)
        last, maps = model.forward_intermediates(run.image, output_fmt="NCHW")
        same = _is_equal(model.forward_head(last), run.logits)
    if not same:
        return False
    strides = [info["reduction"] for info in model.feature_info]
    found.indices = choose_stages(
        strides if len(strides) == len(maps) else [-one.shape[-1] * one.shape[-2] for one in maps]
    )
    chosen = [maps[index] for index in found.indices]
    found.pre_activation = _find_activations(chosen, seen, run.names)
    _find_tokens(found, run, chosen)
    _find_attention(found, run, attended, attention_blocks, chosen[-1])
    return True


def _find_activations(
    maps: list[Tensor], seen: Recorder, names: dict[nn.Module, str]
) -> tuple[str, ...]:
    """Activation modules that made the maps; their inputs are the maps before the
    activation.
    """
    made = {
        id(output): names[module]
        for module, output in seen.left.items()
        if type(module).__module__ in _ACTIVATIONS
    }
    return tuple(made[id(one)] for one in maps if id(one) in made)


def _find_tokens(found: TapPlan, run: _Pass, maps: list[Tensor]) -> None:
    if len({one.shape for one in maps}) > 1 or not _returns_rows(run.model, run.image):
        found.lacks["tokens"] = (
            "its blocks do not hand on one row of tokens from first to last (it is a CNN or a"
            " pyramid)"
        )
    # Some models (relative positions) fail when they are asked for a prefix and have none.
    has_prefix = bool(getattr(run.model, "num_prefix_tokens", 0))
    found.gives_prefix = (
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
    found: TapPlan, run: _Pass, attended: Attended, blocks: int, last: Tensor
) -> None:
    patches = last.shape[-2] * last.shape[-1]
    prefix = getattr(
        run.model, "num_prefix_tokens", getattr(run.model, "num_tokens", 0)
    )  # PiT has the older name
    if any(isinstance(module, XCA) for module in run.names):
        found.lacks["attention"] = (
            "it attends to channels, not to tokens (cross-covariance attention)"
        )
        return
    found.attention = last_calls(attended.calls, blocks, patches=patches, prefixes={0, prefix})
    if not found.attention:
        found.lacks["attention"] = _explain_no_attention(attended)
        return
    found.num_prefix = attended.calls[found.attention[-1]].query.shape[2] - patches


def _explain_no_attention(attended: Attended) -> str:
    if not attended.calls:
        return (
            "it calls no scaled_dot_product_attention, by which torch's fused attention shows"
            " query, key and value"
        )
    return (
        "its last blocks have no global self-attention, where every token attends to every other"
        " (windows, fewer or shared keys, folded heads)"
    )


def _find_maps(found: TapPlan, run: _Pass) -> None:
    """Stages of any module: 4-d outputs grouped by size, of each the last in the run;
    pooled 1x1 maps don't count where there are others.
    """
    outputs = {module: output for module, output in run.seen.left.items() if output.dim() == 4}
    sizes = {module: output.shape[-2] * output.shape[-1] for module, output in outputs.items()}
    if max(sizes.values(), default=0) > 1:
        sizes = {module: size for module, size in sizes.items() if size > 1}
    modules = list(sizes)
    stages = (
        [modules[index] for index in choose_stages([-size for size in sizes.values()])]
        if sizes
        else []
    )
    found.maps = tuple(run.names[module] for module in stages)
    found.pre_activation = _find_activations(
        [outputs[module] for module in stages], run.seen, run.names
    )
    if not stages:
        found.lacks["features"] = "none of its modules gives a map [B, C, H, W]"
    found.lacks |= dict.fromkeys(
        ("tokens", "attention"),
        "it has no forward_intermediates, by which timm's transformers show their tokens",
    )
