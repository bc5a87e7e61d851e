"""docs/exports.md correctly lists which of timm's modules can be ONNX files."""

import pytest
import timm

from benchmarks.exports import TABLE, render_row, try_export
from benchmarks.models import parse_table

FEW = ("resnet",)
"""The one with the fewest layers; all are tried with the slow tests."""


def read_results() -> dict[str, str]:
    """Return yes, no or not tried for each module. Every row must be of a variant on
    docs/models.md.
    """
    page = TABLE.read_text(encoding="utf-8").splitlines()
    lines = {
        render_row(variant, result): (module, result)
        for module, (variant, _) in parse_table().items()
        for result in ("yes", "no", "not tried")
    }
    return dict(
        lines[each] for each in page if each.startswith("| ") and not each.startswith("| module")
    )


def test_it_has_the_modules_and_the_variants_of_the_page_about_what_can_be_read() -> None:
    assert list(read_results()) == list(parse_table())


def test_every_no_has_its_reason_and_what_was_not_tried_is_named() -> None:
    reasons_text, _, untried = (
        TABLE.read_text(encoding="utf-8").partition("## Why not")[2].partition("## Not tried")
    )
    reasons = {
        each.removeprefix("- ").partition(": ")[0]: each.partition(": ")[2]
        for each in reasons_text.splitlines()
        if each.startswith("- ")
    }
    assert list(reasons) == [module for module, result in read_results().items() if result == "no"]
    assert all(len(reason) > 20 for reason in reasons.values())
    named = untried.partition(": ")[2].strip().rstrip(".")
    assert named == ", ".join(
        module for module, result in read_results().items() if result == "not tried"
    )


@pytest.mark.parametrize("module", FEW)
def test_a_yes_is_true(module: str) -> None:
    assert read_results()[module] == "yes"
    assert try_export(parse_table()[module][0]).difference is not None


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_every_result_is_true(module: str) -> None:
    result = read_results().get(module)  # nets of our own are modules of timm's registry, too
    if result in ("yes", "no"):
        assert (try_export(parse_table()[module][0]).difference is not None) == (result == "yes")
