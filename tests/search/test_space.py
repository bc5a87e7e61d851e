"""Sweep overrides as search distributions."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from kd_app.config import RequestError
from kd_app.search.space import parse_space


def parse(*words: str) -> list[Any]:
    return OverridesParser.create().parse_overrides(list(words))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("x=interval(1,8)", FloatDistribution(1.0, 8.0)),
        ("x=int(interval(1,8))", IntDistribution(1, 8)),
        ("x=tag(log,interval(0.001,1))", FloatDistribution(0.001, 1.0, log=True)),
        ("x=range(1,4)", IntDistribution(1, 3)),
        ("x=range(0,1,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("x=1,2,4", CategoricalDistribution(["1", "2", "4"])),
        ("x=choice([a,b],[a,c])", CategoricalDistribution(["[a,b]", "[a,c]"])),
    ],
)
def test_overrides_are_parsed_as_distributions(word: str, expected: BaseDistribution) -> None:
    assert parse_space(parse(word)) == {"x": expected}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("x=3", "is not a search range"),
        ("x=range(4,4)", "is empty"),
        ("x=interval(8,1)", "is not a search range"),
    ],
)
def test_an_override_without_a_range_is_refused(word: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_space(parse(word))
    with pytest.raises(RequestError, match="The search space is empty"):
        parse_space([])
