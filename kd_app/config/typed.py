"""Parts that check their own configuration: the signature of ``__init__`` is the schema, there is no second one."""

import inspect
from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call

from kd_app.config.errors import RequestError, closest

_CONFIG = ConfigDict(arbitrary_types_allowed=True)


def _paragraph(owner: str, signature: inspect.Signature, error: ValidationError) -> str:
    """One sentence for each field that is wrong: what, got, expected, how to fix."""
    known = [name for name in signature.parameters if name != "self"]
    said = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or owner
        if problem["type"] == "unexpected_keyword_argument":
            said.append(f"{owner} has no setting {where!r}. {closest(where, known)}Known: {', '.join(known) or 'none'}.")
        elif problem["type"] in ("missing_argument", "missing_keyword_only_argument"):
            said.append(f"{owner} needs a value for {where!r}.")
        else:
            said.append(f"{owner}: {where}={problem['input']!r} does not fit: {problem['msg']}.")
    return " ".join(said)


class Typed:
    """Base of every part that a config's ``_target_`` names: types, ranges and unknown keys are checked by its signature.

    Raises `RequestError` with one paragraph that names the setting, what was got and what is expected.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
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
                raise RequestError(_paragraph(cls.__name__, signature, error)) from None

        init.__doc__ = plain.__doc__
        init.__signature__ = signature  # type: ignore[attr-defined]
        cls.__init__ = init  # type: ignore[method-assign]
