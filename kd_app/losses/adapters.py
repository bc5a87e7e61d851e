"""What the adapters of several terms are made of, and the use of a model's own
classifier on other embeddings.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from kd_app.models.heads import Head


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of maps [B, C, H, W] that can be asked about one image of one cell,
    too: that has no variance, and the running figures serve.
    """

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """The normalized map."""
        if x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def apply_classifier(
    classifier: Callable[[Tensor], Tensor], embedding: Float[Tensor, "batch width"]
) -> Float[Tensor, "batch classes"]:
    """The logits of an embedding, by a classifier whose weights are used in the
    precision of the embedding.
    """
    return (
        match_precision(classifier)(embedding)
        if isinstance(classifier, Head)
        else _apply_in_own_precision(classifier, embedding)
    )


def match_precision(head: Head) -> Head:
    """The same head, whose weights are used in the precision of what it reads."""
    return replace(
        head, classifiers=tuple(partial(_apply_in_own_precision, one) for one in head.classifiers)
    )


def _apply_in_own_precision(classifier: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not isinstance(classifier, nn.Module):
        return classifier(x)
    state = {**dict(classifier.named_parameters()), **dict(classifier.named_buffers())}
    logits: Tensor = functional_call(
        classifier,
        {name: w.to(x.dtype) if w.is_floating_point() else w for name, w in state.items()},
        (x,),
    )
    return logits
