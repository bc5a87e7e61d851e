"""The reference pages list every setting of ``conf/`` and every results.json field."""

import pytest

from benchmarks.reference import (
    PAGES,
    RENDERERS,
    Setting,
    parse_config,
    render_config,
    render_results,
)
from kd_app.config.paths import CONF
from kd_app.reporting.results import Results

YAML = """\
# @package _global_
# What the file is
# for. In this order:
#   kd-distill out=a
#   kd-report 'runs=[a]'
defaults:
  - base
  - override /loss: [one, two]

# Above the key
first: 1 # at its end
         # and below
second: [a,
         b] # a list
# A block
block: # of settings
  _target_: kd_app.Something
  inner: null
  _convert_: all
many:
  - {a: 1}
  - {a: 2}
"""


@pytest.mark.parametrize("name", RENDERERS)
def test_a_page_is_up_to_date(name: str) -> None:
    assert (PAGES / name).read_text(encoding="utf-8") == RENDERERS[name](), (
        f"docs/reference/{name} is out of date: make docs"
    )


def test_comments_above_beside_and_below_a_key_are_its_meaning() -> None:
    assert parse_config(YAML).settings == (
        Setting("first", "`1`", "Above the key at its end and below"),
        Setting("second", "`[a, b]`", "a list"),
        Setting("block", "", "A block of settings"),
        Setting("block.inner", "`null`", ""),
        Setting("many", "2 entries", ""),
    )


def test_the_head_of_a_file_is_text_with_its_commands_in_a_block() -> None:
    config = parse_config(YAML)
    assert config.is_global
    assert config.defaults == ("base", {"override /loss": ["one", "two"]})
    assert config.about == (
        "What the file is for. In this order:\n\n"
        "```bash\nkd-distill out=a\nkd-report 'runs=[a]'\n```"
    )


def test_every_choice_of_every_group_has_a_section() -> None:
    page = render_config()
    for path in CONF.glob("*/**/*.yaml"):
        group = path.parent.relative_to(CONF).as_posix()
        assert path.stem.startswith("_") or f"\n### {group}: {path.stem}\n" in page


def test_every_field_of_the_results_has_a_row() -> None:
    page = render_results()
    for name in Results.model_fields:
        assert f"\n| `{name}` |" in page
    assert "with bounds" in page
    assert "_low`" not in page.split("\n## ", 1)[1]
