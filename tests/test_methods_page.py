"""docs/methods.md says of every term what it reads, costs and needs, and it is so."""

import re
from pathlib import Path

import pytest

from benchmarks.methods import KEYS, TABLE, parse_head, reads_labels, render_page
from benchmarks.methods_cost import PAIRS, Cost, Training, measure_cost, read_costs
from kd_app.config import RequestError
from tests.losses.samples import CONF, TERMS

COSTS = read_costs()
REFUSED = [known for known in COSTS.values() if known.ratio is None]
every_pair = pytest.mark.parametrize("number", range(len(PAIRS)), ids=[pair.name for pair in PAIRS])


def test_the_page_is_what_terms_and_yamls_say_now() -> None:
    assert TABLE.read_text(encoding="utf-8") == render_page(), (
        "docs/methods.md is out of date: make methods"
    )


@pytest.mark.parametrize("key", KEYS)
def test_a_yaml_that_lacks_what_the_code_cannot_know_is_refused(key: str, tmp_path: Path) -> None:
    text = (CONF / "soft_target.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace(f"# {key}: ", f"# {key}"), encoding="utf-8")
    with pytest.raises(ValueError, match=f"The head of mine.yaml does not say {key}. Expected"):
        parse_head(tmp_path / "mine.yaml")


def test_what_is_said_on_several_lines_is_one_sentence() -> None:
    known = parse_head(CONF / "decoupled.yaml")
    assert (
        known.summary
        == "The teacher's probabilities, the label's class and the other classes weighted apart"
        " (DKD)."
    )
    assert "ResNet56 to 20), warmed up over" in known.notes["Published"]


def test_labels_are_read_by_the_terms_whose_value_they_change() -> None:
    assert [name for name in ("cross_entropy", "decoupled", "crd", "ofa", "hard_token", "soft_target", "sp") if reads_labels(name)] == [
        "cross_entropy", "decoupled", "crd", "ofa", "hard_token",
    ]  # fmt: skip


def test_every_term_is_measured_on_both_pairs_and_none_that_is_no_more() -> None:
    assert set(COSTS) == {(pair.name, term) for pair in PAIRS for term in TERMS}


@pytest.mark.parametrize("known", REFUSED, ids=[f"{known.pair}-{known.term}" for known in REFUSED])
def test_what_does_not_apply_to_a_pair_says_why_and_names_three_terms_that_do(known: Cost) -> None:
    (pair,) = (each for each in PAIRS if each.name == known.pair)
    with pytest.raises(RequestError) as refused:
        Training(pair, [known.term])
    assert str(refused.value) == known.why
    named = set(re.findall(r"\w+", known.why)) & set(TERMS) - {known.term}
    assert sum(COSTS[known.pair, term].ratio is not None for term in named) >= 3


@every_pair
def test_a_step_of_what_applies_is_measured_beside_one_of_soft_targets(number: int) -> None:
    found = measure_cost(PAIRS[number], "simple_recipe", rounds=1)
    assert found.ratio is not None
    assert found.low == found.ratio == found.high
    assert 0.1 < found.ratio < 10
    assert found.adapters
