"""A golden case: a function from arrays to a value, and to parameters with
gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from tests.losses.samples import labels

Arrays = dict[str, Tensor]
NO_LABELS = labels(8)


@dataclass
class GoldenResult:
    """A value, and the parameters whose gradients are also in the reference, by their
    names in the reference.
    """

    value: Tensor
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)


ValueOf = Callable[[Arrays], Tensor]
Case = Callable[[Arrays], Tensor | GoldenResult]
"""Arguments: the shared inputs by name (with gradient), and the arrays of the case's
own file (`in/...`, `sd/...`).
"""


def own_state(x: Arrays, prefix: str) -> Arrays:
    """Return the adapter's state in the case's file, by the names after `prefix`."""
    start = f"sd/{prefix}"
    return {key.removeprefix(start): value for key, value in x.items() if key.startswith(start)}
