"""The errors a user meets, and the paragraph they are told in."""

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """The request is wrong: nothing was computed and nothing written over (exit code
    2).

    The message is one paragraph: what was asked, what was got, what is expected, and
    how to fix it.
    """


class RunError(RuntimeError):
    """The request was fine and the run failed (exit code 1); what was finished before
    is kept.
    """


def suggest_closest(word: str, choices: Iterable[str]) -> str:
    """``"Did you mean 'x'? "`` for the choice most like `word`, or the empty string
    when none is near.
    """
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"Did you mean {found[0]!r}? " if found else ""


def nearest(key: str, keys: Iterable[str], *, most: int = 3) -> str:
    """``"Did you mean 'a.x' or 'b.x'? "`` for the dotted keys most like `key`, or the
    empty string when none is near.

    The last name alone counts nearly as much as the whole key: who writes ``lr`` means
    ``optimizer.lr``.
    """
    scores = {each: _likeness(key, each) for each in keys}
    best = max(scores.values(), default=0.0)
    if best < _NEAR:
        return ""
    near = sorted(
        (each for each, score in scores.items() if score > best - _EQUALLY_NEAR),
        key=lambda each: (-scores[each], len(each), each),
    )[:most]
    *first, last = map(repr, near)
    return f"Did you mean {', '.join(first)}{' or ' if first else ''}{last}? "


_NEAR, _EQUALLY_NEAR, _OF_LAST_NAME = 0.6, 0.05, 0.9


def _likeness(key: str, other: str) -> float:
    """0 to 1, as difflib has it."""
    whole = difflib.SequenceMatcher(a=key, b=other).ratio()
    last = difflib.SequenceMatcher(a=key.rpartition(".")[2], b=other.rpartition(".")[2]).ratio()
    return max(whole, _OF_LAST_NAME * last)


def build_unknown_error(
    what: str, got: str, choices: Iterable[str], *, listed: int = 40
) -> RequestError:
    """The error for a name that is none of `choices`: names the closest one, lists them
    when they are few.
    """
    names = sorted(choices)
    some = f"Known: {', '.join(names)}." if len(names) <= listed else f"{len(names)} are known."
    return RequestError(f"There is no {what} {got!r}. {suggest_closest(got, names)}{some}")


def take_first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def list_causes(error: BaseException) -> list[BaseException]:
    """An error, and those that it was raised from, the first that happened last."""
    return [error, *list_causes(error.__cause__)] if error.__cause__ is not None else [error]
