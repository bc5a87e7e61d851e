"""docs/models.md correctly lists what can be read of each of timm's model modules."""

import pytest
import timm

from benchmarks.models import TABLE, check_variant, parse_table, render_page
from benchmarks.variants import find_smallest_variant, list_modules

FEW = (
    "byobnet",
    "convnext",
    "efficientnet",
    "efficientvim",
    "eva",
    "maxxvit",
    "mlp_mixer",
    "mobilenetv3",
    "pit",
    "regnet",
    "resnet",
    "vision_transformer",
    "xcit",
)
"""Small modules of different families."""


def test_every_module_of_timm_has_a_row() -> None:
    assert set(parse_table()) == set(list_modules())
    assert len(parse_table()) == 98


def test_every_no_has_its_reason() -> None:
    reasons = TABLE.read_text(encoding="utf-8").partition("## Why not")[2].splitlines()
    for module, (_, line) in parse_table().items():
        missing = line.split("|")[5:-1].count(" no ")
        assert (
            sum(module in reason.rpartition(": ")[2].split(", ") for reason in reasons) == missing
        ), module


@pytest.mark.parametrize("module", FEW)
def test_a_row_is_what_can_be_read_of_the_model(module: str) -> None:
    variant, line = parse_table()[module]
    assert check_variant(variant).to_markdown() == line


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_the_variant_is_the_smallest_and_its_row_is_true(module: str) -> None:
    if module in parse_table():  # nets of our own are modules of timm's registry, too
        variant, line = parse_table()[module]
        assert find_smallest_variant(module) == variant
        assert check_variant(variant).to_markdown() == line


def test_the_page_groups_the_modules_by_what_they_lack() -> None:
    page = render_page([check_variant(parse_table()["resnet"][0])])
    assert "| resnet | `test_resnet` |" in page
    assert "attention: the model does not call torch's scaled_dot_product_attention" in page
