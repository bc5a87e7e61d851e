"""Build objects from configuration; the only caller of Hydra's instantiate."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from kd_app.config.errors import RequestError


def make(node: Any, kind: type[Any], **more: Any) -> Any:
    """Build the object named by ``_target_``, with the node's other keys as arguments.

    Raises `RequestError` if the call fails or the object is not a `kind`.
    """
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str):
        raise RequestError(
            f"No {kind.__name__} can be built from {node!r}: it has no _target_. Expected a"
            " choice of its group, or settings with the dotted name of a class in _target_."
        )
    try:
        part = instantiate(dict(node), **more, _convert_="all")
    # TypeError and ValueError: Hydra's keys in the node, such as _partial_, are wrong.
    except (InstantiationException, TypeError, ValueError) as error:
        if isinstance(error.__cause__, RequestError):
            raise error.__cause__ from None
        reason = " ".join(str(error.__cause__ or error).split())
        raise RequestError(
            f"{target} can't be built: {reason} The settings are"
            f" { {k: v for k, v in node.items() if k != '_target_'}!r}."
        ) from None
    if not isinstance(part, kind):
        raise RequestError(f"{target} is a {type(part).__name__}, expected a {kind.__name__}.")
    return part
