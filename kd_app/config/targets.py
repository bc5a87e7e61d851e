"""Which parts a configuration may name: ours and timm's, and what the user allows."""

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from pkgutil import resolve_name
from typing import Any

from kd_app.config.errors import RequestError
from kd_app.config.typed import Typed

FACTORY = "timm.create_model"
"""The one function that may be named without asking."""
OURS, CALLBACKS = "kd_app", "lightning.pytorch.callbacks"
"""Packages of which parts may be named without asking: `Typed` classes of ours, and
Lightning's callbacks.
"""


def check_targets(config: Any, allow: Sequence[str]) -> None:
    """Refuse a ``_target_`` of a configuration that is no part of `OURS` or `CALLBACKS`
    and lies in no package of `allow` (`RequestError`).

    The configuration in a run's folder may come from somebody else. What it names is
    called, so it could run anything (``_target_: os.system``). Nothing outside the
    trusted packages is imported to find that out. Interpolations are resolved when a
    configuration is composed; one that is still there could become a ``_target_``
    later, and is refused.
    """
    for place, target in _walk_leaves(config):
        if isinstance(target, str) and "${" in target:
            raise RequestError(
                f"{place}={target!r} holds an interpolation, where a value is expected. Write the"
                " value itself."
            )
        if (
            place.split(".")[-1] != "_target_"
            or not isinstance(target, str)
            or target == FACTORY
            or _is_within(target, allow)
        ):
            continue
        if not _is_within(target, (OURS, CALLBACKS)):
            raise _build_refusal(place, target, target.partition(".")[0])
        try:
            named = resolve_name(target)
        except (ImportError, ValueError, AttributeError):
            continue  # whoever makes the part says what is missing
        home = getattr(named, "__module__", None) or "?"
        if not isinstance(named, type) or not (_is_part(named) or _is_callback(named)):
            raise _build_refusal(place, target, home.partition(".")[0])


def resolve_target(group: str, target: str) -> Any:
    """What a ``_target_`` names. Raises `RequestError` where there is none."""
    try:
        return resolve_name(target)
    except (ImportError, ValueError, AttributeError) as error:
        raise RequestError(
            f"{group}._target_={target!r} can't be found: {error}. Expected the dotted name of a"
            " factory of a module."
        ) from None


def _is_part(named: type) -> bool:
    return issubclass(named, Typed) and _is_within(named.__module__, (OURS,))


def _is_callback(named: type) -> bool:
    """One of Lightning's that writes into no folder of the configuration's choice."""
    return (
        _is_within(named.__module__, (CALLBACKS,)) and "dirpath" not in signature(named).parameters
    )


def _walk_leaves(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that holds no others, with its dotted place."""
    if isinstance(node, Mapping):
        for key, value in node.items():
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
        f"{place}={target!r} names code that is no part of kd_app. Expected a part of kd_app or"
        f" {FACTORY}; what a configuration names is run. If you trust it, say so:"
        f" 'allow=[{package}]'."
    )
