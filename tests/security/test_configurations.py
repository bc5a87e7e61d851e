"""An experiment file of somebody else's (``--config-dir``) says what to train, not what
else is run or where is written.
"""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_app.config.compose import composed
from kd_app.config.errors import RequestError
from tests.commands.call import TINY, call, done, refused
from tests.security.payloads import touching
from tests.training.made import results

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


def logging_of(mark: Path) -> dict[str, Any]:
    return {
        "version": 1,
        "root": {"handlers": ["x"]},
        "handlers": {"x": {"class": "logging.FileHandler", "filename": str(mark)}},
    }


def of_hydra(mark: Path) -> dict[str, Any]:
    """What Hydra would run or write for a file that says so."""
    return {
        "hydra.callbacks": {"callbacks": {"x": touching(mark)}},
        "hydra.job_logging": {"job_logging": logging_of(mark)},
        "hydra.hydra_logging": {"hydra_logging": logging_of(mark)},
        "hydra.job.env_set": {"job": {"env_set": {"PYTHONPATH": str(mark)}}},
        "hydra.job.chdir": {"job": {"chdir": True}, "run": {"dir": "."}},
        "hydra.run": {"run": {"dir": str(mark)}},
        "hydra.output_subdir": {"output_subdir": str(mark)},
        "hydra.sweep": {"sweep": {"dir": str(mark)}},
    }


KEYS = list(of_hydra(Path()))


@pytest.mark.parametrize("key", KEYS)
def test_what_hydra_would_run_or_write_is_refused(key: str, tmp_path: Path, mark: Path) -> None:
    words = experiment(tmp_path / "conf", {"hydra": of_hydra(mark)[key]})
    said = refused(*words, *TINY, "out=run")
    assert said.startswith(f"{key}=")
    assert "comes from a configuration file that is not kd_app's" in said


@pytest.mark.parametrize("key", ["hydra.callbacks", "hydra.job_logging", "hydra.job.env_set"])
def test_in_a_sweep_it_is_refused_too_however_it_is_chosen(
    key: str, tmp_path: Path, mark: Path
) -> None:
    experiment(tmp_path / "conf", {"seed": 1}, name="harmless")
    words = experiment(tmp_path / "conf", {"hydra": of_hydra(mark)[key]})
    for chosen in ("experiment=theirs", "experiment=harmless,theirs"):
        ended = call("-m", words[0], *TINY, chosen, "out=sweep")
        assert ended.code == 2
        assert f"{key}=" in ended.err


@pytest.mark.filterwarnings("ignore:Callback NoneType")
@pytest.mark.parametrize("key", ["hydra.callbacks", "hydra.job_logging", "hydra.hydra_logging"])
def test_the_same_as_a_word_of_ones_own_does_run(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the payloads are real."""
    monkeypatch.setattr(
        logging, "_handlerList", []
    )  # dictConfig closes all handlers there are, and some of them close the streams of others
    left = tmp_path / "left"
    experiment(tmp_path / "conf", {})
    value = {"x": touching(left)} if key == "hydra.callbacks" else logging_of(left)
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().replace(": ", ":")
    call(f"--config-dir={tmp_path / 'conf'}", *TINY, f"++{key}={text}", "seed=-1")
    assert left.exists()
    for handler in [
        each for each in logging.root.handlers if getattr(each, "baseFilename", "") == str(left)
    ]:
        logging.root.removeHandler(handler)
        handler.close()


@pytest.mark.parametrize(
    "value",
    [
        {"allow": ["os"]},
        {"out": "elsewhere"},
        {"stages": "elsewhere"},
        {"overwrite": True},
        {"remake": ["teacher"]},
        {"logger": {"csv": {"uri": "http://127.0.0.1:9"}}},
    ],
)
def test_whose_code_is_run_and_which_folders_are_written_is_refused(
    value: dict[str, Any], tmp_path: Path, mark: Path
) -> None:
    words = experiment(tmp_path / "conf", {**value, "callbacks": {"x": touching(mark)}})
    assert refused(*words, *TINY).startswith(f"{next(iter(value))}=")


def test_a_primary_configuration_of_theirs_is_refused_the_same(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "conf").mkdir()
    text = yaml.safe_dump(
        {"defaults": ["distill", "_self_"], "hydra": {"callbacks": {"x": touching(mark)}}}
    )
    (tmp_path / "conf" / "mine.yaml").write_text(text, encoding="utf-8")
    assert "hydra.callbacks=" in refused(
        f"--config-dir={tmp_path / 'conf'}", "--config-name=mine", *TINY
    )
    assert call(f"--config-path={tmp_path / 'conf'}", "--config-name=mine", *TINY).code == 2


def test_files_that_a_search_path_brings_are_refused_the_same(tmp_path: Path, mark: Path) -> None:
    words = experiment(tmp_path / "conf", {"allow": ["os"], "callbacks": {"x": touching(mark)}})
    said = (f"hydra.searchpath=[file://{tmp_path / 'conf'}]", words[1])
    assert refused(*TINY, *said).startswith("allow=")
    with pytest.raises(RequestError, match=r"^allow="):
        composed("distill", said)


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
    assert f"{place}._target_='os.mkdir' names code that is no part of kd_app" in refused(
        *words, *TINY
    )


def test_an_interpolation_does_not_become_a_part_later(tmp_path: Path, mark: Path) -> None:
    hidden = '\\${oc.create:"{_target_: os.mkdir, path: ' + str(mark) + '}"}'
    words = experiment(
        tmp_path / "conf",
        {
            "callbacks": {
                "x": {
                    "_target_": "kd_app.training.callbacks.EMA",
                    "decay": hidden,
                    "update_every": 1,
                }
            }
        },
    )
    assert "callbacks.x.decay=" in refused(*words, *TINY)


def test_classes_of_ours_that_are_no_parts_are_not_made(tmp_path: Path, mark: Path) -> None:
    starts = {
        "_target_": "kd_app.training.ranks.start.Child",
        "job": "x",
        "place": {"RANK": 1, "WORLD_SIZE": 1, "PYTHONPATH": "x"},
        "log": str(mark),
    }
    words = experiment(tmp_path / "conf", {"callbacks": {"x": starts}})
    assert "'kd_app.training.ranks.start.Child' names code that is no part" in refused(
        *words, *TINY
    )


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "a/b", "a\nb", "..", "student", "pair", "model_dump"]
)
def test_a_control_is_called_by_a_word(name: str, tmp_path: Path) -> None:
    words = experiment(tmp_path / "conf", {"controls": {name: {"loss": {}}}})
    assert refused(*words, *TINY, "out=run").startswith("controls has the name")


def test_a_run_that_names_no_folder_stays_in_runs_whatever_its_data_are_called(
    tmp_path: Path,
) -> None:
    words = experiment(tmp_path / "conf", {"data": {"name": "../../evil\n/x"}})
    done(*words, *TINY)
    (folder,) = (path for path in Path("runs").iterdir() if not path.name.startswith("."))
    assert (folder / "results.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf", "here"]


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
