"""What a golden case is: a function from its arrays to a value, and to parameters with
gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from tests.losses.samples import labels

Arrays = dict[str, Tensor]
NO_LABELS = labels(8)


@dataclass
class Answer:
    """A value, with the parameters whose gradients the reference has too, under its
    names for them.
    """

    value: Tensor
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)


Plain = Callable[[Arrays], Tensor]
Case = Callable[[Arrays], Tensor | Answer]
"""Given the shared inputs by name (with gradient) and the arrays of the case's own file
(`in/...`, `sd/...`) by theirs.
"""


def own_state(x: Arrays, prefix: str) -> Arrays:
    """The adapter's state in the case's file, under the names that follow `prefix`."""
    start = f"sd/{prefix}"
    return {key.removeprefix(start): value for key, value in x.items() if key.startswith(start)}
