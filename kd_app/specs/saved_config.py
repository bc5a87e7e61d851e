"""The configuration that an earlier version of kd_app saved."""

from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from typing import Any, Final

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.config.paths import list_choices

_TARGET: Final = "_target_"
_LISTED: Final = ("loss", "controls", "callbacks")
"""Groups of several choices; the keys are the choices."""


def fill_defaults(saved: Any) -> Any:
    """The configuration of a run of kd-distill, with the defaults of settings that it
    lacks because they are newer. Everything else is returned unchanged.

    Defaults are those of the choices with the same ``_target_``.
    """
    if not isinstance(saved, Mapping) or not {"data", "student", "trainer"} <= set(saved):
        return saved
    try:
        defaults = _compose_defaults(tuple(_name_choices(saved)))
    except RequestError:
        return saved
    return _merge(saved, deepcopy(defaults))


@lru_cache(maxsize=16)
def _compose_defaults(choices: tuple[str, ...]) -> dict[str, Any]:
    """Cached, because the runs of a sweep or a search have the same choices."""
    return compose_config("distill", choices)


def _name_choices(saved: Mapping[str, Any]) -> list[str]:
    """The overrides that choose the groups of the saved configuration."""
    overrides = []
    for group in ("data", "teacher"):
        node = saved.get(group)
        name = node.get("name") if isinstance(node, Mapping) else None
        overrides += [f"{group}={name}"] if name in list_choices(group) else []
    for group in _LISTED:
        node = saved.get(group)
        known = set(list_choices(group))
        chosen = [key for key in node if key in known] if isinstance(node, Mapping) else []
        overrides.append(f"{group}=[{','.join(chosen)}]")
    return overrides


def _merge(saved: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`saved` with the keys of `defaults` that it lacks, also in nested parts."""
    merged = dict(saved)
    for key, default in defaults.items():
        if key not in saved:
            merged[key] = default
        elif _is_same_part(saved[key], default):
            merged[key] = _merge(saved[key], default)
    return merged


def _is_same_part(saved: Any, default: Any) -> bool:
    both = isinstance(saved, Mapping) and isinstance(default, Mapping)
    return both and bool(saved) and saved.get(_TARGET) == default.get(_TARGET)
