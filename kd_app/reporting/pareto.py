"""What no other beats in both cost and value."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def select_pareto_front(
    found: Iterable[T], *, cost: Callable[[T], float], value: Callable[[T], float]
) -> list[T]:
    """Those for which there is no other that costs no more and is worth at least as
    much, from cheap to dear; of equal ones the first.
    """
    best: list[T] = []
    for each in sorted(found, key=lambda one: (cost(one), -value(one))):
        if not best or value(each) > value(best[-1]):
            best.append(each)
    return best
