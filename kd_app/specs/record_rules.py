"""What the configuration of a run may name when it is read again.

A run's config.yaml may come from another person, so it is a record, not a
configuration: its parts are parts of kd_app at their own place, and no argument reads
the environment, reaches the network, or decides where something is written. The
command's ``allow=`` names packages and locations that a record may use in addition.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pkgutil import resolve_name
from typing import Any, Final

from kd_app.config import RequestError
from kd_app.config.make import TARGET
from kd_app.config.targets import FACTORY
from kd_app.data.module import ImageData
from kd_app.data.source import Source
from kd_app.data.views import View
from kd_app.losses.base import LossTerm
from kd_app.optimizers.optimizer import Optimizer
from kd_app.schedules import Schedule
from kd_app.training.trainer import TrainerSettings

_PACKAGE: Final = "kd_app"
_PARTS: Final[Mapping[str, type]] = {
    "data": ImageData,
    "data.source": Source,
    "data.view": View,
    "trainer": TrainerSettings,
    **{f"{owner}optimizer": Optimizer for owner in ("", "teacher.")},
    **{f"{owner}scheduler": Schedule for owner in ("", "teacher.")},
    **{f"{owner}loss.*": LossTerm for owner in ("", "teacher.", "controls.*.")},
    **{f"{owner}loss.*.schedule": Schedule for owner in ("", "teacher.", "controls.*.")},
}
"""The base class of the part at each place of a record."""
_MODELS: Final = (
    *("teacher", "teacher.members.*", "teacher.chain.*"),
    *("student", "controls.*.student", "controls.*.student.candidates.*"),
)
"""The places of models, which timm builds."""
_FETCHING: Final = (
    *("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "checkpoint_path"),
    *("url", "file", "hf_hub_id", "state_dict", "custom_load"),
)
"""Arguments with which timm reads, fetches and writes what they name."""
_LOCATION: Final = re.compile(r"(?:hf[-_]hub|pipe):|.*://", re.IGNORECASE | re.DOTALL)
_UNRESOLVED: Final = re.compile(r"\$\{|\?\?\?$")


def check_record(groups: Mapping[str, Any], allow: Sequence[str]) -> None:
    """Raise `RequestError` for a record that names code or a location which is not
    allowed. Imports nothing but parts of kd_app.

    groups: the groups of a run's configuration that are built. allow: names of
    packages, and locations, which the command accepts.
    """
    for place, value, owner in _walk(groups, "", ""):
        key = place.rpartition(".")[2]
        if isinstance(value, str) and _UNRESOLVED.search(value):
            raise RequestError(
                f"{place}={value!r} in the run's configuration is not a value: a record is read as"
                " it is, without interpolations. Write the value itself."
            )
        if key == TARGET:
            _check_target(place.removesuffix(TARGET).rstrip("."), value, allow)
        elif _is_within(owner, allow):
            continue
        elif key in _FETCHING and value is not None:
            raise RequestError(
                f"{place}={value!r} in the run's configuration decides what is fetched, read or"
                " written, and a record may not. Remove it, or name the weights in a command of"
                " your own."
            )
        elif _is_remote(key, value) and value not in allow:
            raise RequestError(
                f"{place}={value!r} in the run's configuration is a location in the network, which"
                " a record may not choose. If you trust it, repeat it on the command line:"
                f" 'allow=[\"{value}\"]'."
            )


def _walk(node: Any, place: str, owner: str) -> Iterator[tuple[str, Any, str]]:
    """Yield every value and every ``_target_`` of the tree with its dotted key and the
    ``_target_`` of the innermost part that it is in. Keys that hold a mapping or a list
    are yielded, too.
    """
    if isinstance(node, Mapping):
        target = node.get(TARGET, owner)
        owner = target if isinstance(target, str) else owner
        named = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, list | tuple):
        named = [(str(number), value) for number, value in enumerate(node)]
    else:
        return
    for key, value in named:
        inner = f"{place}.{key}" if place else key
        yield inner, value, owner
        if key != TARGET:
            yield from _walk(value, inner, owner)


def _check_target(place: str, target: Any, allow: Sequence[str]) -> None:
    if target is None and place in _MODELS:
        return
    if not isinstance(target, str):
        raise RequestError(
            f"{place}.{TARGET}={target!r} is not a name. Expected the dotted name of a class or"
            " function."
        )
    if _is_within(target, allow) or (target == FACTORY and _matches(place, _MODELS)):
        return
    kind = next((kind for pattern, kind in _PARTS.items() if _matches(place, [pattern])), None)
    package = re.split(r"[.:]", target)[0]
    if kind is None or not _is_within(target, (_PACKAGE,)):
        raise _refuse(place, target, package, kind)
    try:
        part = resolve_name(target)
    except (ImportError, ValueError, AttributeError):
        # `make` raises the error for a target that does not exist
        return
    is_ours = isinstance(part, type) and _is_within(part.__module__, (_PACKAGE,))
    if not is_ours or not issubclass(part, kind):
        raise _refuse(place, target, package, kind)


def _refuse(place: str, target: str, package: str, kind: type | None) -> RequestError:
    if _matches(place, _MODELS):
        expected = FACTORY
    else:
        expected = f"a part of kd_app ({kind.__name__})" if kind else "no part"
    fix = f" If you trust the code, allow it: 'allow=[{package}]'." if package != _PACKAGE else ""
    return RequestError(
        f"{place}.{TARGET}={target!r} names code that is not part of kd_app at this place of a"
        f" run's configuration, and named code is run. Expected {expected}.{fix}"
    )


def _is_remote(key: str, value: Any) -> bool:
    if key == "reader":
        # timm's readers other than `folder` download data sets, or run a shell
        return bool(value != "folder")
    is_location = isinstance(value, str) and _LOCATION.match(value) is not None
    return is_location and key != "license"


def _matches(place: str, patterns: Sequence[str]) -> bool:
    """Whether a dotted place has one of these patterns; ``*`` is a single name."""
    return any(
        place.count(".") == pattern.count(".") and fnmatchcase(place, pattern)
        for pattern in patterns
    )


def _is_within(name: str, packages: Sequence[str]) -> bool:
    return any(
        name == package or name.startswith((f"{package}.", f"{package}:")) for package in packages
    )
