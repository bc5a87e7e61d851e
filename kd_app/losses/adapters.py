"""Parts shared by adapters, and a model's classifier applied to other embeddings."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from kd_app.models.heads import Head


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of maps [B, C, H, W] that also accepts one image with one cell: such a
    batch has no variance, so the running statistics are used.
    """

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        if x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def apply_classifier(
    classifier: Callable[[Tensor], Tensor], embedding: Float[Tensor, "batch width"]
) -> Float[Tensor, "batch classes"]:
    """Return the logits of an embedding. The classifier's weights are cast to the
    precision of the embedding.
    """
    if isinstance(classifier, Head):
        return match_precision(classifier)(embedding)
    return _apply_in_precision_of_input(classifier, embedding)


def match_precision(head: Head) -> Head:
    """Return a head whose weights are cast to the precision of the input."""
    classifiers = (partial(_apply_in_precision_of_input, each) for each in head.classifiers)
    return replace(head, classifiers=tuple(classifiers))


def _apply_in_precision_of_input(classifier: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not isinstance(classifier, nn.Module):
        return classifier(x)
    state = {**dict(classifier.named_parameters()), **dict(classifier.named_buffers())}
    logits: Tensor = functional_call(
        classifier,
        {name: w.to(x.dtype) if w.is_floating_point() else w for name, w in state.items()},
        (x,),
    )
    return logits
