"""Configuration files that a user names (``--config-dir``) are trusted like a script; a
slip in one is still refused.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_app.config.compose import compose_config
from kd_app.run.run_folder import build_run_name
from tests.builders import results
from tests.commands.call import TINY, done, refused
from tests.security.payloads import touching

Words = tuple[str, ...]


def experiment(
    folder: Path, content: Any, *, name: str = "theirs", group: str = "experiment"
) -> Words:
    """The words that choose an experiment of somebody else's."""
    (folder / group).mkdir(parents=True, exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(
        "# @package _global_\n" + yaml.safe_dump(content), encoding="utf-8"
    )
    return (f"--config-dir={folder}", f"{group}={name}")


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


def nested(place: str, value: Any) -> dict[str, Any]:
    for key in reversed(place.split(".")):
        value = {key: value}
    return dict(value)


@pytest.mark.parametrize(
    "place",
    [
        "callbacks.x",
        "loss.cross_entropy.x",
        "trainer.x",
        "teacher.kwargs.x.y.z",
        "data.view",
        "optimizer",
    ],
)
def test_parts_that_are_not_ours_are_refused_wherever_they_stand(
    place: str, tmp_path: Path, mark: Path
) -> None:
    words = experiment(tmp_path / "conf", nested(place, touching(mark)))
    assert f"{place}._target_='os.mkdir' names code that is not part of kd_app" in refused(
        *words, *TINY
    )


def test_an_interpolation_does_not_become_a_part_later(tmp_path: Path, mark: Path) -> None:
    hidden = '\\${oc.create:"{_target_: os.mkdir, path: ' + str(mark) + '}"}'
    words = experiment(
        tmp_path / "conf",
        {
            "callbacks": {
                "x": {
                    "_target_": "kd_app.training.averaging.EMA",
                    "decay": hidden,
                    "update_every": 1,
                }
            }
        },
    )
    assert "callbacks.x.decay=" in refused(*words, *TINY)


def test_classes_of_ours_that_are_no_parts_are_not_made(tmp_path: Path, mark: Path) -> None:
    starts = {
        "_target_": "kd_app.training.distributed.launch.ChildRank",
        "job": "x",
        "place": {"RANK": 1, "WORLD_SIZE": 1, "PYTHONPATH": "x"},
        "log": str(mark),
    }
    words = experiment(tmp_path / "conf", {"callbacks": {"x": starts}})
    assert "'kd_app.training.distributed.launch.ChildRank' names code that is not part" in refused(
        *words, *TINY
    )


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "a/b", "a\nb", "..", "student", "pair", "model_dump"]
)
def test_a_control_is_called_by_a_word(name: str, tmp_path: Path) -> None:
    words = experiment(tmp_path / "conf", {"controls": {name: {"loss": {}}}})
    assert refused(*words, *TINY, "out=run").startswith("controls has the name")


def test_the_name_of_a_run_is_a_word_whatever_its_data_are_called(tmp_path: Path) -> None:
    words = experiment(tmp_path / "conf", {"data": {"name": "../../evil\n/x"}})
    config = compose_config("distill", [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", words[1]])
    assert re.fullmatch(r"[\w-][\w.-]+", build_run_name(config))


@pytest.mark.slow
def test_a_run_that_names_no_folder_stays_in_runs_whatever_its_data_are_called(
    tmp_path: Path,
) -> None:
    words = experiment(tmp_path / "conf", {"data": {"name": "../../evil\n/x"}})
    done(*words, *TINY)
    (folder,) = (path for path in Path("runs").iterdir() if not path.name.startswith("."))
    assert (folder / "results.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf", "here"]


@pytest.mark.slow
def test_files_that_say_what_to_train_are_welcome_and_words_say_the_rest(tmp_path: Path) -> None:
    theirs = {
        "defaults": [{"override /hydra/sweeper": "search"}],
        "hydra": {"sweeper": {"trials": 2, "space": {"seed": "choice(0,1)"}}},
        "tags": ["theirs"],
    }
    words = experiment(tmp_path / "conf", theirs)
    done(
        "-m",
        *words,
        "debug=fdr",
        "teacher.name=resnet8",
        "out=sweep",
        "stages=stages",
        "hydra.sweeper.sampler=grid",
    )
    assert [results(Path("sweep") / number)["config"]["seed"] for number in "01"] == [0, 1]
    assert results(Path("sweep/0"))["config"]["tags"] == ["theirs"]
