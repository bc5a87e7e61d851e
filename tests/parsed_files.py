"""The files of ``conf``, parsed once for a process of tests instead of once for each
configuration, which is a third of what composing costs.
"""

from copy import copy, deepcopy
from pathlib import Path
from unittest.mock import patch

from hydra._internal.config_repository import ConfigRepository
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult

from kd_app.config.paths import CONF

_load_config = ConfigRepository.load_config
_parsed: dict[tuple[object, ...], ConfigResult] = {}


def _load_parsed(repository: ConfigRepository, config_path: str) -> ConfigResult | None:
    """Load a configuration of ``conf`` or of Hydra, which is parsed again only if its
    file has changed.
    """
    source = repository._find_object_source(config_path, ObjectType.CONFIG)
    is_ours = source is not None and source.path == str(CONF)
    if source is None or (source.scheme() == "file" and not is_ours):
        return _load_config(repository, config_path)
    key: tuple[object, ...] = source.scheme(), source.path, config_path
    if is_ours:
        file = Path(CONF, source._normalize_file_name(config_path)).stat()
        key = *key, file.st_mtime_ns, file.st_size
    if key not in _parsed:
        loaded = _load_config(repository, config_path)
        assert loaded is not None
        _parsed[key] = loaded
    fresh = copy(_parsed[key])
    fresh.config = deepcopy(fresh.config)
    return fresh


def keep_parsed_files() -> None:
    """Compose with the files that are parsed already from now on."""
    patch.object(ConfigRepository, "load_config", _load_parsed).start()
