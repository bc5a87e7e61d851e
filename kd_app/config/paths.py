"""The location of the configuration files, and the choices of each group."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# a wheel contains conf/; in a checkout, conf/ is next to the package
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"


def list_choices(group: str) -> list[str]:
    """The names that ``<group>=`` accepts; empty if there is no such group.

    A file name with a leading underscore is not a choice, but a base of several
    choices.
    """
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml")) if group else []
