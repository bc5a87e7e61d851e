"""Suggestions for wrong names."""

from hypothesis import given
from hypothesis import strategies as st

from kd_app.config import RequestError, build_unknown_error, suggest_closest
from kd_app.config.errors import list_causes, suggest_closest_keys

WORDS = ["temperature", "weight", "smoothing"]


def test_a_message_is_one_paragraph_whatever_a_name_holds() -> None:
    error = RequestError("there is no 'a\nb\x1b[31m'. Umlauts: ü.")
    assert str(error) == r"there is no 'a\nb\x1b[31m'. Umlauts: ü."


def test_the_closest_choice_is_named_and_none_where_none_is_near() -> None:
    assert suggest_closest("temprature", WORDS) == "Did you mean 'temperature'? "
    assert suggest_closest("qqq", WORDS) == ""
    assert suggest_closest("x", []) == ""


def test_the_last_name_of_a_key_finds_every_group_that_has_it() -> None:
    keys = ["optimizer.lr", "teacher.optimizer.lr", "optimizer", "seed"]
    assert (
        suggest_closest_keys("lr", keys)
        == "Did you mean 'optimizer.lr' or 'teacher.optimizer.lr'? "
    )
    assert suggest_closest_keys("optimzer", keys) == "Did you mean 'optimizer'? "
    assert suggest_closest_keys("qqq", keys) == suggest_closest_keys("lr", []) == ""


def test_few_choices_are_listed_in_order_and_many_are_counted() -> None:
    assert (
        str(build_unknown_error("knob", "wieght", WORDS))
        == "There is no knob 'wieght'. Did you mean 'weight'? Known: smoothing, temperature,"
        " weight."
    )
    assert (
        str(build_unknown_error("knob", "qqq", (str(number) for number in range(41))))
        == "There is no knob 'qqq'. 41 are known."
    )


@given(st.text(min_size=1), st.lists(st.text(min_size=1), max_size=4))
def test_a_valid_choice_is_closest_to_itself(word: str, others: list[str]) -> None:
    assert suggest_closest(word, [*others, word]) == f"Did you mean {word!r}? "


def test_an_error_that_is_its_own_cause_has_a_finite_chain() -> None:
    inner, outer = ValueError("a"), TypeError("b")
    outer.__cause__ = inner
    assert list_causes(outer) == [outer, inner]
    inner.__cause__ = outer
    assert list_causes(outer) == [outer, inner]
