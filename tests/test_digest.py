"""Hashes of values, and records that hold their own."""

import json

import pytest

from kd_app.digest import SELF, hash_value, is_changed, is_sealed, round_trip_json, seal

RECORD = {"b": [1, 2.5, None], "a": {"c": "ä"}}


def test_a_sealed_record_is_recognized_after_a_round_trip_in_any_order() -> None:
    sealed = seal(RECORD)
    assert sealed[SELF] == hash_value({"a": {"c": "ä"}, "b": [1, 2.5, None]})
    again = dict(reversed(json.loads(json.dumps(sealed, indent=3)).items()))
    assert is_sealed(again)
    assert not is_changed(again)
    assert seal(sealed) == sealed


@pytest.mark.parametrize(
    "change", [{"a": {}}, {"b": [1, 2.5]}, {"d": 1}, {SELF: "0"}, {"b": float("nan")}]
)
def test_a_changed_record_is_recognized(change: dict[str, object]) -> None:
    changed = {**seal(RECORD), **change}
    assert not is_sealed(changed)
    assert is_changed(changed)


def test_a_record_without_a_hash_is_neither_sealed_nor_changed() -> None:
    assert not is_sealed(RECORD)
    assert not is_changed(RECORD)


def test_a_value_is_compared_as_json_returns_it() -> None:
    assert round_trip_json({"sides": (1, 2), "b": {3: None}}) == {"sides": [1, 2], "b": {"3": None}}
