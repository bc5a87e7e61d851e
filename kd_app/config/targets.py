"""The code that a configuration may name: parts of kd_app and timm, and allowed
packages.
"""

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from pkgutil import resolve_name
from typing import Any

from kd_app.config.errors import RequestError
from kd_app.config.typed import Typed

FACTORY = "timm.create_model"
"""The only function that is allowed by default."""
_MAY_BE_NULL = ("teacher._target_",)
"""A ``_target_`` that may be null: teacher=none."""
OURS, CALLBACKS = "kd_app", "lightning.pytorch.callbacks"
"""Packages that are allowed by default: `Typed` classes of kd_app, and Lightning's
callbacks.
"""


def check_targets(config: Any, allow: Sequence[str]) -> None:
    """Raise `RequestError` for a ``_target_`` that is not a part of `OURS` or
    `CALLBACKS` and not in a package of `allow`.

    The configuration in a run's folder may come from another person, and a ``_target_``
    is called, so it could run any code (``_target_: os.system``). This check imports no
    other packages. It also rejects unresolved interpolations, which could become a
    ``_target_`` later.
    """
    if not isinstance(allow, list | tuple) or not all(isinstance(each, str) for each in allow):
        raise RequestError(
            f"allow={allow!r} does not fit. Expected a list of packages: 'allow=[my_package]'."
        )
    for place, target in _walk_leaves(config):
        if isinstance(target, str) and "${" in target:
            raise RequestError(
                f"{place}={target!r} contains an interpolation. Expected a value: write the value"
                " itself."
            )
        if place.split(".")[-1] != "_target_" or (place in _MAY_BE_NULL and target is None):
            continue
        if not isinstance(target, str):
            raise RequestError(
                f"{place}={target!r} is not a name. Expected the dotted name of a class or"
                " function."
            )
        if target == FACTORY or _is_within(target, allow):
            continue
        if not _is_within(target, (OURS, CALLBACKS)):
            raise _build_refusal(place, target, target.partition(".")[0])
        try:
            target_object = resolve_name(target)
        except (ImportError, ValueError, AttributeError):
            # `make` raises the error for a target that does not exist
            continue
        module = getattr(target_object, "__module__", None) or "?"
        if not isinstance(target_object, type) or not (
            _is_part(target_object) or _is_callback(target_object)
        ):
            raise _build_refusal(place, target, module.partition(".")[0])


def resolve_target(group: str, target: str) -> Any:
    """Import the object of a ``_target_``; raise `RequestError` for a wrong name."""
    try:
        return resolve_name(target)
    except (ImportError, ValueError, AttributeError) as error:
        raise RequestError(
            f"{group}._target_={target!r} does not exist: {error}. Expected the dotted name of a"
            " function or class that builds a module."
        ) from None


def _is_part(cls: type) -> bool:
    return issubclass(cls, Typed) and _is_within(cls.__module__, (OURS,))


def _is_callback(cls: type) -> bool:
    """Whether `cls` is a Lightning callback that does not write into a configured
    folder.
    """
    is_lightning = _is_within(cls.__module__, (CALLBACKS,))
    return is_lightning and "dirpath" not in signature(cls).parameters


def _walk_leaves(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every scalar and every ``_target_`` of the tree with its dotted key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "_target_":
                yield f"{place}{key}", value
            else:
                yield from _walk_leaves(value, f"{place}{key}.")
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _walk_leaves(value, f"{place}{number}.")
    else:
        yield place.removesuffix("."), node


def _is_within(name: str, packages: Sequence[str]) -> bool:
    return any(
        name == package or name.startswith((f"{package}.", f"{package}:")) for package in packages
    )


def _build_refusal(place: str, target: str, package: str) -> RequestError:
    return RequestError(
        f"{place}={target!r} names code that is not part of kd_app, and named code is run. Expected"
        f" a part of kd_app or {FACTORY}. If you trust the code, allow it: 'allow=[{package}]'."
    )
