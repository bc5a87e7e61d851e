"""From words on a command line, or in a notebook, to one plain configuration."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_app.config.errors import RequestError, closest
from kd_app.config.paths import CONF

_FREE = re.compile(r"^(?:[\w]+\.)*kwargs\.[\w.]+=")


def opened(overrides: Iterable[str]) -> list[str]:
    """Let ``<part>.kwargs.<anything>=`` be said without Hydra's '++': the keys of kwargs are the part's own."""
    return [f"++{word}" if _FREE.match(word) else word for word in overrides]


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as dicts and lists, interpolations resolved, without Hydra's own part."""
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise RequestError(f"The configuration can't be resolved: {first_line(error)}.") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items() if key != "hydra"}


def composed(primary: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose ``conf/<primary>.yaml`` with `overrides`; raises `RequestError` that names the closest key or choice."""
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return plain(compose(primary, overrides=opened(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(explained(error, primary)) from None


def explained(error: BaseException, primary: str) -> str:
    """One paragraph for what Hydra or OmegaConf refused, with the closest key or choice where one is near."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = " ".join(str(chain[0]).split("\nSet the environment")[0].split())
    key = re.search(r"Key '([^']+)' is not in struct.*?full_key: ([\w.]+)", " ".join(" ".join(str(each).split()) for each in chain))
    if key:
        full, known = key.group(2), known_keys(primary)
        return f"There is no setting {full!r}. {closest(full, known) or closest(key.group(1), known)}'--cfg job' prints all settings."
    choice = re.search(r"(?:Could not find '|In '[^']+': Could not find ')([\w.]+)/([\w.]+)'", text)
    if choice:
        group, asked = choice.groups()
        known = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        return f"There is no {group} {asked!r}. {closest(asked, known)}Choices of {group}=: {', '.join(known) or 'none'}."
    return text


def known_keys(primary: str) -> list[str]:
    """Every dotted key of a primary configuration as it is by default, and the names of its groups."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose(primary), resolve=False)
    found: list[str] = [path.name for path in CONF.iterdir() if path.is_dir()]

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items() if isinstance(node, dict) else []:
            found.append(f"{prefix}{key}")
            walk(value, f"{prefix}{key}.")

    walk(config, "")
    return found


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
