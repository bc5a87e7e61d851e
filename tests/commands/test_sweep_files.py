"""W&B's sweep files: each gives commands that run, sampled and put together as its
agent does it.
"""

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_app.config.compose import compose_config
from kd_app.specs.spec import build_spec
from kd_app.tracking.weights_and_biases import BEST
from tests.builders import results
from tests.commands.call import TINY, succeed

FILES = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


def sample_value(parameter: dict[str, Any]) -> Any:
    """A value in the middle of what a sweep's parameter may be."""
    if "values" in parameter:
        return parameter["values"][len(parameter["values"]) // 2]
    assert parameter["min"] < parameter["max"]
    if parameter["distribution"] == "log_uniform_values":
        return sqrt(parameter["min"] * parameter["max"])
    assert parameter["distribution"] == "uniform"
    return (parameter["min"] + parameter["max"]) / 2


def command(sweep: dict[str, Any]) -> list[str]:
    """What the agent would run for one trial."""
    # not above: every process of the tests would import it, which takes over a second
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    arguments = create_sweep_command_args(
        {
            "args": {
                name: {"value": sample_value(parameter)}
                for name, parameter in sweep["parameters"].items()
            }
        }
    )
    content: list[str] = []
    for part in create_sweep_command(list(sweep["command"])):
        content += arguments[part[2:-1]] if part.startswith("${") else [part]
    return content


def test_there_are_sweep_files() -> None:
    assert {path.stem for path in FILES} == {"temperature", "method", "optimizer"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_trial_of_every_sweep_file_composes(path: Path) -> None:
    first, *words = command(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert first == "kd-distill"
    assert build_spec(compose_config("distill", words)).config["test"] == "never"


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_trial_of_every_sweep_file_runs_and_leaves_the_test_set_alone(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (sweep["metric"], sweep["program"]) == ({"name": BEST, "goal": "maximize"}, "kd-distill")
    first, *words = command(sweep)
    assert first == "kd-distill"
    assert all("=" in word and not word.startswith("-") for word in words)
    succeed(*words, *TINY, "out=trial")
    content = results(Path("trial"))
    assert (content["status"], content["test"]) == ("finished", None)
    flat = {name: sample_value(parameter) for name, parameter in sweep["parameters"].items()}
    for name, value in flat.items():
        node: Any = content["config"]
        for key in name.split("."):
            node = node[key]
        assert node == value or f"[{','.join(node)}]" == value
