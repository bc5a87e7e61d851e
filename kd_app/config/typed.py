"""Parts that check their own configuration: the signature of ``__init__`` is the
schema, there is no second one.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call
from pydantic_core import ErrorDetails

from kd_app.config.errors import RequestError, suggest_closest

_CONFIG = ConfigDict(arbitrary_types_allowed=True)
_EXPECTED = "Input should be "


class Typed:
    """Base of every part that a config's ``_target_`` names: types, ranges and unknown
    keys are checked by its signature.

    Raises `RequestError` with one paragraph that names the setting, what was got and
    what is expected. The part is called by its class there, or by `called`.
    """

    def __init_subclass__(cls, called: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" not in cls.__dict__:
            return
        plain: Callable[..., None] = cls.__init__
        signature = inspect.signature(plain)
        checked = validate_call(config=_CONFIG)(plain)

        def init(self: Any, *args: Any, **values: Any) -> None:
            try:
                checked(self, *args, **values)
            except ValidationError as error:
                raise RequestError(
                    _write_paragraph(called or cls.__name__, signature, error.errors(), values)
                ) from None

        init.__doc__ = plain.__doc__
        init.__signature__ = signature  # type: ignore[attr-defined]
        cls.__init__ = init  # type: ignore[method-assign]


def _write_paragraph(
    owner: str,
    signature: inspect.Signature,
    problems: Sequence[ErrorDetails],
    values: Mapping[str, Any],
) -> str:
    """One sentence for each setting that is wrong: what, got, expected, how to fix."""
    known = [name for name in signature.parameters if name != "self"]
    said: list[str] = []
    misfits: dict[str, tuple[Any, list[str]]] = {}
    for problem in problems:
        where = _format_location(problem["loc"], values) or owner
        if problem["type"] == "unexpected_keyword_argument":
            said.append(
                f"{owner} has no setting {where!r}. {suggest_closest(where, known)}Known:"
                f" {', '.join(known) or 'none'}."
            )
        elif problem["type"] in ("missing_argument", "missing_keyword_only_argument"):
            said.append(f"{owner} needs a value for {where!r}.")
        else:
            misfits.setdefault(where, (problem["input"], []))[1].append(problem["msg"])
    return " ".join(
        said
        + [
            _describe_misfit(owner, where, got, expected)
            for where, (got, expected) in misfits.items()
        ]
    )


def _describe_misfit(owner: str, where: str, got: Any, messages: Sequence[str]) -> str:
    """A value that fits none of the types it may have."""
    plain = all(message.startswith(_EXPECTED) for message in messages)
    expected = " or ".join(dict.fromkeys(message.removeprefix(_EXPECTED) for message in messages))
    null = " None is a text here; nothing is written null." if got == "None" else ""
    return f"{owner}: {where}={got!r} does not fit: {'expected ' if plain else ''}{expected}.{null}"


def _format_location(location: Sequence[str | int], values: Mapping[str, Any]) -> str:
    """The dotted name of a value, without what pydantic adds to tell the members of a
    union apart.
    """
    found, inside = (
        [str(part) for part in location[:1]],
        (values.get(str(location[0])) if location else None),
    )
    for part in location[1:]:
        try:
            inside = inside[part]  # type: ignore[index]
        except (TypeError, KeyError, IndexError):
            break
        found.append(str(part))
    return ".".join(found)
