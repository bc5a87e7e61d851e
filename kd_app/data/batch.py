"""What one training or evaluation step is given."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """One batch of one view of the images.

    image: ``[B, C, H, W]``, uint8 as the loader gives it, float and normalized as the
    *student* expects once it is on the device. target: ``[B]`` int64 class numbers, -1
    where there is none, or ``[B, K]`` float shares of classes (mixed labels), NaN where
    there are none. index: ``[B]`` int64, the image's number in its source: names the
    image for ever. view: number of the view (the epoch); with ``data.seed`` and
    ``index`` it determines every pixel. labeled: ``[B]`` bool, or None when every image
    has a label. progress: share of the training that is done, 0 to 1. other: like
    image: for each image another one of its class, which the teacher is shown in its
    place; None where it is shown the image itself. other_index: ``[B]`` int64, the
    numbers of those.
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
        """The same batch on `device` (copies overlap with compute where the memory is
        pinned).
        """
        if self.image.device == device:
            return self
        parts = {name: part for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(
            self,
            **{name: part.to(device, non_blocking=True) for name, part in parts.items()},  # type: ignore[arg-type]
        )

    def to_hard_target(self) -> Tensor:
        """``[B]`` int64: the label, or the class with the largest share where labels
        are mixed.
        """
        return self.target if self.target.dim() == 1 else self.target.argmax(dim=1)
