"""Parts that validate their settings: the signature of ``__init__`` is the schema."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ConfigDict, Field, ValidationError, validate_call
from pydantic_core import ErrorDetails

from kd_app.config.errors import RequestError, suggest_closest

Side = Annotated[int, Field(ge=1, le=2**14)]
"""A side of a model's input in pixels, as a setting."""
Epochs = Annotated[int, Field(ge=1, le=10**6)]
"""Passes over the training images, as a setting."""
_CONFIG = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
_EXPECTED = "Input should be "


class Typed:
    """Base class of every part that a ``_target_`` names. The signature of ``__init__``
    defines types, ranges and known keys.

    ``__init__`` raises `RequestError` with one paragraph: the setting, the value and
    the expected value. `called` replaces the class name in messages.
    """

    def __init_subclass__(cls, called: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" not in cls.__dict__:
            return
        plain: Callable[..., None] = cls.__init__
        signature = inspect.signature(plain)
        checked = validate_call(config=_CONFIG)(plain)
        numbers = {
            name
            for name, parameter in signature.parameters.items()
            if (types := set(_list_types(parameter.annotation))) & {int, float}
            and not types & {bool, Any}
        }

        def init(self: Any, *args: Any, **values: Any) -> None:
            # pydantic takes true for 1
            for name in numbers & values.keys():
                if isinstance(values[name], bool):
                    raise RequestError(
                        _describe_misfit(
                            called or cls.__name__, name, values[name], [f"{_EXPECTED}a number"]
                        )
                    )
            try:
                checked(self, *args, **values)
            except ValidationError as error:
                raise RequestError(
                    _write_paragraph(called or cls.__name__, signature, error.errors(), values)
                ) from None

        init.__doc__ = plain.__doc__
        init.__signature__ = signature  # type: ignore[attr-defined]
        cls.__init__ = init  # type: ignore[method-assign]


def _list_types(annotation: Any) -> Iterator[Any]:
    """Yield the types in an annotation, and those of the values of a Literal."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        yield from map(type, parts)
    elif parts:
        for part in parts:
            yield from _list_types(part)
    elif isinstance(annotation, type) or annotation is Any:
        yield annotation


def _write_paragraph(
    owner: str,
    signature: inspect.Signature,
    problems: Sequence[ErrorDetails],
    values: Mapping[str, Any],
) -> str:
    """One sentence for each wrong setting: key, value, expected value, fix."""
    known = [name for name in signature.parameters if name != "self"]
    sentences: list[str] = []
    misfits: dict[str, tuple[Any, list[str]]] = {}
    for problem in problems:
        where = _format_location(problem["loc"], values) or owner
        if problem["type"] == "unexpected_keyword_argument":
            sentences.append(
                f"{owner} has no setting {where!r}. {suggest_closest(where, known)}Known:"
                f" {', '.join(known) or 'none'}."
            )
        elif problem["type"] in ("missing_argument", "missing_keyword_only_argument"):
            sentences.append(f"{owner} needs a value for {where!r}.")
        else:
            misfits.setdefault(where, (problem["input"], []))[1].append(problem["msg"])
    for where, (got, expected) in misfits.items():
        sentences.append(_describe_misfit(owner, where, got, expected))
    return " ".join(sentences)


def _describe_misfit(owner: str, where: str, got: Any, messages: Sequence[str]) -> str:
    """The sentence for a value that fits none of the accepted types."""
    plain = all(message.startswith(_EXPECTED) for message in messages)
    expected = " or ".join(dict.fromkeys(message.removeprefix(_EXPECTED) for message in messages))
    hint = " None is read as text; write null for no value." if got == "None" else ""
    if isinstance(got, str) and got.isprintable() and "valid list" in expected:
        hint = f" A list has brackets, also with one element: '{where}=[{got}]'."
    return f"{owner}: {where}={got!r} does not fit: {'expected ' if plain else ''}{expected}.{hint}"


def _format_location(location: Sequence[str | int], values: Mapping[str, Any]) -> str:
    """The dotted key of a value."""
    keys = [str(part) for part in location[:1]]
    value = values.get(keys[0]) if keys else None
    for part in location[1:]:
        try:
            value = value[part]  # type: ignore[index]
        except (TypeError, KeyError, IndexError):
            # not a key: pydantic appends the names of a union's members
            break
        keys.append(str(part))
    return ".".join(keys)
