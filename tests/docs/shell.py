"""The commands that a Markdown text shows, in its shell blocks and in code between
other words.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)

_BLOCK = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_COMMAND = re.compile(r"^(?:\$ |% )?(?:\S*/)?(kd-[a-z]+)$")
_SHELLS = {"bash", "sh", "shell"}


def find_commands(markdown: str) -> list[tuple[str, ...]]:
    """Every ``kd-...`` command with its overrides, as a shell reads them, in the order
    of the text. A command that torchrun starts by its module counts, too.
    """
    pieces = [
        *((block.start(), block[2]) for block in _BLOCK.finditer(markdown) if block[1] in _SHELLS),
        *((code.start(), code[1]) for code in find_inline_code(markdown)),
    ]
    return [words for _, code in sorted(pieces) for words in _parse_commands(code)]


def find_inline_code(markdown: str) -> Iterator[re.Match[str]]:
    """The pieces of code outside blocks."""
    return _INLINE.finditer(remove_blocks(markdown))


def remove_blocks(markdown: str) -> str:
    """The text with blanks in the place of its blocks of code."""
    return _BLOCK.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), markdown)


def _parse_commands(code: str) -> Iterator[tuple[str, ...]]:
    """The commands of one piece of code. Comments are skipped, and a line that ends in
    a backslash continues in the next.
    """
    for line in code.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:
            continue  # Python, or prose
        while words and re.match(r"^\w+=\S*$", words[0]):  # variables set for the command
            words.pop(0)
        if words[:1] == ["torchrun"]:
            words = _remove_torchrun(words)
        if words and (name := _COMMAND.match(words[0])):
            yield (name[1], *words[1:])


def _remove_torchrun(words: list[str]) -> list[str]:
    for number, word in enumerate(words):
        if word.startswith("kd_app.commands."):
            return [f"kd-{word.rpartition('.')[2]}", *words[number + 1 :]]
    return []
