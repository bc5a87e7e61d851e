"""From words on a command line, or in a notebook, to one plain configuration."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_app.config.errors import RequestError, causes, closest, first_line
from kd_app.config.paths import CONF

COMPOSING = (HydraException, OmegaConfBaseException, ValueError)
"""What Hydra raises for words that it can't compose."""

_SCHEDULE = re.compile(r"^(loss\.\w+\.schedule)=([a-z]\w*(?:,\w+)*)$")
_FREE = re.compile(r"^(?:(?:[\w]+\.)*(?:kwargs|members)\.[\w.]+|loss\.\w+\.teacher)=")
_NO_KEY = re.compile(r"Key '[^']+' is not in struct.*?full_key: (\S+)")
_NO_CHOICE = re.compile(r"Could not (?:find|load) '([\w/]+)/([^/']+)'")


def opened(overrides: Iterable[str]) -> list[str]:
    """Let ``<part>.kwargs.<anything>=``, ``teacher.members.<name>...=`` and
    ``loss.<term>.teacher=`` be said without Hydra's '++': their keys are who writes
    them's own, or seldom said.

    ``loss.<term>.schedule=<name>`` is one of scheduler's choices: Hydra's
    ``+scheduler@loss.<term>.schedule=<name>``.
    """
    words = (
        _SCHEDULE.sub(r"+scheduler@\1=\2", word) if word.partition("=")[2] != "null" else word
        for word in overrides
    )
    return [f"++{word}" if _FREE.match(word) else word for word in words]


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as dicts and lists, interpolations resolved, without Hydra's
    own part.
    """
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise RequestError(f"The configuration can't be resolved: {first_line(error)}.") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items() if key != "hydra"}


def composed(primary: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose ``conf/<primary>.yaml`` with `overrides`; raises `RequestError` that
    names the closest key or choice.
    """
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(primary, overrides=opened(overrides))
    except COMPOSING as error:
        raise RequestError(explained(error, primary, overrides)) from None
    return plain(config)


def explained(error: BaseException, primary: str, words: Sequence[str]) -> str:
    """One paragraph for what Hydra or OmegaConf refused in `words`, with the closest
    key or choice where one is near.
    """
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} can't be read. Expected <setting>=<value>, for example seed=1;"
            " quote for the shell what has brackets, spaces or commas in it:"
            " 'loss=[cross_entropy,soft_target]'."
        )
    text = " ".join(
        " ".join(str(each).split("\nSet the environment")[0].split()) for each in causes(error)
    )
    if key := _NO_KEY.search(text):
        return _no_key(key[1], primary, words)
    if choice := _NO_CHOICE.search(text):
        return _no_choice(*choice.groups())
    if "Config group override must be" in text:
        return _no_group_choice(words)
    return text.split(" Config search path:")[0]


def _no_key(key: str, primary: str, words: Sequence[str]) -> str:
    group, _, name = key.partition(".")
    if is_choice(group, name):
        return not_chosen(group, name)
    return (
        f"There is no setting {key!r}. {closest(key, known_keys(primary, words))}'--cfg job' prints"
        " all settings."
    )


def _no_choice(group: str, asked: str) -> str:
    none = "null (written so) chooses none. " if asked == "None" else ""
    known = choices(group)
    return (
        f"There is no {group} {asked!r}. {none or closest(asked, known)}Choices of {group}=:"
        f" {', '.join(known) or 'none'}."
    )


def _no_group_choice(words: Sequence[str]) -> str:
    """A group was given null or a number, where it takes a name or a list of names."""
    asked = [word for word in words if choices(word.partition("=")[0])]
    wrong = next(
        (
            word
            for word in asked
            if re.search(r"=(?:null|[\d.]+|true|false)?$", word, re.IGNORECASE)
        ),
        " ".join(words),
    )
    group = wrong.partition("=")[0]
    names = choices(group)
    hint = (
        f"Expected the name of a choice, or a list of some. Choices of {group}=:"
        f" {', '.join(names)}."
        if names
        else ""
    )
    return f"{wrong!r} chooses nothing. {hint or 'Expected <setting>=<value>, for example seed=1.'}"


def choices(group: str) -> list[str]:
    """The names that ``<group>=`` takes; empty where there is no such group.

    A file whose name starts with an underscore holds what several choices share.
    """
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml")) if group else []


def is_choice(group: str, name: str) -> bool:
    """Whether ``<group>=[<name>]`` would be understood."""
    return bool(name) and name in choices(group)


def not_chosen(group: str, name: str) -> str:
    """The paragraph for a setting of a choice that was not made."""
    return (
        f"{group}.{name} is set, but {name} is not among the choices of {group}=. Add it:"
        f" '{group}=[...,{name}]'."
    )


def known_keys(primary: str, words: Sequence[str] = ()) -> list[str]:
    """Every dotted key of a primary configuration with the choices in `words`, and the
    names of its groups.
    """
    chosen = [word for word in words if choices(word.partition("=")[0])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = compose(primary, overrides=chosen)
        except COMPOSING:
            config = compose(primary)
    found: list[str] = [path.name for path in CONF.iterdir() if path.is_dir()]

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else []:
            found.append(f"{prefix}{key}")
            walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(config, resolve=False), "")
    return found
