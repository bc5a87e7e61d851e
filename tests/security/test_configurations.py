"""What a user names as configuration (the command line, ``--config-dir``) is trusted
like a script: it may name any code, and set whatever a setting sets.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.callbacks import Callback

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.run.folder import build_run_name
from kd_app.specs.spec import build_spec
from tests.builders import results
from tests.commands.call import succeed


class Mine(Callback):
    """A callback of the user."""

    def __init__(self, *, path: str) -> None:
        self.path = path


def experiment(folder: Path, content: Any) -> tuple[str, ...]:
    """The words that choose an experiment of somebody else's."""
    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    (folder / "experiment" / "theirs.yaml").write_text(
        "# @package _global_\n" + yaml.safe_dump(content), encoding="utf-8"
    )
    return (f"hydra.searchpath=[file://{folder}]", "experiment=theirs")


def test_a_file_that_a_user_names_may_set_whatever_the_command_line_may(tmp_path: Path) -> None:
    words = experiment(
        tmp_path / "conf",
        {"out": "theirs", "stages": "kept", "allow": ["timm"]},
    )
    config = compose_config("distill", [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", words[1]])
    assert (config["out"], config["stages"], config["allow"]) == (
        "theirs",
        str(Path("kept").absolute()),
        ["timm"],
    )


def test_code_that_a_user_names_needs_no_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KD_TEST_PATH", "from the environment")
    mine = {"_target_": f"{__name__}.Mine", "path": "${oc.env:KD_TEST_PATH}"}
    config = compose_config("distill", experiment(tmp_path, {"callbacks": {"mine": mine}}))
    assert config["allow"] == []
    spec = build_spec(config)
    callbacks = spec.recipe.make_callbacks(spec.task)
    assert isinstance(callbacks["mine"], Mine)
    assert callbacks["mine"].path == "from the environment"


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "a/b", "a\nb", "..", "student", "pair", "model_dump"]
)
def test_a_control_is_called_by_a_word(name: str, tmp_path: Path) -> None:
    config = compose_config("distill", experiment(tmp_path, {"controls": {name: {"loss": {}}}}))
    with pytest.raises(RequestError, match=r"^controls has the name"):
        build_spec(config)


def test_a_run_that_names_no_folder_stays_in_runs_whatever_its_data_are_called() -> None:
    config = compose_config("distill", [])
    config["data"]["name"] = "../../evil\n/x"
    name = build_run_name(config)
    assert (Path("runs") / name).resolve().parent == Path("runs").resolve()
    assert name.isprintable()


@pytest.mark.slow
def test_files_that_say_what_to_train_are_welcome_and_words_say_the_rest(tmp_path: Path) -> None:
    theirs = {
        "defaults": [{"override /hydra/sweeper": "search"}],
        "hydra": {"sweeper": {"trials": 2, "space": {"seed": "choice(0,1)"}}},
        "tags": ["theirs"],
    }
    words = experiment(tmp_path / "conf", theirs)[1:]
    succeed(
        "-m",
        f"--config-dir={tmp_path / 'conf'}",
        *words,
        "debug=fdr",
        "teacher.name=resnet8",
        "out=sweep",
        "stages=stages",
        "hydra.sweeper.sampler=grid",
    )
    assert [results(Path("sweep") / number)["config"]["seed"] for number in "01"] == [0, 1]
    assert results(Path("sweep/0"))["config"]["tags"] == ["theirs"]
