"""The location of the configuration files, and the choices of each group."""

from pathlib import Path
from typing import Any

import yaml

_PACKAGE = Path(__file__).resolve().parents[1]
# a wheel contains conf/; in a checkout, conf/ is next to the package
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"


def read_settings(name: str) -> dict[str, Any]:
    """The content of ``conf/<name>.yaml``, without its defaults list's files."""
    settings: dict[str, Any] = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    return settings


def list_choices(group: str) -> list[str]:
    """The names that ``<group>=`` accepts; empty if there is no such group.

    A file name with a leading underscore is not a choice, but a base of several
    choices.
    """
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml")) if group else []
