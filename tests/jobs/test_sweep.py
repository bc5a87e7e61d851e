"""The trials of a sweep, what differs between them, and the winner."""

from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.jobs.sweep import finish_sweep, load_trials, merge_trial, select_winner
from kd_app.reporting.refusals import write_refusal
from kd_app.reporting.results import write
from kd_app.reporting.tables import Trial
from tests.reporting import run_folders


def write_trial(out: Path, number: int, config: dict[str, Any], **changes: Any) -> None:
    folder = out / str(number)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write(folder / "results.json", run_folders.build_results(**changes))


def test_trials_are_loaded_by_number_with_the_settings_that_differ(tmp_path: Path) -> None:
    for number in (10, 2):
        write_trial(tmp_path, number, {"seed": number, "student": {"name": "resnet8"}})
    (tmp_path / "report").mkdir()
    (tmp_path / "3").mkdir()  # without a config
    trials = load_trials(tmp_path)
    assert [(trial.number, trial.overrides) for trial in trials] == [
        (2, ("seed=2",)),
        (10, ("seed=10",)),
    ]
    assert all(trial.results is not None for trial in trials)


def test_refused_trials_are_listed_between_the_others_with_the_settings_that_they_set(
    tmp_path: Path,
) -> None:
    for number in (0, 2):
        write_trial(tmp_path, number, {"seed": number, "optimizer": {"lr": 0.1}})
    write_refusal(tmp_path / "1", ["seed=1", "optimizer.lr=-1"], "No such rate.")
    trials = load_trials(tmp_path)
    assert [(trial.number, trial.status, trial.reason) for trial in trials] == [
        (0, "finished", ""),
        (1, "refused", "No such rate."),
        (2, "finished", ""),
    ]
    assert trials[0].overrides == ("optimizer.lr=0.1", "seed=0")
    assert trials[1].overrides == ("seed=1", "optimizer.lr=-1")


def test_the_winner_is_the_best_finished_trial_on_validation() -> None:
    good, bad = (
        run_folders.build_results({"student": 3.0}),
        run_folders.build_results({"student": 1.0}),
    )
    failed = run_folders.build_results({"student": 9.0}, status="failed")
    results = (bad, good, failed, good, None)
    trials = [Trial(number, (), each) for number, each in enumerate(results)]
    assert select_winner(trials) == 1
    assert select_winner(trials[2:3]) is None
    assert select_winner([]) is None


@pytest.fixture(scope="module")
def command() -> dict[str, Any]:
    return compose_config("distill", ["callbacks=[ema]", "out=sweep", "test=auto"])


def test_a_trial_sets_what_is_trained_and_the_command_everything_else(
    command: dict[str, Any],
) -> None:
    record = compose_config("distill", ["seed=3", "loss=[cross_entropy,dist]", "optimizer=sgd"])
    foreign = {"_target_": "os.mkdir", "path": "mark"}
    for key, value in (
        ("out", "/elsewhere"),
        ("stages", "/elsewhere"),
        ("allow", ["os"]),
        ("logger", {"x": foreign}),
        ("tags", ["theirs"]),
        ("hydra", {"run": {"dir": "/elsewhere"}}),
    ):
        record[key] = value
    ema = {"_target_": "os.mkdir", "decay": 0.5, "path": "mark"}
    record["callbacks"] = {"ema": ema, "x": foreign}
    merged = merge_trial(command, record)
    assert list(merged) == list(command)
    for key in ("out", "stages", "allow", "logger", "tags"):
        assert merged[key] == command[key]
    for key in ("seed", "loss", "optimizer"):
        assert merged[key] == record[key] != command[key]
    assert merged["callbacks"] == {"ema": {**command["callbacks"]["ema"], "decay": 0.5}}


def test_a_trial_with_code_of_somebody_is_refused_unless_the_command_allows_it(
    command: dict[str, Any],
) -> None:
    record = deepcopy(command)
    record["loss"]["mine"] = {"_target_": "mine.Loss", "weight": 1.0}
    with pytest.raises(RequestError, match=r"loss.mine._target_='mine.Loss' names code"):
        merge_trial({**command, "allow": []}, {**record, "allow": ["mine"]})
    merged = merge_trial({**command, "allow": ["mine"]}, record)
    assert merged["loss"] == record["loss"]


@pytest.mark.parametrize("ran_here", [True, False])
def test_the_winner_is_tested_with_the_configuration_of_the_command(
    ran_here: bool, command: dict[str, Any], tmp_path: Path
) -> None:
    config = {**command, "out": str(tmp_path)}
    own = {**config, "seed": 5, "loss": {"mine": {"_target_": "mine.Loss"}}}
    record = {**config, "seed": 6, "logger": {"x": {"_target_": "os.mkdir", "path": "mark"}}}
    write_trial(tmp_path, 2, record)
    with (
        patch("kd_app.jobs.distill.distill") as distill,
        patch("kd_app.jobs.sweep.write_report"),
    ):
        finish_sweep(config, {2: own}.get if ran_here else lambda number: None)
    (tested,) = distill.call_args.args
    assert distill.call_args.kwargs["trial"] == 2
    assert tested["test"] == "always"
    assert tested["logger"] == command["logger"]
    assert tested["seed"] == (5 if ran_here else 6)
    assert tested["loss"] == (own if ran_here else command)["loss"]
