"""Settings that hold paths: their keys, how the command line's values are read, and
which paths are refused before anything reads them.
"""

import errno
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from hydra.core.override_parser.types import Quote, QuotedString

from kd_app.config.errors import RequestError

PATH_KEYS: Final = (
    *("out", "stages", "run", "runs.*", "cascade.*", "model", "images"),
    *("data.root", "data.unlabeled", "data.judge", "data.source.images", "license.policy"),
    *("teacher.checkpoint", "teacher.classes", "teacher.chain.*.checkpoint"),
    *("teacher.members.*.checkpoint", "teacher.members.*.classes"),
    *("student.checkpoint", "controls.*.student.checkpoint"),
)
"""Patterns of the settings that are paths, in all commands. ``*`` is a name, or the
position in a list.
"""
_STAGES = "stages"
_LOCAL = "local-dir:"
"""The prefix of timm for a model's name that is a folder."""
_OVERRIDE = re.compile(r"(\+{0,2}([\w.-]+))=(.+)", re.DOTALL)
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_SWEEP_PART = re.compile(rf"\s*({_QUOTED}|[^,]*?)\s*(?:,|$)", re.DOTALL)
_SWEEP_FUNCTION = re.compile(r"(?:choice|glob|shuffle|sort|tag)\(.*\)", re.DOTALL)
_LONGEST_SHOWN = 80


def quote_path(override: str, *, is_sweep: bool = False) -> str:
    """Quote the value of a path setting, so that Hydra reads it as it is.

    Not literal are ``null``, interpolations (``${...}``), a leading ``~``, a pair of
    enclosing quotes, and in a sweep commas and Hydra's functions. Other overrides are
    returned unchanged.
    """
    match = _OVERRIDE.fullmatch(override)
    if match is None or not _is_path(match[2], match[3]):
        return override
    prefix, key, value = match.groups()
    # The trials of a sweep share one folder.
    is_sweep = is_sweep and key != "out"
    if is_sweep and _SWEEP_FUNCTION.fullmatch(value):
        return override
    parts = [value]
    if is_sweep:
        # The pattern also matches the empty end.
        parts = _SWEEP_PART.findall(value)[:-1] or parts
    return f"{prefix}={','.join(map(_quote, parts))}" if all(parts) else override


def _quote(value: str) -> str:
    if value == "null" or re.fullmatch(_QUOTED, value, re.DOTALL):
        return value
    return QuotedString(text=_expand(value), quote=Quote.single).with_quotes()


def _is_path(key: str, value: Any) -> bool:
    is_folder_name = isinstance(value, str) and value.startswith(_LOCAL)
    return is_folder_name or any(fnmatchcase(key, pattern) for pattern in PATH_KEYS)


def _expand(value: str) -> str:
    prefix = _LOCAL if value.startswith(_LOCAL) else ""
    return prefix + os.path.expanduser(value.removeprefix(prefix))


def resolve_paths(node: Any, key: str = "") -> Any:
    """Copy a configuration with ``~`` expanded in every path, and ``stages`` absolute:
    a run that is opened from another working directory finds its stages.

    Raises `RequestError` for a path that is no text, is empty, or can't exist: a name
    that is too long, a path below a file, a folder that this user may not enter.
    """
    if isinstance(node, Mapping):
        return {name: resolve_paths(each, _join(key, name)) for name, each in node.items()}
    if isinstance(node, list):
        return [resolve_paths(each, _join(key, number)) for number, each in enumerate(node)]
    if node is None or not _is_path(key, node):
        return node
    if not isinstance(node, str):
        raise RequestError(
            f"{key}={node!r} is not a path. Expected a text: in a YAML file or a list, put the"
            " name in quotes."
        )
    path = _expand(node)
    _check_path(key, path.removeprefix(_LOCAL))
    return os.path.abspath(path) if key == _STAGES else path


def relocate_paths(node: Any, base: Any, key: str = "") -> Any:
    """Copy the configuration of a run that was recorded in the working directory
    `base`, with absolute paths for what is there and not in the present one.
    """
    if isinstance(node, Mapping):
        return {name: relocate_paths(each, base, _join(key, name)) for name, each in node.items()}
    if isinstance(node, list):
        return [relocate_paths(each, base, _join(key, number)) for number, each in enumerate(node)]
    if not isinstance(node, str) or not isinstance(base, str) or not _is_path(key, node):
        return node
    prefix = _LOCAL if node.startswith(_LOCAL) else ""
    here = node.removeprefix(prefix)
    there = os.path.join(base, here)
    is_moved = not os.path.exists(here) and os.path.exists(there)
    return f"{prefix}{there}" if is_moved else node


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _check_path(key: str, path: str) -> None:
    if not path.strip():
        raise RequestError(
            f"{key}={path!r} is empty. Expected a path, or null for none. A variable of the shell"
            " may be unset."
        )
    try:
        os.stat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        text = path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}..."
        raise RequestError(f"{key}={text!r} can't be a path: {_explain(path, error)}") from None


def _explain(path: str, error: OSError | ValueError) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENAMETOOLONG:
        return "a name in it is too long. Expected: at most 255 bytes for each name."
    if number == errno.ENOTDIR:
        file = next((str(each) for each in Path(path).parents if each.is_file()), path)
        return f"{file!r} is a file, not a folder. Name a path that is not below a file."
    if number == errno.EACCES:
        return (
            "permission denied. Name another path, or allow this user to enter the folders above."
        )
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"{reason}. Name another path."
