"""The errors for users, and helpers for error messages."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Final

_ESCAPES: Final = {
    number: repr(chr(number))[1:-1] for number in range(160) if not 32 <= number < 127
}


class RequestError(ValueError):
    """The request is wrong; nothing was computed or overwritten (exit code 2).

    The message is one paragraph: the setting, the value, the expected value, and the
    fix. Control characters of what a file or word held are shown as escapes.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message.translate(_ESCAPES))


class RunError(RuntimeError):
    """The run of a valid request failed (exit code 1); finished work is kept."""


def suggest_closest(word: str, choices: Iterable[str]) -> str:
    """``"Did you mean 'x'? "`` for the choice most similar to `word`, or an empty
    string if no choice is similar.
    """
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"Did you mean {matches[0]!r}? " if matches else ""


def suggest_closest_keys(key: str, keys: Iterable[str], *, most: int = 3) -> str:
    """``"Did you mean 'a.x' or 'b.x'? "`` for the dotted keys most similar to `key`, or
    an empty string if no key is similar.

    The last name of a key counts nearly as much as the whole key, so ``lr`` suggests
    ``optimizer.lr``.
    """
    scores = {other: _compute_similarity(key, other) for other in keys}
    best = max(scores.values(), default=0.0)
    if best < _SIMILAR:
        return ""
    similar = sorted(
        (other for other, score in scores.items() if score > best - _EQUALLY_SIMILAR),
        key=lambda other: (-scores[other], len(other), other),
    )[:most]
    *first, last = map(repr, similar)
    return f"Did you mean {', '.join(first)}{' or ' if first else ''}{last}? "


_SIMILAR, _EQUALLY_SIMILAR, _WEIGHT_OF_LAST_NAME = 0.6, 0.05, 0.9


def _compute_similarity(key: str, other: str) -> float:
    """The similarity of two dotted keys, 0 to 1."""
    whole = difflib.SequenceMatcher(a=key, b=other).ratio()
    last = difflib.SequenceMatcher(a=key.rpartition(".")[2], b=other.rpartition(".")[2]).ratio()
    return max(whole, _WEIGHT_OF_LAST_NAME * last)


def build_unknown_error(
    what: str, got: str, choices: Iterable[str], *, listed: int = 40
) -> RequestError:
    """Build the error for an unknown name: suggests the closest choice, and lists up to
    `listed` choices.
    """
    names = sorted(choices)
    some = f"Known: {', '.join(names)}." if len(names) <= listed else f"{len(names)} are known."
    return RequestError(f"There is no {what} {got!r}. {suggest_closest(got, names)}{some}")


def take_first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def list_some(names: Sequence[str], limit: int = 8) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def quote_some(names: Sequence[str], limit: int = 8) -> str:
    """The first names in quotes, and how many more there are."""
    return list_some([repr(name) for name in names], limit)


def list_causes(error: BaseException) -> list[BaseException]:
    """An error and its chain of causes, the root cause last."""
    causes = [error]
    # An error may be its own cause: torch raises errors of its workers again.
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    return causes
