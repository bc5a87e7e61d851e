"""The files and folders that a configuration names, with the hashes of their contents.

Images of the data are not among them: the listing of the data has their hashes.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kd_app.config.keys import NON_IDENTITY_KEYS
from kd_app.data.fingerprint import DigestBook, hash_files
from kd_app.digest import hash_value
from kd_app.models.model_config import CONFIG
from kd_app.models.save import WEIGHTS
from kd_app.run_files import RESULTS, STUDENT

_PATH_KEYS: Final = ("root", "unlabeled", "checkpoint", "classes", "policy", "images")
"""Last parts of the keys whose value is always a path."""
_LISTED: Final = ("data.root", "data.unlabeled", "data.source")
"""Keys of paths that the listing of the data covers."""
_NAMES: Final = ("name", "_target_", "license")
_OURS: Final = ("kd_app.", "timm.", "torch.", "lightning.")
_LOCAL: Final = "local-dir:"


def find_paths(config: Mapping[str, Any], *, is_listed: bool) -> dict[str, Path]:
    """The paths that the configuration reads, by dotted key.

    Paths are the values of keys such as ``checkpoint``, names that begin with
    ``local-dir:``, and other values that are existing files or folders: with a
    separator in any part, without one in a user-provided part.

    is_listed: the data have a listing, which covers the paths of their images.
    """
    groups = {
        key: value
        for key, value in config.items()
        if key == "license" or (key not in NON_IDENTITY_KEYS and not isinstance(value, str))
    }
    paths = dict(_iterate_paths(groups, "", is_own=False))
    if is_listed:
        return {key: path for key, path in paths.items() if not key.startswith(_LISTED)}
    return paths


def _iterate_paths(node: Any, key: str, *, is_own: bool) -> Iterator[tuple[str, Path]]:
    """Yield key and path of each path in a node. is_own: the node is part of a
    user-provided component.
    """
    if isinstance(node, Mapping):
        target = node.get("_target_")
        is_own = is_own if not isinstance(target, str) else not target.startswith(_OURS)
        for name, value in node.items():
            yield from _iterate_paths(value, f"{key}.{name}" if key else str(name), is_own=is_own)
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _iterate_paths(value, f"{key}.{number}", is_own=is_own)
    elif isinstance(node, str) and node:
        path = _read_path(key.rpartition(".")[2], node, is_own=is_own)
        if path is not None:
            yield key, path


def _read_path(name: str, value: str, *, is_own: bool) -> Path | None:
    if value.startswith(_LOCAL):
        return Path(value.removeprefix(_LOCAL)).expanduser()
    path = Path(value).expanduser()
    if name in _PATH_KEYS:
        return path
    is_candidate = name not in _NAMES and (is_own or os.sep in value)
    return path if is_candidate and _is_existing(path) else None


def _is_existing(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        # too long, or not a path at all
        return False


def open_digests(stages: Path, data: Mapping[str, Any]) -> DigestBook:
    """The digests of the images of `data` (the group of the configuration) and of what
    else its runs read, which all commands with these images and this folder of stages
    share.
    """
    roots = {key: os.path.abspath(str(data[key])) for key in ("root", "unlabeled") if data.get(key)}
    return DigestBook(stages / f".digests-{hash_value(roots)[:16]}.npz")


def hash_inputs(paths: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """The hash of each file by key and by name relative to the key's path; no names for
    a path that does not exist. Of large data, only the ends of each file are hashed.
    """
    return {
        key: _hash_path(path, whole=None if key.startswith("data.") else True)
        for key, path in paths.items()
    }


def _hash_path(path: Path, *, whole: bool | None) -> dict[str, str]:
    files = sorted(_list_files(path))
    digests = hash_files(files, whole=whole)
    return {
        os.path.relpath(file, path) if file != path else path.name: digest.hex()
        for file, digest in zip(files, digests, strict=True)
    }


def _list_files(path: Path) -> Iterable[Path]:
    """The files that are read from a path: of a run or a model folder, the files of the
    model; of other folders, all files.
    """
    if not path.is_dir():
        return [path] if path.is_file() else []
    folder = path / STUDENT if (path / RESULTS).is_file() else path
    model = [file for file in (folder / CONFIG, folder / WEIGHTS) if file.is_file()]
    return model or [file for file in path.rglob("*") if file.is_file()]
