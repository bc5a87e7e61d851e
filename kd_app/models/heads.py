"""A model's own classifier, as a function from the embedding to the logits."""

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
    """The mean of several classifiers (distilled DeiT, LeViT, CrossViT), or their sum
    by `shares` (EfficientViM), or one that is a 1x1 convolution.

    `widths` are those of the parts of the embedding, one for each classifier; a single
    width where all of them read the same vector. `shares` gives what each classifier
    counts, ``[classifiers]``; None: all the same.
    """

    classifiers: tuple[Callable[[Tensor], Tensor], ...]
    widths: tuple[int, ...]
    convolutional: bool
    shares: Callable[[], Tensor] | None = None

    def __call__(self, embedding: Embedding) -> Logits:
        """Logits ``[B, K]`` of an embedding ``[B, sum(widths)]``."""
        logits = self.apply_each(embedding)
        if self.shares is not None:
            return torch.einsum("n,nbk->bk", self.shares().to(logits[0].dtype), torch.stack(logits))
        return logits[0] if len(logits) == 1 else torch.stack(logits).mean(dim=0)

    def apply_each(self, embedding: Embedding) -> list[Logits]:
        """The logits of every classifier by itself."""
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


def own_classifiers(model: Any) -> tuple[nn.Module, ...]:
    """What timm's ``get_classifier()`` names (several in distilled models), or nothing
    for a module without it.
    """
    if not hasattr(model, "get_classifier"):
        return ()
    found = model.get_classifier()
    return tuple(
        head.fc if isinstance(head, ClassifierHead | NormMlpClassifierHead) else head
        for head in _flatten(found)
    )


def _flatten(found: Any) -> Iterator[nn.Module]:
    if isinstance(found, tuple | list | nn.ModuleList):
        for each in found:
            yield from _flatten(each)
    else:
        yield found


def find_shares(model: nn.Module) -> Callable[[], Tensor] | None:
    """What each of `own_classifiers` counts in the logits, where the model has learned
    it; None where all count the same.
    """
    if isinstance(model, EfficientViMDistilled):
        return lambda: torch.cat([model.weights.softmax(-1), model.weights_dist.softmax(-1)]) / 2
    return (lambda: model.weights.softmax(-1)) if isinstance(model, EfficientViM) else None


def last_linear(seen: Recorder, logits: Tensor) -> tuple[nn.Module, ...]:
    """The last recorded ``nn.Linear`` whose output are the logits, or nothing."""
    same = [
        module
        for module, output in seen.left.items()
        if isinstance(module, nn.Linear) and (output is logits or torch.equal(output, logits))
    ]
    return tuple(same[-1:])


def read_head(
    classifiers: tuple[nn.Module, ...], seen: Recorder, shares: Callable[[], Tensor] | None = None
) -> tuple[Tensor, nn.Module | Head] | None:
    """Embedding ``[B, D]`` and the function that makes the logits of it, or None where
    the classifiers were not run on one vector an image.
    """
    inputs = [seen.entered.get(classifier) for classifier in classifiers]
    vectors = [x for x in inputs if x is not None and x[0].numel() == x.shape[1]]
    if not vectors or len(vectors) < len(classifiers):
        return None
    if all(x is vectors[0] for x in vectors):
        vectors = vectors[:1]
    embedding = torch.cat([x.flatten(1) for x in vectors], dim=1)
    convolutional = vectors[0].dim() > 2
    if len(classifiers) == 1 and not convolutional:
        return embedding, classifiers[0]
    return embedding, Head(classifiers, tuple(x.shape[1] for x in vectors), convolutional, shares)
