"""The settings of a run on its page."""

from kd_app.reporting.html.provenance import build_provenance
from kd_app.reporting.results import TrainingRecord
from tests.reporting.run_folders import build_results

CONFIG = {"trainer": {"max_epochs": 12}, "teacher": {"max_epochs": 10, "seed": 4}}


def test_epochs_and_seed_of_a_teacher_are_shown_only_if_it_was_trained() -> None:
    results = build_results(config=CONFIG)
    settings = build_provenance(results).settings
    assert (settings["epochs"], settings["seeds"]) == ("12", "seed=3, data.seed=none")
    results.models["teacher"].training = TrainingRecord(epochs=10, max_epochs=10)
    settings = build_provenance(results).settings
    assert settings["epochs"] == "12 (teacher: 10)"
    assert settings["seeds"].endswith("teacher.seed=4")
