"""Where the configuration lies, the errors a wrong one gives, and the check of typed
parts, which alone needs pydantic.
"""

from typing import TYPE_CHECKING, Any

from kd_app.config.errors import RequestError, RunError, build_unknown_error, suggest_closest
from kd_app.config.pixels import InputSpec

if TYPE_CHECKING:
    from kd_app.config.typed import Typed

__all__ = [
    "InputSpec",
    "RequestError",
    "RunError",
    "Typed",
    "build_unknown_error",
    "suggest_closest",
]


def __getattr__(name: str) -> Any:
    """`Typed` is imported when it is asked for: an exported file is run without
    pydantic.
    """
    if name != "Typed":
        raise AttributeError(f"module 'kd_app.config' has no attribute {name!r}")
    from kd_app.config.typed import Typed

    return Typed
