"""Names of code in a configuration."""

from pkgutil import resolve_name
from typing import Any, Final

from kd_app.config.errors import RequestError

FACTORY: Final = "timm.create_model"
"""The ``_target_`` of every model that timm builds."""


def resolve_target(group: str, target: Any) -> Any:
    """Import the object of a ``_target_``; raise `RequestError` for a wrong name."""
    if not isinstance(target, str):
        raise RequestError(
            f"{group}._target_={target!r} is not a name. Expected the dotted name of a class or"
            " function."
        )
    try:
        return resolve_name(target)
    except (ImportError, ValueError, AttributeError) as error:
        raise RequestError(
            f"{group}._target_={target!r} does not exist: {error}. Expected the dotted name of a"
            " function or class that builds a module."
        ) from None
