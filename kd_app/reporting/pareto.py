"""The Pareto front of cost and value."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def select_pareto_front(
    items: Iterable[T], *, cost: Callable[[T], float], value: Callable[[T], float]
) -> list[T]:
    """The items that no other item dominates with at most the same cost and at least
    the same value, cheapest first; of equal items the first.
    """
    front: list[T] = []
    for item in sorted(items, key=lambda each: (cost(each), -value(each))):
        if not front or value(item) > value(front[-1]):
            front.append(item)
    return front
