"""The losses of the batches since the last logged point."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class NonFinite:
    """The first non-finite value: the term, the number of later batches, and the
    numbers of the batch's images (empty if the images have no numbers).
    """

    term: str
    batches_after: int
    images: list[int]


class LossWindow:
    """The loss, the values of the terms and the image numbers of each batch."""

    def __init__(self, terms: Sequence[str]) -> None:
        self._terms = tuple(terms)
        self._rows: list[Tensor] = []
        self._images: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, loss: Tensor, values: Mapping[str, Tensor], index: Tensor) -> None:
        """Add a batch, without a copy to the CPU."""
        self._rows.append(
            torch.stack([loss.detach(), *(value.detach() for value in values.values())])
        )
        self._images.append(index)

    def is_finite(self) -> bool:
        """Whether all values of all batches are finite."""
        return not self._rows or bool(torch.stack(self._rows).isfinite().all())

    def find_first_nonfinite(self) -> NonFinite:
        """Find the first non-finite term; values of later batches are consequences."""
        positions = (~torch.stack(self._rows)[:, 1:].isfinite()).nonzero().tolist()
        batch, term = next(iter(positions), (0, 0))
        images = [index for index in self._images[batch].tolist() if index >= 0]
        return NonFinite(self._terms[term], len(self) - 1 - batch, images)

    def compute_finite_means(self) -> dict[str, float]:
        """The mean of ``loss`` and of each term over the finite batches; empty if there
        is none.
        """
        rows = torch.stack(self._rows)
        rows = rows[rows.isfinite().all(dim=1)]
        if not len(rows):
            return {}
        return dict(zip(("loss", *self._terms), rows.mean(dim=0).tolist(), strict=True))

    def clear(self) -> None:
        """Drop all batches."""
        self._rows.clear()
        self._images.clear()

    def state_dict(self) -> dict[str, Any]:
        """The batches, for a checkpoint."""
        return {"rows": list(self._rows), "images": list(self._images)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned."""
        self._rows = [row.to(device) for row in state["rows"]]
        self._images = list(state["images"])
