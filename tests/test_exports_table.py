"""docs/exports.md says of each of timm's modules whether a small model of it can be an
ONNX file, and it is so.
"""

import pytest
import timm

from benchmarks.exports import TABLE, render_row, try_export
from benchmarks.models import parse_table

FEW = ("starnet", "vision_transformer")
"""Unlike each other, and small."""


def answers() -> dict[str, str]:
    """Of each module: yes, no, or not tried; every line of the table is of a variant of
    the other page.
    """
    page = TABLE.read_text(encoding="utf-8").splitlines()
    lines = {
        render_row(variant, answer): (module, answer)
        for module, (variant, _) in parse_table().items()
        for answer in ("yes", "no", "not tried")
    }
    return dict(
        lines[each] for each in page if each.startswith("| ") and not each.startswith("| module")
    )


def test_it_has_the_modules_and_the_variants_of_the_page_about_what_can_be_read() -> None:
    assert list(answers()) == list(parse_table())


def test_every_no_has_its_reason_and_what_was_not_tried_is_named() -> None:
    why, _, left = (
        TABLE.read_text(encoding="utf-8").partition("## Why not")[2].partition("## Not tried")
    )
    reasons = {
        each.removeprefix("- ").partition(": ")[0]: each.partition(": ")[2]
        for each in why.splitlines()
        if each.startswith("- ")
    }
    assert list(reasons) == [module for module, answer in answers().items() if answer == "no"]
    assert all(len(reason) > 20 for reason in reasons.values())
    named = left.partition(": ")[2].strip().rstrip(".")
    assert named == ", ".join(
        module for module, answer in answers().items() if answer == "not tried"
    )


@pytest.mark.parametrize("module", FEW)
def test_what_is_said_to_be_equal_is(module: str) -> None:
    assert answers()[module] == "yes"
    assert try_export(parse_table()[module][0]).difference is not None


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_the_answer_is_true(module: str) -> None:
    said = answers().get(module)  # nets of our own are modules of timm's registry, too
    if said in ("yes", "no"):
        assert (try_export(parse_table()[module][0]).difference is not None) == (said == "yes")
