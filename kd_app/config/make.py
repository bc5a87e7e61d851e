"""From a node of the configuration to the part that it names. The only caller of
hydra's instantiate.
"""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from kd_app.config.errors import RequestError


def make(node: Mapping[str, Any], kind: type[Any], **more: Any) -> Any:
    """The object that ``_target_`` names, with the node's other keys as arguments;
    `RequestError` when that can't be.
    """
    target = node.get("_target_")
    if not isinstance(target, str):
        raise RequestError(
            f"{dict(node)!r} names no part: it has no _target_. Expected the dotted name of a"
            f" {kind.__name__}."
        )
    try:
        made = instantiate(dict(node), **more, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, RequestError):
            raise error.__cause__ from None
        reason = " ".join(str(error.__cause__ or error).split())
        raise RequestError(
            f"The part {target} can't be made: {reason} Its settings:"
            f" { {k: v for k, v in node.items() if k != '_target_'}!r}."
        ) from None
    if not isinstance(made, kind):
        raise RequestError(f"{target} gives a {type(made).__name__}, expected a {kind.__name__}.")
    return made
