"""What ``--help`` says: the groups with their choices, and every setting. Hydra's own
help takes twice as long, since it copies all it knows for every group.
"""

from collections.abc import Sequence

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from kd_app.config.compose import choices, opened
from kd_app.config.paths import CONF

ASKED = {"-h", "--help"}


def helped(primary: str, words: Sequence[str]) -> str:
    """The help for ``conf/<primary>.yaml`` with the choices in `words`. Raises what
    Hydra raises for words that it can't compose.
    """
    groups = _groups(primary)
    listed = [
        f"  {group}: {', '.join(choices(group))}"
        for group in [*sorted(groups), "hydra/launcher", "hydra/sweeper"]
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            primary, overrides=opened(word for word in words if not word.startswith("-"))
        )
    return "\n".join(
        [
            f"kd-{primary} <setting>=<value> ...",
            "",
            (
                "Settings are words such as seed=1. Quote what has brackets:"
                " 'loss=[cross_entropy,soft_target]'."
            ),
            (
                "-m runs one trial for each combination of seed=0,1,2; --cfg job prints the"
                " settings that the words make; --hydra-help tells of Hydra."
            ),
            "",
            (
                "Groups and their choices (<group>=<choice>; loss, callbacks, controls and logger"
                " take lists):"
            ),
            *listed,
            "",
            "All settings, as these words make them:",
            "",
            OmegaConf.to_yaml(config),
        ]
    )


def _groups(primary: str) -> list[str]:
    """The groups of a primary configuration, and of those that it takes over."""
    found: list[str] = []
    for default in yaml.safe_load((CONF / f"{primary}.yaml").read_text(encoding="utf-8"))[
        "defaults"
    ]:
        if isinstance(default, dict):
            found += [group for group in default if choices(group)]
        elif default != "_self_":
            found += _groups(default)
    return found
