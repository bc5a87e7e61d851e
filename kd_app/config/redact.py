"""What must not leave the machine: secrets, and the paths of its folders."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_SECRET = re.compile(
    r"(?:^|[_.-])(?:api_?key|access_?key|token|secret|passw(?:or)?d|credentials?)$", re.IGNORECASE
)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_SHORTEST_SECRET = 8
_FILE = "file"
"""The column of a table that names files."""


def redact(value: Any) -> Any:
    """`value` (plain data) without keys that are named like a secret, values of secret
    environment variables, users in URLs, and machine paths.

    Of a path the last part stays: ``/home/me/photos`` becomes ``photos``,
    ``local-dir:/home/me/net`` becomes ``local-dir:net``.
    """
    secrets = [
        text
        for name, text in os.environ.items()
        if _SECRET.search(name) and len(text) >= _SHORTEST_SECRET
    ]
    return _redact(value, secrets)


def relativize(names: Sequence[str]) -> list[str]:
    """Names of files, those of this machine's folders as seen from the folder that all
    of them are in, so that each stays told apart.
    """
    machine = [name for name in names if _compile_path_pattern().match(name)]
    above = (
        os.path.commonpath([os.path.dirname(name) for name in machine])
        if len({name[0] for name in machine}) == 1
        else ""
    )
    if not above or Path.home().is_relative_to(above):
        return [str(name) for name in redact(list(names))]
    return [
        str(name)
        for name in redact(
            [
                os.path.relpath(name, above) if _compile_path_pattern().match(name) else name
                for name in names
            ]
        )
    ]


def redacted_copy(path: Path, copy: Path) -> Path:
    """`path`, or a `copy` of it without what must not leave the machine, where it holds
    some of that: in JSON, YAML, and names of files in tables.
    """
    if path.suffix in (".json", ".yaml"):
        return _redact_text_file(path, copy)
    return _redact_table_file(path, copy) if path.suffix in (".csv", ".parquet") else path


def _redact_text_file(path: Path, copy: Path) -> Path:
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    clean = redact(content)
    if clean == content:
        return path
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(
        (
            yaml.safe_dump(clean, sort_keys=False, allow_unicode=True)
            if path.suffix == ".yaml"
            else json.dumps(clean, indent=1)
        ),
        encoding="utf-8",
    )
    return copy


def _redact_table_file(path: Path, copy: Path) -> Path:
    import pandas as pd

    table = (
        pd.read_parquet(path)
        if path.suffix == ".parquet"
        else pd.read_csv(path, dtype=str, keep_default_na=False)
    )
    if _FILE not in table or not any(_compile_path_pattern().search(name) for name in table[_FILE]):
        return path
    table[_FILE] = relativize(table[_FILE].tolist())
    copy.parent.mkdir(parents=True, exist_ok=True)
    (
        table.to_parquet(copy, index=False)
        if path.suffix == ".parquet"
        else table.to_csv(copy, index=False, lineterminator="\n")
    )
    return copy


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            _redact_text(str(key), secrets): _redact(inner, secrets)
            for key, inner in value.items()
            if not _SECRET.search(str(key))
        }
    if isinstance(value, list | tuple):
        return [_redact(inner, secrets) for inner in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return _redact_text(value, secrets) if isinstance(value, str) else value


def _redact_text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return _compile_path_pattern().sub(
        lambda found: found[0].rstrip("/").rsplit("/", 1)[-1], _USER_IN_URL.sub("", text)
    )


@cache
def _compile_path_pattern() -> re.Pattern[str]:
    """From where a path of this machine begins (at home, or at a folder that its root
    holds) to the end of the text.

    Other texts that begin with a slash, such as the class names of Open Images
    (``/m/01g317``), are no paths.
    """
    roots = "|".join(re.escape(name) for name in os.listdir("/"))
    return re.compile(rf"(?<![\w/.-])(?:file://)?(?:~|/(?:{roots}))/.*", re.DOTALL)
