"""Every command that README and docs show composes, and every setting that they mention
exists.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.reference import COMMANDS
from benchmarks.reference import PAGES as REFERENCE
from kd_app.config.compose import compose_config
from tests.docs.shell import PAGES, README, ROOT, find_commands, find_inline_code

SHOWN = sorted(
    {
        (command, tuple(words))
        for page in PAGES
        for command, *words in find_commands(page.read_text(encoding="utf-8"))
        if words and "--help" not in words
    }
)
GENERATED = ("methods.md", "models.md", "exports.md", "config.md", "commands.md")
FREE_KEYS = re.compile(
    r"hydra[./]|loss\.<term>\.|loss\.\w+\.(teacher|schedule)$|(teacher|student)\.kwargs\."
    r"|teacher\.members\.\w+\.|data\.source\.|(teacher|student|data)\._target_$"
)
"""Keys below which users write their own, and keys that every term has."""


def take_first_trial(words: tuple[str, ...]) -> Iterator[str]:
    """The overrides of a sweep's first trial."""
    for word in words:
        key, _, value = word.partition("=")
        if word.startswith("-") or word == "job":
            continue
        yield word if value.startswith(("[", "{")) else f"{key}={value.split(',')[0]}"


@pytest.mark.parametrize(
    ("command", "words"), SHOWN, ids=[" ".join(words)[:70] for _, words in SHOWN]
)
def test_a_command_composes(command: str, words: tuple[str, ...]) -> None:
    config = compose_config(command.removeprefix("kd-"), list(take_first_trial(words)))
    assert not config.get("overwrite")


def test_the_readme_shows_every_command() -> None:
    names = {command for command, *_ in find_commands(README.read_text(encoding="utf-8"))}
    assert names == {f"kd-{command}" for command in COMMANDS}


def read_settings() -> set[str]:
    """The keys and groups of the reference."""
    texts = [
        (REFERENCE / name).read_text(encoding="utf-8") for name in ("config.md", "commands.md")
    ]
    keys = re.findall(r"^\| `([^`]+)` ", "\n".join(texts), re.MULTILINE)
    return {*keys, *re.findall(r"^## (\S+)$", texts[0], re.MULTILINE)}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in GENERATED],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_a_setting_in_the_text_exists(page: Path) -> None:
    keys = {
        match[1]
        for code in find_inline_code(page.read_text(encoding="utf-8"))
        if (match := re.match(r"'?([a-z][\w/]*(?:\.[\w<>]+)*)=(?!=)[^ ]*$", code[1]))
    }
    assert {key for key in keys - read_settings() if not FREE_KEYS.match(key)} == set()


def test_a_make_target_in_the_text_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    names = {
        target
        for page in PAGES
        for target in re.findall(r"`make ([a-z-]+)[^`]*`", page.read_text(encoding="utf-8"))
    }
    assert names <= targets
