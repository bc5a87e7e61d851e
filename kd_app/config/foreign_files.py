"""Somebody else's configuration files (``--config-dir``) say what to train; what else
Hydra runs and where is written is said by the command line.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kd_app.config.errors import RequestError
from kd_app.config.paths import CONF

_SAID = ("allow", "out", "stages", "remake", "overwrite", "logger", "license")
"""Keys of ours that only the command line says: whose code is run, which folders are
written, where results are sent, which licenses are accepted.
"""
_SEARCH = "sweeper"
"""The one part of Hydra that a file may choose and set, if it is one of these."""
_SWEEPERS = (
    "hydra_plugins.kd_app_search.SearchSweeper",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
)
_COMPOSED = ("overrides", "runtime", "mode", _SEARCH)
_NAMED = ("name", "override_dirname", "config_name", "id", "num")
"""What Hydra itself fills in: of ``hydra``, and of ``hydra.job``."""


@contextmanager
def told_apart(primary: str) -> Iterator[None]:
    """While it lasts, composing refuses files that are not ours and set what only words
    may set (`RequestError`).

    Hydra calls what ``hydra.callbacks`` and ``hydra.job_logging`` name, sets the
    environment, and makes folders, before a task's body has begun. So this looks at
    each configuration as Hydra composes it, trials included: it has no other place to
    do so.
    """
    plain = ConfigLoaderImpl.load_configuration

    def load(
        self: ConfigLoaderImpl,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        **options: bool,
    ) -> DictConfig:
        config = plain(self, config_name, overrides, run_mode, **options)
        if any(
            source.schema == "file" and source.path != str(CONF)
            for source in config.hydra.runtime.config_sources
        ):
            _compare(config, plain(self, primary, _own(overrides), run_mode, **options))
        return config

    ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = plain  # type: ignore[method-assign]


def _own(words: Sequence[str]) -> list[str]:
    """The words that set what only words may set."""
    said = OverridesParser.create().parse_overrides(list(words))
    return [
        str(override.input_line)
        for override in said
        if _sets(override.get_key_element().lstrip("+~"), override.value())
    ]


def _sets(key: str, value: Any) -> bool:
    if key == "debug":  # ours says which trackers follow
        return (CONF / key / f"{value}.yaml").is_file()
    return key.split(".", maxsplit=1)[0] in _SAID or (
        key.startswith(("hydra.", "hydra/")) and key[6:].split(".", maxsplit=1)[0] != _SEARCH
    )


def _compare(config: DictConfig, said: DictConfig) -> None:
    for key, value in _settings(config).items():
        if value != _settings(said).get(key):
            raise RequestError(
                f"{key}={value!r} comes from a configuration file that is not kd_app's. Only the"
                " command line says what else is run and where is written. Leave it out there, and"
                " say it as a word of the command if you want it."
            )
    sweeper = config.hydra.sweeper._target_
    if sweeper not in _SWEEPERS:
        raise RequestError(
            f"hydra.sweeper._target_={sweeper!r} is no sweeper of kd_app. Use hydra/sweeper=search,"
            " or basic."
        )


def _settings(config: DictConfig) -> Mapping[str, Any]:
    """What only words may set, as it is now."""
    hydra: Any = OmegaConf.to_container(config.hydra, resolve=False)
    ours: Any = OmegaConf.to_container(
        OmegaConf.masked_copy(config, [key for key in _SAID if key in config]), resolve=False
    )
    job = {
        f"hydra.job.{key}": value for key, value in hydra.pop("job").items() if key not in _NAMED
    }
    return {
        **ours,
        **job,
        **{f"hydra.{key}": value for key, value in hydra.items() if key not in _COMPOSED},
    }
