"""What must not leave the machine: secrets, and the paths of its folders."""

import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

_SECRET = re.compile(r"(?:^|[_.-])(?:api_?key|access_?key|token|secret|passw(?:or)?d|credentials?)$", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_SHORTEST_SECRET = 8


def cleaned(value: Any) -> Any:
    """`value` (plain data) without keys that are named like a secret, values of secret environment variables, users in URLs, and machine paths.

    Of a path the last part stays: ``/home/me/photos`` becomes ``photos``, ``local-dir:/home/me/net`` becomes ``local-dir:net``.
    """
    secrets = [text for name, text in os.environ.items() if _SECRET.search(name) and len(text) >= _SHORTEST_SECRET]
    return _cleaned(value, secrets)


def _cleaned(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {_text(str(key), secrets): _cleaned(inner, secrets) for key, inner in value.items() if not _SECRET.search(str(key))}
    if isinstance(value, list | tuple):
        return [_cleaned(inner, secrets) for inner in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return _text(value, secrets) if isinstance(value, str) else value


def _text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return _machine_path().sub(lambda found: found[0].rstrip("/").rsplit("/", 1)[-1], _USER_IN_URL.sub("", text))


@cache
def _machine_path() -> re.Pattern[str]:
    """From where a path of this machine begins (at home, or at a folder that its root holds) to the end of the text.

    Other texts that begin with a slash, such as the class names of Open Images (``/m/01g317``), are no paths.
    """
    roots = "|".join(re.escape(name) for name in os.listdir("/"))
    return re.compile(rf"(?<![\w/.-])(?:file://)?(?:~|/(?:{roots}))/.*", re.DOTALL)
