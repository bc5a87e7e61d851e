"""Build objects from plain configuration. Values are literal: nothing in them is
resolved.
"""

from collections.abc import Mapping
from functools import partial
from pkgutil import resolve_name
from typing import Any, Final

from kd_app.config.errors import RequestError

TARGET: Final = "_target_"
_PARTIAL, _RECURSIVE, _ARGS, _CONVERT = "_partial_", "_recursive_", "_args_", "_convert_"
_HYDRA_KEYS: Final = (TARGET, _PARTIAL, _RECURSIVE, _ARGS, _CONVERT)
"""The keys of a node that are no arguments. Their meaning is that of Hydra's
``instantiate``; containers are always plain (``_convert_: all``).
"""


def make(node: Any, kind: type[Any], **more: Any) -> Any:
    """Build the object named by ``_target_``, with the node's other keys as arguments.

    Raises `RequestError` if the call fails or the object is not a `kind`.
    """
    target = node.get(TARGET) if isinstance(node, Mapping) else None
    if not isinstance(target, str):
        raise RequestError(
            f"No {kind.__name__} can be built from {node!r}: it has no _target_. Expected a"
            " choice of its group, or settings with the dotted name of a class in _target_."
        )
    try:
        part = _build({**node, **more})
    except RequestError:
        raise
    except Exception as error:
        # a class of the user may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(
            f"{target} can't be built: {reason.rstrip('.')}. The settings are"
            f" { {k: v for k, v in node.items() if k != TARGET}!r}."
        ) from error
    if not isinstance(part, kind):
        raise RequestError(f"{target} is a {type(part).__name__}, expected a {kind.__name__}.")
    return part


def _build(node: Any) -> Any:
    """Build every node with a ``_target_``, the innermost first."""
    if isinstance(node, list | tuple):
        return [_build(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    _check_flags(node)
    build = _build if node.get(_RECURSIVE, True) else _keep
    if TARGET not in node:
        return {key: build(value) for key, value in node.items()}
    target = resolve_name(node[TARGET]) if isinstance(node[TARGET], str) else node[TARGET]
    if not callable(target):
        raise RequestError(f"_target_={node[TARGET]!r} is not a class or function.")
    arguments = [build(each) for each in node.get(_ARGS, ())]
    values = {key: build(value) for key, value in node.items() if key not in _HYDRA_KEYS}
    if node.get(_PARTIAL, False):
        return partial(target, *arguments, **values)
    return target(*arguments, **values)


def _keep(node: Any) -> Any:
    return node


def _check_flags(node: Mapping[str, Any]) -> None:
    for key in (_PARTIAL, _RECURSIVE):
        if not isinstance(node.get(key, False), bool):
            raise RequestError(
                f"The {key} flag must be a bool, got {node[key]!r}. Use true or false."
            )
