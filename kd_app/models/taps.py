"""Read what the chosen loss terms need from one forward pass of any model."""

from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from kd_app.config import RequestError, build_unknown_error
from kd_app.models.attention_recorder import Attended
from kd_app.models.class_map import Mapped
from kd_app.models.heads import find_shares, own_classifiers, read_head
from kd_app.models.hooks import Recorder, unwrap_compiled
from kd_app.models.outputs import Outputs, Tokens
from kd_app.models.tap_plan import TapPlan, plan_taps

_INSTEAD = "Terms that read logits alone: soft_target, decoupled, dist."
_FIELDS = frozenset(f.name for f in fields(Outputs))
_HEAD = frozenset({"embedding", "classifier"})
_MAPS = frozenset({"features", "tokens"})


class Taps:
    """``taps(image)`` runs `model` once and gives `Outputs` with the fields named in
    `reads` filled, each with its gradient.

    Reading the logits alone is ``model(image)`` and nothing else. For more, the first
    call measures the model on one image, in eval mode and without a trace; hooks live
    only as long as a call. The model is not owned: no submodule, no state, no mode; a
    deep copy of both keeps them together.

    ===============
    ============================================================================================================================
    field            what it holds
    ===============
    ============================================================================================================================
    logits           the logits, equal to ``model(image)``
    embedding        input of the classifier (behind its dropout):
    ``classifier(embedding) == logits``. Where two heads read two tokens (distilled
                     DeiT), both tokens side by side, ``[B, 2 D]``
    classifier       the classifier module itself, or the mean of the heads
    features         maps of several strides: the last of each, of which the four
    deepest; all of one stride (ViT, Mixer): the tokens laid on their
                     grid, behind the blocks at the ends of four equal parts of the
                     depth. Not normalized
    pre_activation   for each of these maps that an activation made (post-activation
    nets): what went into it; for other nets the list is empty
    tokens           the tokens behind the same blocks, where one row of tokens runs
    through the net
    attention        query, key and value of the last `attention_blocks` blocks, shallow
    to deep, as the model's fused attention is called on them (so
                     behind q/k norms and rotary embeddings), and what it adds to the
                     scores. ``[-1]`` is the last block
    ===============
    ============================================================================================================================

    For a module that is not of timm, `features` are 4-d outputs of its modules, the
    last of each size, and the classifier is the last ``nn.Linear``, whose output are
    the logits. A model that was compiled by ``model.compile()`` runs as plain code when
    more than the logits is read.

    Raises `RequestError` for an unknown field, and at the first call for a field that
    the model can't give: why, and which it can.
    """

    def __init__(
        self, model: nn.Module, reads: frozenset[str], *, attention_blocks: int = 1
    ) -> None:
        for name in reads - _FIELDS:
            raise build_unknown_error("field of Outputs", name, _FIELDS)
        self.model = model.inner if isinstance(model, Mapped) else model
        self._mapping = model.mapping if isinstance(model, Mapped) else None
        self.reads = reads
        self.attention_blocks = attention_blocks
        self._survey: TapPlan | None = None

    def __call__(self, image: Float[Tensor, "batch channels height width"]) -> Outputs:
        """`Outputs` of normalized images, as the model expects them."""
        outputs = self._collect_outputs(image)
        return outputs if self._mapping is None else _map_classes(outputs, self._mapping)

    def _collect_outputs(self, image: Tensor) -> Outputs:
        if self.reads == {"logits"}:
            return Outputs(logits=self.model(image))
        if self._survey is None:
            self._survey = self._measure(image)
        return self._read(image, self._survey)

    def _measure(self, image: Tensor) -> TapPlan:
        found = plan_taps(self.model, image[:1], self.attention_blocks)
        missing = {name: why for name, why in found.lacks.items() if name in self.reads}
        if missing:
            given = ", ".join(sorted(_FIELDS - found.lacks.keys()))
            reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
            raise RequestError(
                f"{type(self.model).__name__} can't give what a loss term reads ({reasons}). It can"
                f" give: {given}. {_INSTEAD}"
            )
        return found

    def _read(self, image: Tensor, found: TapPlan) -> Outputs:
        outputs = Outputs()
        with Recorder() as seen:
            classifiers = self._find_modules(found.heads) or own_classifiers(self.model)
            if self.reads & _HEAD:
                seen.watch_input(classifiers)
            before = (
                self._find_modules(found.pre_activation) if "pre_activation" in self.reads else ()
            )
            seen.watch_input(before, clone=True)
            with (
                Attended(found.attention) if "attention" in self.reads else nullcontext()
            ) as attended:
                self._run(image, found, seen, outputs)
        outputs.pre_activation = [seen.entered[module] for module in before]
        if attended is not None:
            outputs.attention = [
                attended.calls[number]._replace(num_prefix=found.num_prefix)
                for number in found.attention
            ]
        if self.reads & _HEAD:
            head = read_head(classifiers, seen, find_shares(self.model))
            assert head is not None, "The classifier ran in the measured pass and not in this one."
            outputs.embedding = head[0] if "embedding" in self.reads else None
            outputs.classifier = head[1] if "classifier" in self.reads else None
        return outputs

    def _run(self, image: Tensor, found: TapPlan, seen: Recorder, outputs: Outputs) -> None:
        """The one pass; fills logits, features and tokens."""
        if found.indices and self.reads & _MAPS:
            logits = self._run_by_stages(image, found, outputs)
        else:
            stages = self._find_modules(found.maps) if "features" in self.reads else ()
            seen.watch_output(stages)
            logits = unwrap_compiled(self.model)(image)
            outputs.features = [seen.left[module] for module in stages]
        if "logits" in self.reads:
            outputs.logits = logits

    def _run_by_stages(self, image: Tensor, found: TapPlan, outputs: Outputs) -> Tensor | None:
        """The pass through ``forward_intermediates``, whose maps are NCHW for every
        timm model; the head only where it is needed.
        """
        model: Any = self.model
        headless = not self.reads & (_HEAD | {"logits"})
        prefix = (
            {"return_prefix_tokens": True} if "tokens" in self.reads and found.gives_prefix else {}
        )
        answer = model.forward_intermediates(
            image,
            indices=list(found.indices),
            output_fmt="NCHW",
            intermediates_only=headless,
            **prefix,
        )
        last, stages = (None, answer) if headless else answer
        pairs = [stage if isinstance(stage, tuple) else (stage, None) for stage in stages]
        if "features" in self.reads:
            outputs.features = [grid for grid, _ in pairs]
        if "tokens" in self.reads:
            outputs.tokens = [_split_tokens(grid, before) for grid, before in pairs]
        return None if headless else model.forward_head(last)

    def _find_modules(self, names: tuple[str, ...]) -> tuple[nn.Module, ...]:
        return tuple(self.model.get_submodule(name) for name in names)


def _map_classes(outputs: Outputs, mapping: nn.Module) -> Outputs:
    """With logits, and a classifier, of the classes that the model's own are mapped to."""
    classifier = outputs.classifier
    return replace(
        outputs,
        logits=None if outputs.logits is None else mapping(outputs.logits),
        classifier=None if classifier is None else lambda embedding: mapping(classifier(embedding)),
    )


def _split_tokens(grid: Tensor, prefix: Tensor | None) -> Tokens:
    patch = grid.flatten(2).transpose(1, 2)
    return Tokens(patch, patch[:, :0] if prefix is None else prefix)
