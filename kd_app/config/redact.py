"""Removal of secrets and machine paths from data that leaves the machine."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from kd_app.config.plain_yaml import dump_yaml
from kd_app.config.records import load_record
from kd_app.files import replace_file

_SECRET = re.compile(
    r"(?:^|[_.-])(?:api_?key|access_?key|token|secret|passw(?:or)?d|passphrase|credentials?)$"
    r"|[_.-](?:key|pat|pwd|pass|pw|dsn|auth)$",
    re.IGNORECASE,
)
"""Names of settings and of environment variables that hold a secret. PWD is a folder.
"""
_TOKEN = re.compile(
    r"\b(?:gh[opsur]_|github_pat_|glpat-|hf_|xox[abeprs]-|sk-|sk_live_|AKIA|ASIA|AIza|npm_|pypi-)"
    r"[A-Za-z0-9_-]{16,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
)
"""Tokens of well-known services, by their prefixes."""
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_PASSWORD_IN_URL = re.compile(r"(?<=://)[^/@\s]*(?=@)")
_LOGIN = re.compile(r"://([^/@\s:]*):?([^/@\s]*)@")
_SHORTEST_SECRET = 6
_FILE = "file"
"""The column of a table with file names."""


def redact(value: Any) -> Any:
    """Copy `value` (plain data) without keys with a secret's name, values of secret
    environment variables, tokens, user names in URLs, and machine paths.

    A path is reduced to the last part: ``/home/me/photos`` becomes ``photos``,
    ``local-dir:/home/me/net`` becomes ``local-dir:net``.
    """
    return _redact(value, _list_secrets())


def hide_secrets(value: Any) -> Any:
    """Copy `value` (plain data) with ``***`` for secrets. Unlike `redact`, it keeps all
    keys and paths.
    """
    return _hide(value, _list_secrets())


def _hide(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            _hide_text(str(key), secrets): "***"
            if _is_secret(key, inner)
            else _hide(inner, secrets)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_hide(inner, secrets) for inner in value]
    return _hide_text(value, secrets) if isinstance(value, str) else value


def _hide_text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return _PASSWORD_IN_URL.sub("***", _TOKEN.sub("***", text))


def _is_secret(key: Any, value: Any) -> bool:
    """Whether a setting is a secret by its name. Groups are not: ``hard_token`` is a
    loss term.
    """
    return not isinstance(value, Mapping) and _SECRET.search(str(key)) is not None


def _list_secrets() -> list[str]:
    """The secrets of the environment, the longest first: values of variables with a
    secret's name, and passwords in URLs.
    """
    secrets = set()
    for name, text in os.environ.items():
        if _SECRET.search(name):
            secrets |= {text, *text.splitlines()}
        for user, password in _LOGIN.findall(text):
            # the DSN of some services has its key in the place of the user
            secrets.add(unquote(password or user))
            secrets.add(password or user)
    return sorted((each for each in secrets if len(each) >= _SHORTEST_SECRET), key=len)[::-1]


def relativize(names: Sequence[str]) -> list[str]:
    """Redact file names; machine paths become relative to the folder that contains all
    of them, so that the names stay distinct.
    """
    is_path = _compile_path_pattern().match
    paths = [name for name in names if is_path(name)]
    parent = ""
    if len({path[0] for path in paths}) == 1:
        parent = os.path.commonpath([os.path.dirname(path) for path in paths])
    if parent and not Path.home().is_relative_to(parent):
        names = [os.path.relpath(name, parent) if is_path(name) else name for name in names]
    return [str(name) for name in redact(list(names))]


def copy_redacted(path: Path, copy: Path) -> Path:
    """Write a redacted copy of a JSON, YAML or table file to `copy` and return `copy`,
    or return `path` if the file has nothing to redact. Redacts the file names of a
    table.
    """
    if path.suffix in (".json", ".yaml"):
        return _redact_text_file(path, copy)
    return _redact_table_file(path, copy) if path.suffix in (".csv", ".parquet") else path


def _redact_text_file(path: Path, copy: Path) -> Path:
    content = load_record(path, expected="Expected a file that kd_app wrote.")
    clean = redact(content)
    if clean == content:
        return path
    copy.parent.mkdir(parents=True, exist_ok=True)
    text = dump_yaml(clean) if path.suffix == ".yaml" else json.dumps(clean, indent=1)
    with replace_file(copy) as file:
        file.write(text.encode())
    return copy


def _redact_table_file(path: Path, copy: Path) -> Path:
    return _redact_parquet(path, copy) if path.suffix == ".parquet" else _redact_csv(path, copy)


def _redact_parquet(path: Path, copy: Path) -> Path:
    import pandas as pd

    table = pd.read_parquet(path)
    if _FILE not in table or not _has_path(table[_FILE]):
        return path
    table[_FILE] = relativize(table[_FILE].tolist())
    copy.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(copy) as file:
        table.to_parquet(file, index=False)
    return copy


def _redact_csv(path: Path, copy: Path) -> Path:
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    column = header.index(_FILE) if _FILE in header else None
    if column is None or not _has_path(row[column] for row in rows):
        return path
    names = relativize([row[column] for row in rows])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row, name in zip(rows, names, strict=True):
        writer.writerow([*row[:column], name, *row[column + 1 :]])
    copy.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(copy) as target:
        target.write(text.getvalue().encode())
    return copy


def _has_path(names: Iterable[str]) -> bool:
    find = _compile_path_pattern().search
    return any(find(name) for name in names)


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            _redact_text(str(key), secrets): _redact(inner, secrets)
            for key, inner in value.items()
            if not _is_secret(key, inner)
        }
    if isinstance(value, list | tuple):
        return [_redact(inner, secrets) for inner in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return _redact_text(value, secrets) if isinstance(value, str) else value


def _redact_text(text: str, secrets: list[str]) -> str:
    text = _USER_IN_URL.sub("", _hide_text(text, secrets))
    return _compile_path_pattern().sub(lambda match: match[0].rstrip("/").rsplit("/", 1)[-1], text)


@cache
def _compile_path_pattern() -> re.Pattern[str]:
    """Compile the pattern of a machine path, up to the end of the text.

    A path starts at the home folder or at an existing folder of the root. Other texts
    with a leading slash are not paths, for example the class names of Open Images
    (``/m/01g317``).
    """
    roots = "|".join(re.escape(name) for name in os.listdir("/"))
    return re.compile(rf"(?<![\w/.-])(?:file://)?(?:~|/(?:{roots}))/.*", re.DOTALL)
