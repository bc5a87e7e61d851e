"""Composed configurations, kept within a process of tests: the files of ``conf`` are
parsed once, as are overrides and interpolations, and the groups that a command chooses
are merged once for each choice. What differs from test to test, the values, is still
set by Hydra.

Composing costs a third of a second of processor time otherwise, 1,600 times.
"""

import pickle
from collections.abc import Callable
from copy import copy, deepcopy
from functools import lru_cache
from typing import Any, NamedTuple
from unittest.mock import patch

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import (
    CachingConfigRepository,
    ConfigRepository,
    IConfigRepository,
)
from hydra._internal.defaults_list import Overrides
from hydra.core.default_element import DefaultsTreeNode, InputDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import Container, DictConfig, OmegaConf, _utils, base, grammar_parser

from kd_app.config.paths import CONF

_load_config = ConfigRepository.load_config
_list_defaults = defaults_list._create_defaults_list
_map_choices = defaults_list._create_interpolation_map
_merge_defaults = ConfigLoaderImpl._compose_config_from_defaults_list
_load_single = ConfigLoaderImpl._load_single_config
_copy_repository = CachingConfigRepository.__init__
_parse_rule = OverridesParser.parse_rule
_parsed: dict[tuple[object, ...], tuple[ConfigResult, "Kept"]] = {}
_listed: dict[tuple[object, ...], tuple[list[ResultDefault], dict[str, Any]]] = {}
_merged: dict[tuple[object, ...], "Kept"] = {}
_placed: dict[tuple[object, ...], tuple[ConfigResult, "Kept"]] = {}
_no_choices = OmegaConf.create()
_rules: dict[tuple[str, str], Any] = {}
_GROUPS = ("override_choices", "append_group_defaults", "deletions")
_NOTES = (
    "override_choices",
    "override_metadata",
    "known_choices",
    "known_choices_per_group",
    "deletions",
)
"""What Hydra writes into the overrides while it lists the defaults."""


class Kept(NamedTuple):
    """A configuration that nobody changes, and the same pickled."""

    config: Container
    pickled: bytes


def keep(config: Container) -> Kept:
    """Pickle a configuration."""
    return Kept(config, pickle.dumps(config))


def copy_kept(kept: Kept) -> Any:
    """Unpickle, which takes a third of the time of a deep copy."""
    return pickle.loads(kept.pickled)


def _is_constant(source: ConfigSource) -> bool:
    """Whether no test changes the files of this source."""
    return source.scheme() != "file" or source.path == str(CONF)


def _describe_sources(repository: IConfigRepository) -> tuple[object, ...] | None:
    """A key for sources that no test changes; None if a test may change one."""
    sources = repository.get_sources()
    if not all(map(_is_constant, sources)):
        return None
    return tuple((source.scheme(), source.path) for source in sources)


def _load_parsed(repository: ConfigRepository, config_path: str) -> ConfigResult | None:
    """Load a configuration of ``conf`` or of Hydra, parsed once."""
    source = repository._find_object_source(config_path, ObjectType.CONFIG)
    if source is None or not _is_constant(source):
        return _load_config(repository, config_path)
    key = source.scheme(), source.path, config_path
    if key not in _parsed:
        loaded = _load_config(repository, config_path)
        assert loaded is not None
        _parsed[key] = loaded, keep(loaded.config)
    loaded, kept = _parsed[key]
    fresh = copy(loaded)
    fresh.config = copy_kept(kept)
    return fresh


def _list_once(
    repo: IConfigRepository, config_name: str | None, overrides: Overrides, **flags: bool
) -> tuple[list[ResultDefault], DefaultsTreeNode | None]:
    """List the defaults for the groups that are chosen; the tree, which only Hydra's
    ``--info`` reads, is left out when they were listed before.
    """
    sources = _describe_sources(repo)
    if sources is None:
        return _list_defaults(repo, config_name, overrides, **flags)
    groups = repr([getattr(overrides, name) for name in _GROUPS])
    key = (*sources, config_name, groups, *flags.items())
    if key not in _listed:
        defaults, tree = _list_defaults(repo, config_name, overrides, **flags)
        used = {name: getattr(overrides, name) for name in _NOTES}
        _listed[key] = defaults, deepcopy(used)
        return defaults, tree
    defaults, used = _listed[key]
    vars(overrides).update(deepcopy(used))
    return defaults, None


def _merge_once(
    loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository
) -> DictConfig:
    """Merge the listed files, once for each list."""
    sources = _describe_sources(repo)
    if sources is None:
        return _merge_defaults(loader, defaults, repo)
    key = (*sources, repr(defaults))
    if key not in _merged:
        _merged[key] = keep(_merge_defaults(loader, defaults, repo))
    copied: DictConfig = copy_kept(_merged[key])
    return copied


def _place_once(
    loader: ConfigLoaderImpl, default: ResultDefault, repo: IConfigRepository
) -> ConfigResult:
    """Put what a listed file has under the key of its group, once."""
    sources = _describe_sources(repo)
    if sources is None:
        return _load_single(loader, default, repo)
    key = (*sources, repr(default))
    if key not in _placed:
        result = _load_single(loader, default, repo)
        _placed[key] = result, keep(result.config)
        return result
    result, kept = _placed[key]
    fresh = copy(result)
    fresh.config = copy_kept(kept)
    return fresh


def _map_choices_if_read(
    overrides: Overrides, defaults: list[InputDefault], self_added: bool
) -> DictConfig:
    """Write the choices as a configuration only if the name of a file refers to one."""
    if any(default.is_interpolation() for default in defaults):
        return _map_choices(overrides, defaults, self_added)
    return _no_choices


def _share_sources(repository: CachingConfigRepository, delegate: IConfigRepository) -> None:
    """Copy the repository of a composition without its sources, which are replaced as a
    whole.
    """
    repository.delegate = copy(delegate)
    repository.cache = {}


def _parse_rule_once(parser: OverridesParser, text: str, rule_name: str) -> Any:
    """Parse the text of an override once."""
    key = text, rule_name
    if key not in _rules:
        _rules[key] = _parse_rule(parser, text, rule_name)
    return deepcopy(_rules[key])


_parse_once = lru_cache(maxsize=None)(grammar_parser.parse)
"""Parse an interpolation once: nobody changes the tree."""


class Replaced(NamedTuple):
    """A function of Hydra or OmegaConf, where it is looked up, and ours for it."""

    owner: object
    name: str
    original: Callable[..., Any]
    ours: Callable[..., Any]


REPLACED = (
    Replaced(ConfigRepository, "load_config", _load_config, _load_parsed),
    Replaced(defaults_list, "_create_defaults_list", _list_defaults, _list_once),
    Replaced(defaults_list, "_create_interpolation_map", _map_choices, _map_choices_if_read),
    Replaced(ConfigLoaderImpl, "_load_single_config", _load_single, _place_once),
    Replaced(ConfigLoaderImpl, "_compose_config_from_defaults_list", _merge_defaults, _merge_once),
    Replaced(CachingConfigRepository, "__init__", _copy_repository, _share_sources),
    Replaced(OverridesParser, "parse_rule", _parse_rule, _parse_rule_once),
    Replaced(_utils, "parse", grammar_parser.parse, _parse_once),
    Replaced(base, "parse", grammar_parser.parse, _parse_once),
)


def keep_compositions() -> None:
    """Compose with what is parsed and merged already from now on."""
    for each in REPLACED:
        patch.object(each.owner, each.name, each.ours).start()
