"""Read the outputs that loss terms need from one forward pass of any model."""

from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from kd_app.config import RequestError, build_unknown_error
from kd_app.models.attention_recorder import AttentionRecorder
from kd_app.models.class_map import ClassMappedModel
from kd_app.models.heads import find_classifiers, find_shares, read_head
from kd_app.models.hooks import Recorder, unwrap_compiled
from kd_app.models.outputs import Outputs, Tokens
from kd_app.models.tap_plan import TapPlan, plan_taps

_ALTERNATIVES = (
    "Terms that read only logits: soft_target, decoupled, dist; only embeddings: embedding_cosine,"
    " pkt."
)
_FIELDS = frozenset(f.name for f in fields(Outputs))
_HEAD = frozenset({"embedding", "classifier"})
_MAPS = frozenset({"features", "tokens"})


class Taps:
    """``taps(image)`` runs `model` once and returns `Outputs` with the fields named in
    `reads`, each with its gradient.

    If only logits are read, the call is ``model(image)`` and nothing else. Otherwise
    the first call also runs the model on one image, in eval mode and without changing
    its state, to find the fields. Hooks exist only during a call. `Taps` owns no
    submodule, state or mode; a deep copy of model and taps keeps them together.

    ===============  ===============================================================
    field            content
    ===============  ===============================================================
    logits           the logits, equal to ``model(image)``
    embedding        input of the classifier (after dropout):
                     ``classifier(embedding) == logits``. With two heads on two
                     tokens (distilled DeiT), both tokens concatenated, ``[B, 2 D]``
    classifier       the classifier module, or the mean of several heads
    features         feature maps, not normalized. With several strides: the last
                     map of each stride, at most the four deepest. With one stride
                     (ViT, Mixer): the tokens on their grid, after the blocks at the
                     ends of four equal parts of the depth
    pre_activation   for each map produced by an activation (post-activation nets):
                     the input of the activation; empty for other nets
    tokens           the tokens after the same blocks, if one sequence of tokens runs
                     through the net
    attention        query, key and value of the last `attention_blocks` blocks,
                     shallow to deep, as passed to fused attention (after q/k norms
                     and rotary embeddings), and the bias of the scores. ``[-1]`` is
                     the last block
    ===============  ===============================================================

    For a module without timm's interface, `features` are the 4-d outputs of submodules,
    the last of each size, and the classifier is the last ``nn.Linear`` whose output
    equals the logits. After ``model.compile()``, the model runs uncompiled if more than
    the logits is read.

    Raises `RequestError` for an unknown field, and on the first call for a field that
    the model can't provide, with the reason and the available fields.
    """

    def __init__(
        self, model: nn.Module, reads: frozenset[str], *, attention_blocks: int = 1
    ) -> None:
        for name in reads - _FIELDS:
            raise build_unknown_error("field of Outputs", name, _FIELDS)
        self.model = model.inner if isinstance(model, ClassMappedModel) else model
        self._mapping = model.mapping if isinstance(model, ClassMappedModel) else None
        self.reads = reads
        self.attention_blocks = attention_blocks
        self._plan: TapPlan | None = None

    def __call__(self, image: Float[Tensor, "batch channels height width"]) -> Outputs:
        """Return `Outputs` for images normalized for this model."""
        outputs = self._collect_outputs(image)
        return outputs if self._mapping is None else _map_classes(outputs, self._mapping)

    def _collect_outputs(self, image: Tensor) -> Outputs:
        if self.reads == {"logits"}:
            return Outputs(logits=self.model(image))
        if self._plan is None:
            self._plan = self._make_plan(image)
        return self._read(image, self._plan)

    def _make_plan(self, image: Tensor) -> TapPlan:
        plan = plan_taps(self.model, image[:1], self.attention_blocks)
        missing = {name: reason for name, reason in plan.missing.items() if name in self.reads}
        if missing:
            available = ", ".join(sorted(_FIELDS - plan.missing.keys()))
            reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
            raise RequestError(
                f"{type(self.model).__name__} lacks outputs that a loss term reads ({reasons})."
                f" Available: {available}. {_ALTERNATIVES}"
            )
        return plan

    def _read(self, image: Tensor, plan: TapPlan) -> Outputs:
        outputs = Outputs()
        with Recorder() as recorder:
            classifiers = self._find_modules(plan.heads) or find_classifiers(self.model)
            if self.reads & _HEAD:
                recorder.watch_input(classifiers)
            before = (
                self._find_modules(plan.pre_activation) if "pre_activation" in self.reads else ()
            )
            recorder.watch_input(before, clone=True)
            with (
                AttentionRecorder(plan.attention) if "attention" in self.reads else nullcontext()
            ) as attention:
                self._run(image, plan, recorder, outputs)
        outputs.pre_activation = [recorder.inputs[module] for module in before]
        if attention is not None:
            outputs.attention = [
                attention.calls[number]._replace(num_prefix=plan.num_prefix)
                for number in plan.attention
            ]
        if self.reads & _HEAD:
            head = read_head(classifiers, recorder, find_shares(self.model))
            assert head is not None, "The classifier ran in the planning pass and not in this one."
            outputs.embedding = head[0] if "embedding" in self.reads else None
            outputs.classifier = head[1] if "classifier" in self.reads else None
        return outputs

    def _run(self, image: Tensor, plan: TapPlan, recorder: Recorder, outputs: Outputs) -> None:
        """Run the forward pass; fill logits, features and tokens."""
        if plan.indices and self.reads & _MAPS:
            logits = self._run_by_stages(image, plan, outputs)
        else:
            stages = self._find_modules(plan.maps) if "features" in self.reads else ()
            recorder.watch_output(stages)
            logits = unwrap_compiled(self.model)(image)
            outputs.features = [recorder.outputs[module] for module in stages]
        if "logits" in self.reads:
            outputs.logits = logits

    def _run_by_stages(self, image: Tensor, plan: TapPlan, outputs: Outputs) -> Tensor | None:
        """Run ``forward_intermediates``, which returns NCHW maps for every timm model,
        and the head only if it is needed.
        """
        model: Any = self.model
        headless = not self.reads & (_HEAD | {"logits"})
        prefix = (
            {"return_prefix_tokens": True} if "tokens" in self.reads and plan.has_prefix else {}
        )
        result = model.forward_intermediates(
            image,
            indices=list(plan.indices),
            output_fmt="NCHW",
            intermediates_only=headless,
            **prefix,
        )
        last, stages = (None, result) if headless else result
        pairs = [stage if isinstance(stage, tuple) else (stage, None) for stage in stages]
        if "features" in self.reads:
            outputs.features = [grid for grid, _ in pairs]
        if "tokens" in self.reads:
            outputs.tokens = [_split_tokens(grid, before) for grid, before in pairs]
        return None if headless else model.forward_head(last)

    def _find_modules(self, names: tuple[str, ...]) -> tuple[nn.Module, ...]:
        return tuple(self.model.get_submodule(name) for name in names)


def _map_classes(outputs: Outputs, mapping: nn.Module) -> Outputs:
    """Map logits and classifier to the data's classes."""
    classifier = outputs.classifier
    return replace(
        outputs,
        logits=None if outputs.logits is None else mapping(outputs.logits),
        classifier=None if classifier is None else lambda embedding: mapping(classifier(embedding)),
    )


def _split_tokens(grid: Tensor, prefix: Tensor | None) -> Tokens:
    patch = grid.flatten(2).transpose(1, 2)
    return Tokens(patch, patch[:, :0] if prefix is None else prefix)
