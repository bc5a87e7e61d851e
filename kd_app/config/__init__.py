"""Configuration: composition, validation, and errors for users."""

from typing import TYPE_CHECKING, Any

from kd_app.config.errors import RequestError, RunError, build_unknown_error, suggest_closest
from kd_app.config.pixels import Decoding, InputSpec, bound_side, choose_decoding

if TYPE_CHECKING:
    from kd_app.config.typed import Typed

__all__ = [
    "Decoding",
    "InputSpec",
    "RequestError",
    "RunError",
    "Typed",
    "bound_side",
    "build_unknown_error",
    "choose_decoding",
    "suggest_closest",
]


def __getattr__(name: str) -> Any:
    """Import `Typed` on first use, because exported models run without pydantic."""
    if name != "Typed":
        raise AttributeError(f"module 'kd_app.config' has no attribute {name!r}")
    from kd_app.config.typed import Typed

    return Typed
