"""The signature is the schema: one sentence for each wrong type, range or key."""

from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from kd_app.config import RequestError, Typed


@dataclass(frozen=True)
class Shares:
    validation: Annotated[float, Field(gt=0, lt=1)]
    test: Annotated[float, Field(gt=0, lt=1)]


class Part(Typed):
    def __init__(
        self,
        *,
        size: PositiveInt,
        rate: Annotated[float, Field(gt=0, le=1)] | PositiveInt | None,
        split: Shares | None = None,
    ) -> None:
        self.size = size
        self.rate = rate
        self.split = split


class Named(Typed, called="the oven"):
    def __init__(
        self, *, mode: Literal["bake", "grill"] | Literal["auto"], trays: list[PositiveInt]
    ) -> None:
        self.mode = mode
        self.trays = trays


def expect_refusal(kind: type[Typed], **values: Any) -> str:
    with pytest.raises(RequestError) as raised:
        kind(**values)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_valid_values_are_converted_to_their_types() -> None:
    part = Part(size="3", rate=1, split={"validation": 0.1, "test": 0.5})  # type: ignore[arg-type]
    assert part.size == 3
    assert part.split == Shares(0.1, 0.5)
    assert Part(size=1, rate=None).rate is None


def test_a_wrong_value_is_reported_with_the_expected_one() -> None:
    assert (
        expect_refusal(Part, size=0, rate=1)
        == "Part: size=0 does not fit: expected greater than 0."
    )
    assert (
        expect_refusal(Named, mode="boil", trays=[1])
        == "the oven: mode='boil' does not fit: expected 'bake' or 'grill' or 'auto'."
    )


def test_a_wrong_value_of_a_union_type_is_reported_once() -> None:
    assert (
        expect_refusal(Part, size=1, rate=0)
        == "Part: rate=0 does not fit: expected greater than 0."
    )
    message = expect_refusal(Part, size=1, rate="fast")
    assert message.count("rate='fast'") == 1
    assert "constrained" not in message


def test_the_location_of_a_value_consists_of_keys_and_indices() -> None:
    assert expect_refusal(Part, size=1, rate=1, split={"validation": 2, "test": 0.5}).startswith(
        "Part: split.validation=2 does not fit"
    )
    assert expect_refusal(Named, mode="bake", trays=[1, 0]).startswith(
        "the oven: trays.1=0 does not fit"
    )


def test_an_unknown_setting_is_reported_with_the_closest_one_and_all_known_ones() -> None:
    assert (
        expect_refusal(Part, size=1, rate=1, siz=2)
        == "Part has no setting 'siz'. Did you mean 'size'? Known: size, rate, split."
    )
    assert (
        expect_refusal(Named, mode="bake", trays=[], heat=1)
        == "the oven has no setting 'heat'. Known: mode, trays."
    )


def test_all_wrong_and_missing_settings_are_reported_at_once() -> None:
    assert expect_refusal(Part, rate=1) == "Part needs a value for 'size'."
    message = expect_refusal(Part, size=-1, rate=-1, foo=1)
    assert "size=-1" in message
    assert "rate=-1" in message
    assert "'foo'" in message


def test_the_text_none_is_not_null() -> None:
    assert expect_refusal(Part, size="None", rate=1).endswith(
        "None is read as text; write null for no value."
    )


@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.lists(st.integers()),
        st.dictionaries(st.text(), st.integers()),
    )
)
def test_any_value_is_accepted_or_refused_by_name(value: Any) -> None:
    part, message = None, ""
    try:
        part = Part(size=value, rate=1)
    except RequestError as error:
        message = str(error)
    assert message.startswith("Part: size=") if part is None else part.size > 0


class Child(Part):
    pass


class Grandchild(Part):
    def __init__(self, *, size: PositiveInt, depth: int) -> None:
        super().__init__(size=size, rate=1)
        self.depth = depth


def test_a_subclass_uses_the_inherited_signature_unless_it_defines_one() -> None:
    assert Child(size=1, rate=1).size == 1
    assert expect_refusal(Child, size=0, rate=1).startswith("Part: size=0")
    assert Grandchild(size=1, depth=2).depth == 2
    assert expect_refusal(Grandchild, size=1, depth="x").startswith("Grandchild: depth='x'")
