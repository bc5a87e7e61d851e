"""docs/methods.md is up to date and correct."""

import re
from pathlib import Path

import pytest

from benchmarks.methods import KEYS, TABLE, parse_head, reads_labels, render_page
from benchmarks.methods_cost import PAIRS, Cost, Training, measure_cost, read_costs
from kd_app.config import RequestError
from tests.losses.samples import CONF, TERMS

COSTS = read_costs()
REFUSED = [known for known in COSTS.values() if known.ratio is None]


def test_the_page_is_up_to_date() -> None:
    assert TABLE.read_text(encoding="utf-8") == render_page(), (
        "docs/methods.md is out of date: make methods"
    )


@pytest.mark.parametrize("key", KEYS)
def test_an_incomplete_head_is_refused(key: str, tmp_path: Path) -> None:
    text = (CONF / "soft_target.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace(f"# {key}: ", f"# {key}"), encoding="utf-8")
    with pytest.raises(ValueError, match=f"The head of mine.yaml lacks {key}. Expected"):
        parse_head(tmp_path / "mine.yaml")


def test_a_note_on_several_lines_is_one_sentence() -> None:
    known = parse_head(CONF / "decoupled.yaml")
    assert (
        known.summary
        == "The teacher's probabilities, with separate weights for the label's class and the other"
        " classes (DKD)."
    )
    assert "ResNet56 to 20), warmed up over" in known.notes["Published"]


def test_labels_are_read_by_the_terms_whose_value_they_change() -> None:
    readers = ["cross_entropy", "decoupled", "crd", "ofa", "hard_token"]
    assert [name for name in (*readers, "soft_target", "sp") if reads_labels(name)] == readers


def test_every_term_is_measured_on_both_pairs() -> None:
    assert set(COSTS) == {(pair.name, term) for pair in PAIRS for term in TERMS}


@pytest.mark.parametrize("known", REFUSED, ids=[f"{known.pair}-{known.term}" for known in REFUSED])
def test_a_refused_pair_has_a_reason_and_three_alternatives(known: Cost) -> None:
    (pair,) = (each for each in PAIRS if each.name == known.pair)
    with pytest.raises(RequestError) as raised:
        Training(pair, [known.term])
    assert str(raised.value) == known.why
    named = set(re.findall(r"\w+", known.why)) & set(TERMS) - {known.term}
    assert sum(COSTS[known.pair, term].ratio is not None for term in named) >= 3


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_step_is_measured_relative_to_soft_targets(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.methods_cost.BATCH", 4)
    result = measure_cost(PAIRS[number], "simple_recipe", rounds=1)
    assert result.ratio is not None
    assert result.low == result.ratio == result.high
    assert 0.1 < result.ratio < 10
    assert result.adapters
