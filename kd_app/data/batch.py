"""`Batch`, the input of one training or evaluation step."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class Batch:
    """One batch of one view of the images.

    image: ``[B, C, H, W]``; uint8 from the loader, later float on the device,
    normalized for the *student*. target: ``[B]`` int64 class numbers (-1: no label), or
    ``[B, K]`` float class shares for mixed labels (NaN: no label). index: ``[B]``
    int64, the number of each image in its source, which never changes. view: number of
    the view; view, index and ``data.seed`` determine every pixel. labeled: ``[B]``
    bool; None: every image has a label. progress: completed share of the training, 0
    to 1. other: same shape as image; for each image another image, which the teacher
    sees in its place, or a second view of it (see `PartnerKind`); None: none.
    other_index: ``[B]`` int64, the image numbers of other.
    """

    image: Tensor
    target: Tensor
    index: Tensor
    view: int = 0
    labeled: Tensor | None = None
    progress: float = 0.0
    other: Tensor | None = None
    other_index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`; copies from pinned memory are asynchronous."""
        if self.image.device == device:
            return self
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def to_hard_target(self) -> Tensor:
        """Return ``[B]`` int64: the label, or the largest class of mixed labels."""
        return self.target if self.target.dim() == 1 else self.target.argmax(dim=1)
