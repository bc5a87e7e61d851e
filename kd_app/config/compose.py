"""Compose overrides from a command line or notebook into one plain configuration."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kd_app.config.errors import (
    RequestError,
    list_causes,
    suggest_closest,
    suggest_closest_keys,
)
from kd_app.config.hydra_messages import (
    explain_interpolation,
    explain_message,
    explain_missing,
)
from kd_app.config.path_settings import quote_path, resolve_paths
from kd_app.config.paths import CONF, list_choices
from kd_app.config.values import check_values

COMPOSE_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    YAMLError,
    ValueError,
    RecursionError,
)
"""The exceptions of Hydra for wrong overrides and wrong configuration files."""
_PRESETS = "data.presets"
"""Defaults for other groups, which users do not set."""
_SCHEDULE = re.compile(r"^(loss\.\w+\.schedule)=([a-z]\w*(?:,\w+)*)$")
_FREE_FORM = re.compile(r"^(?:(?:[\w]+\.)*(?:kwargs|members)(?:\.[\w.]+=|=\{)|loss\.\w+\.teacher=)")
_NO_KEY = re.compile(r"Key '[^']+' (?:is not in struct|not in '\w+').*?full_key: (\S+)")
_NO_CHOICE = re.compile(r"Could not (?:find|load) '([\w/]+)/([^/']*)'")


def normalize_overrides(overrides: Iterable[str], *, is_sweep: bool = False) -> list[str]:
    """Rewrite short overrides of kd_app into Hydra's syntax.

    Free-form keys (``<part>.kwargs.*``, ``<part>.kwargs={...}``,
    ``teacher.members.*``, ``loss.<term>.teacher``) get the prefix ``++``.
    ``loss.<term>.schedule=<name>`` becomes a choice of the group scheduler:
    ``+scheduler@loss.<term>.schedule=<name>``. Paths are quoted, see `quote_path`. A
    data module of the user's own replaces the digits with all labels. Normalized
    overrides do not change again.
    """
    overrides = list(overrides)
    if any(override.lstrip("+").startswith("data._target_=") for override in overrides):
        overrides = choose_all_labels(overrides)
    return [_normalize_override(quote_path(override, is_sweep=is_sweep)) for override in overrides]


def choose_all_labels(overrides: Sequence[str]) -> list[str]:
    """Prepend ``data=digits`` unless data are chosen: the default data has settings for
    few labels, which a data module of the user's own can't follow.
    """
    is_chosen = any(override.startswith("data=") for override in overrides)
    return list(overrides) if is_chosen else ["data=digits", *overrides]


def _normalize_override(override: str) -> str:
    if _FREE_FORM.match(override):
        return f"++{override}"
    is_null = override.partition("=")[2] == "null"
    return override if is_null else _SCHEDULE.sub(r"+scheduler@\1=\2", override)


def to_plain_dict(config: DictConfig) -> dict[str, Any]:
    """Convert a configuration to dicts and lists, with resolved interpolations and
    paths, without Hydra's settings. Raises `RequestError`.
    """
    try:
        resolved = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise RequestError(explain_interpolation(error)) from None
    assert isinstance(resolved, dict)
    plain = {str(key): value for key, value in resolved.items() if key != "hydra"}
    if missing := sorted(_list_missing(plain)):
        raise RequestError(explain_missing(missing))
    check_values(plain)
    with_paths: dict[str, Any] = resolve_paths(plain)
    return with_paths


def _list_missing(node: Any, key: str = "") -> Iterator[str]:
    """The keys of values that nobody set. ``OmegaConf.missing_keys`` resolves the
    configuration once more, which takes longer than all else here.
    """
    if node == MISSING:
        yield key
    elif isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _list_missing(value, f"{key}.{name}" if key else str(name))


def compose_config(primary: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose ``conf/<primary>.yaml`` with `overrides`.

    Raises `RequestError` with a suggestion for a wrong key or choice.
    """
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    try:
        check_choices(overrides)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(primary, overrides=normalize_overrides(overrides))
    except COMPOSE_ERRORS as error:
        raise RequestError(explain_error(error, primary, overrides)) from None
    return to_plain_dict(config)


def check_choices(overrides: Iterable[str]) -> None:
    """Raise `RequestError` for a word without a setting, and if a list of choices holds
    something else than names, which Hydra does not check.
    """
    parser = OverridesParser.create()
    for text in overrides:
        group = text.partition("=")[0].lstrip("+")
        if not group:
            raise RequestError(
                f"{text!r} names no setting. Expected <setting>=<value>, for example seed=1."
            )
        if not list_choices(group):
            continue
        (override,) = parser.parse_overrides([text])
        if isinstance(override.value(), Glob):
            continue  # only names, and Hydra lists them
        is_discrete = override.is_discrete_sweep()
        for value in override.sweep_iterator() if is_discrete else [override.value()]:
            for name in value if isinstance(value, list) else []:
                if not isinstance(name, str) or not name:
                    raise RequestError(
                        f"{text!r} chooses {name!r}. Expected a list of names. Choices of {group}=:"
                        f" {', '.join(list_choices(group))}."
                    )


def explain_error(error: BaseException, primary: str, overrides: Sequence[str]) -> str:
    """Write one paragraph for an error of Hydra or OmegaConf about `overrides`, with
    the closest key or choice if there is one.
    """
    if isinstance(error, RequestError):
        return str(error)
    if isinstance(error, OverrideParseException):
        # free-form keys have got a prefix
        typed = str(error.override).removeprefix("++")
        word = next((each for each in overrides if each.lstrip("+") == typed), error.override)
        return (
            f"{word!r} can't be read. Expected <setting>=<value>, for example seed=1."
            " Quote overrides with brackets, spaces or commas for the shell:"
            " 'loss=[cross_entropy,soft_target]'. A text with other characters than letters,"
            " digits, /, - and . has quotes of its own inside: 'tags=[\"a (1)\"]'."
        )
    text = " ".join(
        " ".join(str(each).split("\nSet the environment")[0].split()) for each in list_causes(error)
    )
    if key := _NO_KEY.search(text):
        return _explain_unknown_key(key[1], primary, overrides)
    if choice := _NO_CHOICE.search(text):
        return _explain_unknown_choice(*choice.groups())
    if "Config group override must be" in text:
        return _explain_null_group(overrides)
    return explain_message(text)


def _explain_unknown_key(key: str, primary: str, overrides: Sequence[str]) -> str:
    group, _, name = key.partition(".")
    if is_choice(group, name):
        return explain_not_chosen(group, name)
    if key.replace("/", ".").startswith("hydra."):
        return (
            f"Hydra has no setting {key!r} in this configuration. '--cfg hydra' prints all settings"
            " of Hydra. The settings of a search need hydra/sweeper=search or hparams_search=."
        )
    tree = _compose_tree(primary, overrides)
    if name and tree.get(group, "") is None and (choices := list_choices(group)):
        return (
            f"{key} has no effect, because {group}= chooses nothing. Choose one first, for example"
            f" {group}={'folder' if 'folder' in choices else choices[0]}. Choices of {group}=:"
            f" {', '.join(choices)}."
        )
    chosen = tree.get(group)
    is_known = isinstance(chosen, dict) and name.partition(".")[0] in chosen
    if not is_known and (owners := _list_owners(group, name)):
        return (
            f"There is no setting {key!r} with this choice of {group}=. It belongs to"
            f" {' and '.join(f'{group}={each}' for each in owners)}: choose that, or remove"
            f" {key}. '--cfg job' prints all settings."
        )
    closest, siblings = suggest_closest_keys(key, _list_keys(tree)), _describe_siblings(key, tree)
    if not siblings and not closest:
        siblings = f"Groups and settings: {', '.join(tree)}. "
    return f"There is no setting {key!r}. {closest}{siblings}'--cfg job' prints all settings."


def _list_owners(group: str, name: str) -> list[str]:
    """The choices of a group whose file has the setting `name`, or its first part."""
    first = name.partition(".")[0]
    files = {each: CONF / group / f"{each}.yaml" for each in list_choices(group) if first}
    return [each for each, file in files.items() if first in OmegaConf.load(file)]


def _describe_siblings(key: str, tree: dict[str, Any]) -> str:
    """The settings of the innermost existing group in a wrong key; empty if there is
    none.
    """
    node, groups = tree, list[str]()
    for part in key.replace("/", ".").split(".")[:-1]:
        if not isinstance(node.get(part), dict):
            break
        node = node[part]
        groups.append(part)
    if not groups:
        return ""
    names = [name for name in node if not name.startswith("_")]
    return f"Settings of {'.'.join(groups)}: {', '.join(names) or 'none'}. "


def _explain_unknown_choice(group: str, choice: str) -> str:
    known = list_choices(group)
    hint = suggest_closest(choice, known)
    if choice == "None":
        hint = "Use null for no choice. "
    return (
        f"There is no {group} {choice!r}. {hint}Choices of {group}=: {', '.join(known) or 'none'}."
    )


def _explain_null_group(overrides: Sequence[str]) -> str:
    """The paragraph for a group that is set to null or a number instead of a choice."""
    is_wrong = re.compile(r"=(?:null|[\d.]+|true|false)?$", re.IGNORECASE).search
    groups = [each for each in overrides if list_choices(each.partition("=")[0])]
    wrong = next(filter(is_wrong, groups), " ".join(overrides))
    group = wrong.partition("=")[0]
    names = list_choices(group)
    hint = "Expected <setting>=<value>, for example seed=1."
    if names:
        hint = (
            f"Expected the name of a choice, or a list of names. Choices of {group}=:"
            f" {', '.join(names)}."
        )
    return f"{wrong!r} chooses nothing. {hint}"


def is_choice(group: str, name: str) -> bool:
    """Whether ``<group>=[<name>]`` is valid."""
    return bool(name) and name in list_choices(group)


def explain_not_chosen(group: str, name: str) -> str:
    """The paragraph for a setting of a choice that is not selected."""
    return (
        f"{group}.{name} is set, but {name} is not among the choices of {group}=. Add it:"
        f" '{group}=[...,{name}]'."
    )


def list_known_keys(primary: str, overrides: Sequence[str] = ()) -> list[str]:
    """List every dotted key of a primary configuration with the choices in `overrides`,
    and the names of all groups.
    """
    return _list_keys(_compose_tree(primary, overrides))


def _compose_tree(primary: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose a primary configuration with the choices in `overrides`, or without if a
    choice is wrong.
    """
    choices = [each for each in overrides if list_choices(each.partition("=")[0])]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = compose(primary, overrides=choices)
        except COMPOSE_ERRORS:
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
