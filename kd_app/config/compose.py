"""From words on a command line, or in a notebook, to one plain configuration."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_app.config.errors import (
    RequestError,
    list_causes,
    nearest,
    suggest_closest,
    take_first_line,
)
from kd_app.config.paths import CONF, list_choices

COMPOSING = (HydraException, OmegaConfBaseException, ValueError)
"""What Hydra raises for words that it can't compose."""

_PRESETS = "data.presets"
"""Defaults of other groups: nobody sets them by hand."""
_SCHEDULE = re.compile(r"^(loss\.\w+\.schedule)=([a-z]\w*(?:,\w+)*)$")
_FREE = re.compile(r"^(?:(?:[\w]+\.)*(?:kwargs|members)\.[\w.]+|loss\.\w+\.teacher)=")
_NO_KEY = re.compile(r"Key '[^']+' (?:is not in struct|not in '\w+').*?full_key: (\S+)")
_NO_CHOICE = re.compile(r"Could not (?:find|load) '([\w/]+)/([^/']+)'")


def normalize_overrides(overrides: Iterable[str]) -> list[str]:
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


def to_plain_dict(config: DictConfig) -> dict[str, Any]:
    """The configuration as dicts and lists, interpolations resolved, without Hydra's
    own part.
    """
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise RequestError(
            f"The configuration can't be resolved: {take_first_line(error)}."
        ) from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items() if key != "hydra"}


def compose_config(primary: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose ``conf/<primary>.yaml`` with `overrides`; raises `RequestError` that
    names the closest key or choice.
    """
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(primary, overrides=normalize_overrides(overrides))
    except COMPOSING as error:
        raise RequestError(explain_error(error, primary, overrides)) from None
    return to_plain_dict(config)


def explain_error(error: BaseException, primary: str, words: Sequence[str]) -> str:
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
        " ".join(str(each).split("\nSet the environment")[0].split()) for each in list_causes(error)
    )
    if key := _NO_KEY.search(text):
        return _explain_unknown_key(key[1], primary, words)
    if choice := _NO_CHOICE.search(text):
        return _explain_unknown_choice(*choice.groups())
    if "Config group override must be" in text:
        return _explain_null_group(words)
    for pattern, sentence in _HYDRA_SAYS:
        if found := pattern.search(text):
            return sentence.format(*found.groups())
    return text.split(" Config search path:")[0]


_HYDRA_SAYS = (
    (
        re.compile(r"Could not append to config\. An item is already at '([^']+)'"),
        "'+' adds a setting, and there is one named {0!r} already. Leave out the '+'.",
    ),
    (
        re.compile(r"Could not delete from config\. '([^']+)' does not exist"),
        "'~' removes a setting, and there is none named {0!r}. '--cfg job' prints all settings.",
    ),
    (
        re.compile(r"Could not delete from config\. The value of '([^']+)' is (.+) and not (.+)\."),
        "'~{0}={2}' removes nothing: {0} is {1}. Write '~{0}', or {0}=<value> to change it.",
    ),
    (
        re.compile(r"Could not delete '([^'=]+)[^']*'\. No match in the defaults list"),
        "'~{0}' removes nothing: no such choice was made. To choose others, write {0}=<choice>, or"
        " a list of choices.",
    ),
    (
        re.compile(r"Could not override '([^']+)'\. Did you mean to override ([^?]+)\?"),
        "There is no group {0!r}. Did you mean {1!r}?",
    ),
    (
        re.compile(
            r"looks like a config group override, but config group '([^']+)' does not exist"
        ),
        "There is no group {0!r}. '--help' lists the groups and their choices.",
    ),
    (
        re.compile(r"Ambiguous value for argument '([^=]+)=([^']*)'"),
        "{0}={1} gives several values to one run. Add -m for a run with each of them, or write"
        " '{0}=[{1}]' for a list.",
    ),
)
"""What Hydra says, and the sentence for it that names no more than a user has to know."""


def _explain_unknown_key(key: str, primary: str, words: Sequence[str]) -> str:
    group, _, name = key.partition(".")
    if is_choice(group, name):
        return explain_not_chosen(group, name)
    if key.replace("/", ".").startswith("hydra."):
        return (
            f"There is no setting {key!r} of Hydra here. '--cfg hydra' prints those that there are;"
            " hydra/sweeper=search, or a hparams_search=, adds those of a search."
        )
    tree = _compose_tree(primary, words)
    near, beside = nearest(key, _list_keys(tree)), _list_beside(key, tree)
    if not beside and not near:
        beside = f"Groups and settings: {', '.join(tree)}. "
    return f"There is no setting {key!r}. {near}{beside}'--cfg job' prints all settings."


def _list_beside(key: str, tree: dict[str, Any]) -> str:
    """The settings of the innermost group that a wrong key names; empty where it names
    none.
    """
    node, place = tree, list[str]()
    for part in key.replace("/", ".").split(".")[:-1]:
        if not isinstance(node.get(part), dict):
            break
        node = node[part]
        place.append(part)
    if not place:
        return ""
    names = [name for name in node if not name.startswith("_")]
    return f"Settings of {'.'.join(place)}: {', '.join(names) or 'none'}. "


def _explain_unknown_choice(group: str, asked: str) -> str:
    none = "null (written so) chooses none. " if asked == "None" else ""
    known = list_choices(group)
    return (
        f"There is no {group} {asked!r}. {none or suggest_closest(asked, known)}Choices of {group}=:"
        f" {', '.join(known) or 'none'}."
    )


def _explain_null_group(words: Sequence[str]) -> str:
    """A group was given null or a number, where it takes a name or a list of names."""
    asked = [word for word in words if list_choices(word.partition("=")[0])]
    wrong = next(
        (
            word
            for word in asked
            if re.search(r"=(?:null|[\d.]+|true|false)?$", word, re.IGNORECASE)
        ),
        " ".join(words),
    )
    group = wrong.partition("=")[0]
    names = list_choices(group)
    hint = (
        f"Expected the name of a choice, or a list of some. Choices of {group}=:"
        f" {', '.join(names)}."
        if names
        else ""
    )
    return f"{wrong!r} chooses nothing. {hint or 'Expected <setting>=<value>, for example seed=1.'}"


def is_choice(group: str, name: str) -> bool:
    """Whether ``<group>=[<name>]`` would be understood."""
    return bool(name) and name in list_choices(group)


def explain_not_chosen(group: str, name: str) -> str:
    """The paragraph for a setting of a choice that was not made."""
    return (
        f"{group}.{name} is set, but {name} is not among the choices of {group}=. Add it:"
        f" '{group}=[...,{name}]'."
    )


def list_known_keys(primary: str, words: Sequence[str] = ()) -> list[str]:
    """Every dotted key of a primary configuration with the choices in `words`, and the
    names of its groups.
    """
    return _list_keys(_compose_tree(primary, words))


def _compose_tree(primary: str, words: Sequence[str]) -> dict[str, Any]:
    """A primary configuration with those of the choices in `words` that can be made."""
    chosen = [word for word in words if list_choices(word.partition("=")[0])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = compose(primary, overrides=chosen)
        except COMPOSING:
            config = compose(primary)
    tree = OmegaConf.to_container(config, resolve=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _list_keys(tree: dict[str, Any]) -> list[str]:
    keys = [path.name for path in CONF.iterdir() if path.is_dir()]

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else []:
            if f"{prefix}{key}" == _PRESETS:
                continue
            keys.append(f"{prefix}{key}")
            walk(value, f"{prefix}{key}.")

    walk(tree, "")
    return keys
