"""What Hydra's own main is needed for."""

from unittest.mock import patch

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from kd_app.commands.hydra_app import _CONCERNS_HYDRA
from tests.commands.call import expect_refusal


@pytest.mark.parametrize(
    ("argument", "needs_main"),
    [
        *((flag, True) for flag in ("-m", "--multirun", "--cfg", "--info", "-cn=x")),
        *((key, True) for key in ("hydra/sweeper=search", "+hydra.job.name=a", "~hydra.x")),
        *((word, False) for word in ("seed=1", "out=hydra", "+hydrant=1", "student.name=hydra")),
    ],
)
def test_flags_and_hydras_settings_need_hydras_main(argument: str, needs_main: bool) -> None:
    assert bool(_CONCERNS_HYDRA.match(argument)) == needs_main


def test_a_command_composes_its_configuration_once() -> None:
    load = ConfigLoaderImpl.load_configuration
    with patch.object(ConfigLoaderImpl, "load_configuration", autospec=True, side_effect=load) as (
        loads
    ):
        assert "images='a' does not exist" in expect_refusal(
            "model=nothing", "images=a", "out=labels.csv", command="kd-predict"
        )
    assert loads.call_count == 1
