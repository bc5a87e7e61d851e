"""The trials of a sweep, what differs between them, and the winner."""

from pathlib import Path
from typing import Any

import yaml

from kd_app.jobs.sweep import load_trials, select_winner
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
