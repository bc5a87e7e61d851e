"""A model's classifier as a function from the embedding to the logits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.classifier import ClassifierHead, NormMlpClassifierHead
from timm.models.efficientvim import EfficientViM, EfficientViMDistilled
from torch import Tensor, nn

from kd_app.models.hooks import Recorder

Embedding = Float[Tensor, "batch width"]
Logits = Float[Tensor, "batch classes"]


@dataclass(frozen=True)
class Head:
    """The mean of several classifiers (distilled DeiT, LeViT, CrossViT), a sum weighted
    by `shares` (EfficientViM), or a classifier that is a 1x1 convolution.

    `widths`: widths of the parts of the embedding, one per classifier; a single width
    if all classifiers read the same vector. `shares`: returns the weights of the
    classifiers, ``[classifiers]``; None: equal weights.
    """

    classifiers: tuple[Callable[[Tensor], Tensor], ...]
    widths: tuple[int, ...]
    convolutional: bool
    shares: Callable[[], Tensor] | None = None

    def __call__(self, embedding: Embedding) -> Logits:
        """Return logits ``[B, K]`` of an embedding ``[B, sum(widths)]``."""
        logits = self.apply_each(embedding)
        if self.shares is not None:
            return torch.einsum("n,nbk->bk", self.shares().to(logits[0].dtype), torch.stack(logits))
        return logits[0] if len(logits) == 1 else torch.stack(logits).mean(dim=0)

    def apply_each(self, embedding: Embedding) -> list[Logits]:
        """Return the logits of each classifier."""
        shaped = embedding[:, :, None, None] if self.convolutional else embedding
        parts = (
            torch.split(shaped, list(self.widths), dim=1)
            if len(self.widths) > 1
            else (shaped,) * len(self.classifiers)
        )
        return [
            classifier(part).flatten(1)
            for classifier, part in zip(self.classifiers, parts, strict=True)
        ]


def find_classifiers(model: Any) -> tuple[nn.Module, ...]:
    """Return the modules of timm's ``get_classifier()`` (several in distilled models),
    or nothing for a module without this method.
    """
    if not hasattr(model, "get_classifier"):
        return ()
    classifier = model.get_classifier()
    return tuple(
        head.fc if isinstance(head, ClassifierHead | NormMlpClassifierHead) else head
        for head in _flatten(classifier)
    )


def _flatten(classifier: Any) -> Iterator[nn.Module]:
    if isinstance(classifier, tuple | list | nn.ModuleList):
        for each in classifier:
            yield from _flatten(each)
    else:
        yield classifier


def find_shares(model: nn.Module) -> Callable[[], Tensor] | None:
    """Return a function that computes the learned weights of the classifiers, or None
    if all count the same.
    """
    if isinstance(model, EfficientViMDistilled):
        return lambda: torch.cat([model.weights.softmax(-1), model.weights_dist.softmax(-1)]) / 2
    return (lambda: model.weights.softmax(-1)) if isinstance(model, EfficientViM) else None


def find_output_layer(recorder: Recorder, logits: Tensor) -> tuple[nn.Module, ...]:
    """Return the last recorded ``nn.Linear`` whose output equals the logits, or
    nothing.
    """
    matching = [
        module
        for module, output in recorder.outputs.items()
        if isinstance(module, nn.Linear) and (output is logits or torch.equal(output, logits))
    ]
    return tuple(matching[-1:])


def read_head(
    classifiers: tuple[nn.Module, ...],
    recorder: Recorder,
    shares: Callable[[], Tensor] | None = None,
) -> tuple[Tensor, nn.Module | Head] | None:
    """Return the embedding ``[B, D]`` and the function from embedding to logits, or
    None if a classifier did not run on one vector per image.
    """
    inputs = [recorder.inputs.get(classifier) for classifier in classifiers]
    vectors = [x for x in inputs if x is not None and x[0].numel() == x.shape[1]]
    if not vectors or len(vectors) < len(classifiers):
        return None
    if all(x is vectors[0] for x in vectors):
        vectors = vectors[:1]
    embedding = torch.cat([x.flatten(1) for x in vectors], dim=1)
    convolutional = vectors[0].dim() > 2
    if len(classifiers) == 1 and not convolutional:
        return embedding, classifiers[0]
    widths = tuple(x.shape[1] for x in vectors)
    return embedding, Head(classifiers, widths, convolutional, shares)
