"""``data.refit``: which runs train again, on which images, for how many epochs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_app.config import RequestError
from kd_app.config.compose import choose_all_labels, compose_config
from kd_app.jobs.check import inspect_setup
from kd_app.reporting.console import Console
from kd_app.run.model import RunModel
from kd_app.run.plan import describe_models
from kd_app.run.refit import build_refit_job, describe_outcome, describe_refit, is_refit_due
from kd_app.run.role_jobs import build_student_job
from kd_app.run.workspace import Workspace
from kd_app.specs.spec import ExternalParts, build_spec
from tests.builders import build_workspace, results
from tests.commands.call import succeed

BEST = {"best": {"epoch": 11.0, "top1": 0.9, "nll": 0.3}}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return build_workspace(
        tmp_path_factory.mktemp("refit"),
        "data.refit=true",
        "callbacks=[ema,early_stopping]",
        "controls=[labels_only]",
    )


def config(*overrides: str) -> dict[str, Any]:
    return compose_config("distill", choose_all_labels(["data.refit=true", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "trial", "is_winner", "due"),
    [
        ([], None, False, True),
        (["test=always"], None, False, True),
        ([], 3, False, False),
        (["test=always"], 3, True, True),
        (["data.refit=false"], None, False, False),
        (["data.refit=false", "test=never"], 3, False, False),
    ],
)
def test_a_single_run_and_the_winner_of_a_sweep_train_again(
    overrides: list[str], trial: int | None, is_winner: bool, due: bool
) -> None:
    assert is_refit_due(config(*overrides), trial=trial, is_winner=is_winner) is due


@pytest.mark.parametrize(
    ("test", "trial", "message"),
    [
        ("never", None, "makes this run a candidate"),
        ("never", 0, "makes this run a candidate"),
        ("always", 0, "no winner is chosen"),
    ],
)
def test_without_a_known_winner_it_is_refused(test: str, trial: int | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        is_refit_due(config(f"test={test}"), trial=trial, is_winner=False)


def test_kd_check_refuses_what_the_run_would_refuse() -> None:
    check = compose_config("check", ["data.refit=true", "test=never"])
    with pytest.raises(RequestError, match=r"data\.refit=true"):
        inspect_setup(check, console=Console(silent=True))


def test_data_of_your_own_can_not_be_trained_on_again() -> None:
    from lightning.pytorch import LightningDataModule

    with pytest.raises(RequestError, match=r"data\.refit=true needs images that kd_app decodes"):
        build_spec(config(), ExternalParts(data=LightningDataModule()))


def test_a_value_other_than_true_or_false_is_refused() -> None:
    with pytest.raises(RequestError, match="refit"):
        build_spec(config("data.refit=3"))
    build_spec(config())


def test_the_second_training_has_the_best_epoch_and_both_splits(workspace: Workspace) -> None:
    job = build_student_job(workspace, None)
    again = build_refit_job(job, BEST)
    assert (again.name, again.recipe.max_epochs, again.refit_weights) == (
        "student-refit",
        12,
        "raw",
    )
    assert list(again.recipe.callbacks) == ["ema"]
    assert again.recipe.loss == job.recipe.loss
    best = {"best": {**BEST["best"], "weights": "average"}}
    assert build_refit_job(job, best).refit_weights == "average"


def test_only_the_second_training_has_another_identity(workspace: Workspace) -> None:
    data, trainer = workspace.data, workspace.spec.trainer
    job = build_student_job(workspace, None)
    plain = job.describe_identity(data, trainer)
    assert "refit" not in plain
    assert replace(job, refit_weights="raw").describe_identity(data, trainer) == {
        **plain,
        "refit": "raw",
    }


def test_the_images_of_validation_are_trained_on_and_those_of_test_are_not(
    workspace: Workspace,
) -> None:
    data, job = workspace.data, build_student_job(workspace, None)
    losses = {}
    for with_validation in (False, True):
        data.bind(job.input, order_seed=0, with_validation=with_validation)
        loader: Any = data.train_dataloader()
        losses[with_validation] = np.sort(loader.rows).tolist()
    rows = {split: data.list_rows(split) for split in ("train", "validation")}
    assert all(each is not None for each in rows.values())
    assert losses[False] == sorted(rows["train"])  # type: ignore[arg-type]
    assert losses[True] == sorted([*rows["train"], *rows["validation"]])  # type: ignore[misc]


def test_the_plan_states_the_images(workspace: Workspace, digits: Workspace) -> None:
    assert describe_refit(workspace) == describe_models(workspace, ready=False)[-1]
    assert describe_refit(workspace).startswith(
        "Refit: student, labels_only trained again on train and validation (1,438 images), each for"
    )
    assert describe_refit(digits) == ""


def test_the_note_separates_the_two_trainings(models: dict[str, RunModel]) -> None:
    assert describe_outcome(models) == []
    student = replace(models["student"], record={"refit": {"images": 90, "epochs": 1}})
    (note,) = describe_outcome({**models, "student": student})
    assert "90 images: student for 1 epoch." in note
    assert "figures on validation are those of the first" in note


@pytest.mark.slow
def test_a_run_is_tested_with_the_second_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    same = ("debug=fdr", "teacher.name=resnet8", "logger=[csv]", "stages=stages")
    succeed(*same, "out=plain")
    succeed(*same, "data.refit=true", "out=again")
    plain, again = results(Path("plain")), results(Path("again"))
    assert again["validation"] == plain["validation"]
    assert again["models"]["teacher"]["sha256"] == plain["models"]["teacher"]["sha256"]
    for role in ("labels_only", "student"):
        assert again["models"][role]["sha256"] != plain["models"][role]["sha256"]
        assert again["models"][role]["training"]["refit"] == {
            "images": 1438,
            "epochs": plain["models"][role]["training"]["best_epoch"],
        }
    stages = {stage["name"]: stage["status"] for stage in again["stages"]}
    assert (stages["student"], stages["student-refit"]) == ("reused", "computed")
    assert any(note.startswith("data.refit: ") for note in again["notes"])
