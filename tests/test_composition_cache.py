from contextlib import ExitStack
from unittest.mock import patch

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.config.paths import CONF
from tests import composition_cache

CHOICES: tuple[list[str], ...] = (
    [],
    ["data=folder", "data.root=photos", "loss=[cross_entropy,soft_target]", "debug=fdr"],
    ["data=folder", "data.root=other", "loss=[cross_entropy,soft_target]", "debug=fdr"],
    ["optimizer=sgd", "optimizer.lr=7", "teacher.max_epochs=9", "controls=[]"],
    ["+scheduler@loss.soft_target.schedule=ramp", "loss=[soft_target]", "callbacks=[ema]"],
    ["experiment=output", "~budget", "hydra.run.dir=here"],
)


def compose_whole(overrides: list[str], *, is_kept: bool) -> tuple[object, bool | None]:
    """Everything that Hydra composes, its own settings included, and whether unknown
    keys are refused.
    """
    with ExitStack() as stack:
        for each in () if is_kept else composition_cache.REPLACED:
            stack.enter_context(patch.object(each.owner, each.name, each.original))
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("distill", overrides=overrides, return_hydra_config=True)
    return OmegaConf.to_container(config, resolve=False), OmegaConf.is_struct(config)


@pytest.mark.parametrize("overrides", CHOICES, ids=str)
def test_kept_parts_compose_like_files_that_are_read_again(overrides: list[str]) -> None:
    compose_whole(overrides, is_kept=True)
    assert compose_whole(overrides, is_kept=True) == compose_whole(overrides, is_kept=False)


def test_a_wrong_choice_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(RequestError, match="cosin"):
            compose_config("distill", ["+scheduler@loss.soft_target.schedule=cosin"])
        with pytest.raises(RequestError, match="optimizer"):
            compose_config("distill", ["~optimizer=lamb"])


def test_what_is_composed_may_be_changed() -> None:
    first = compose_config("distill", [])
    first["optimizer"].clear()
    assert compose_config("distill", [])["optimizer"]
