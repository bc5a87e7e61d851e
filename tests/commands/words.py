"""The commands that a text in Markdown shows: in its blocks of code, and in code
between other words.
"""

import re
import shlex
from collections.abc import Iterator

_BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_COMMAND = re.compile(r"^(?:\$ |% )?(?:\S*/)?(kd-[a-z]+)$")


def commands(markdown: str) -> list[tuple[str, ...]]:
    """Every ``kd-...`` command with its words, as a shell reads them, in the order in
    which they stand there.
    """
    pieces = [
        *_BLOCK.finditer(markdown),
        *_INLINE.finditer(_BLOCK.sub(lambda block: " " * len(block[0]), markdown)),
    ]
    return [
        words
        for piece in sorted(pieces, key=lambda piece: piece.start())
        for words in _shown(piece[1])
    ]


def _shown(code: str) -> Iterator[tuple[str, ...]]:
    """The commands of one piece of code: comments are left out, a line that ends in a
    backslash goes on in the next.
    """
    for line in code.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:
            continue  # Python, or prose
        while words and re.match(r"^\w+=\S*$", words[0]):  # variables that are set for the command
            words.pop(0)
        if words and (named := _COMMAND.match(words[0])):
            yield (named[1], *words[1:])
