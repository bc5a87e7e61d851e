"""Which parts a configuration may name: ours and timm's, and what the user allows."""

from collections.abc import Iterator, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

from kd_app.config.errors import RequestError

FACTORY = "timm.create_model"
"""The one function that may be named without asking."""
TRUSTED = ("kd_app", "lightning.pytorch.callbacks", "lightning.pytorch.loggers")
"""Packages whose classes may be named without asking."""


def check_targets(config: Any, allow: Sequence[str]) -> None:
    """Refuse a ``_target_`` of a configuration that is neither a class of `TRUSTED` nor lies in a package of `allow` (`RequestError`).

    A configuration may come from somebody else: a run's folder, an experiment file. What it names is called, so it could run anything
    (``_target_: os.system``). Nothing outside the trusted packages is imported to find that out.
    """
    for place, target in _targets(config):
        if not isinstance(target, str) or target == FACTORY or _within(target, allow):
            continue
        if not _within(target, TRUSTED):
            raise _refused(place, target, target.partition(".")[0])
        try:
            named = resolve_name(target)
        except (ImportError, ValueError, AttributeError):
            continue  # whoever makes the part says what is missing
        home = getattr(named, "__module__", None) or "?"
        if not isinstance(named, type) or not _within(home, TRUSTED):
            raise _refused(place, target, home.partition(".")[0])


def _targets(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "_target_":
                yield f"{place}{key}", value
            else:
                yield from _targets(value, f"{place}{key}.")
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _targets(value, f"{place}{number}.")


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith((f"{package}.", f"{package}:")) for package in packages)


def _refused(place: str, target: str, package: str) -> RequestError:
    return RequestError(
        f"{place}={target!r} names code that is no part of kd_app. Expected a class of kd_app or {FACTORY}; what a configuration names is run. "
        f"If you trust it, say so: 'allow=[{package}]'."
    )
