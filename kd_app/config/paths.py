"""Where the configuration lies: in the installed package, or beside it in a checkout;
and the choices that it holds.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"


def list_choices(group: str) -> list[str]:
    """The names that ``<group>=`` takes; empty where there is no such group.

    A file whose name starts with an underscore holds what several choices share.
    """
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml")) if group else []
