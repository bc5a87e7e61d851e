"""Every experiment, recipe and debug choice runs from end to end, on little data."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution

from kd_app.callbacks.curve_log import read_curves
from kd_app.config.compose import compose_config
from kd_app.config.paths import CONF, list_choices
from kd_app.data.module import ImageData
from kd_app.reporting.console import Console
from kd_app.run.initial_models import build_initial_models
from kd_app.run.role_jobs import check_pair
from kd_app.run.workspace import Workspace
from kd_app.search.space import parse_space
from kd_app.specs.loss_choice import resolve_loss
from kd_app.specs.spec import build_spec
from kd_app.stages import Stages
from tests.builders import build_workspace, results, stage, train_student
from tests.commands.call import call, succeed

SMALL = ("teacher.name=resnet8", "logger=[csv]", "out=run", "stages=stages")


@pytest.fixture(autouse=True)
def _cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


NEEDS_A_TEACHER = "label_free_then_labels"
"""Needs weights of a teacher: tests/jobs/test_label_trials.py."""


def slow_but(*quick: str, group: str) -> list[Any]:
    """Every choice of a group; all but some run with the slow tests. That each composes
    and its parts can be built is tested in test_compose.py.
    """
    return [
        name if name in quick else pytest.param(name, marks=pytest.mark.slow)
        for name in list_choices(group)
        if name != NEEDS_A_TEACHER
    ]


@pytest.mark.parametrize("name", ["feature", "output"])
def test_the_terms_of_an_experiment_compare_its_teacher_and_student(
    name: str, tmp_path: Path
) -> None:
    workspace = build_workspace(tmp_path, f"experiment={name}")
    check_pair(workspace, build_initial_models(workspace, None))


@pytest.mark.parametrize("name", slow_but(group="experiment"))
def test_every_experiment_runs_for_two_batches(name: str) -> None:
    succeed(f"experiment={name}", "debug=fdr", "logger=[csv]", "out=run", "stages=stages")
    record = results(Path("run"))
    assert record["status"] == "finished"
    chosen = resolve_loss(compose_config("distill", [f"experiment={name}"]))
    assert record["config"]["loss"].keys() == chosen.config["loss"].keys()
    points = list(read_curves(stage(Path("run"), "student") / "curves.jsonl"))
    for term in record["config"]["loss"]:
        values = [point[f"train/{term}"] for point in points if f"train/{term}" in point]
        assert len(values) == 2
        assert all(value > 0 for value in values)


@pytest.mark.parametrize("name", slow_but(group="recipe"))
def test_every_recipe_runs_for_two_batches(name: str) -> None:
    succeed(f"recipe={name}", "debug=fdr", *SMALL)
    record = results(Path("run"))
    assert record["status"] == "finished"
    assert set(record["config"]["loss"]) == (
        {"soft_target"} if name == "patient" else {"cross_entropy", "soft_target"}
    )


def test_recipes_range_from_a_smoke_test_to_a_patient_teacher_without_labels() -> None:
    configs = {
        name: compose_config("distill", [f"recipe={name}"])
        for name in ("smoke", "quick", "standard", "patient")
    }
    assert sorted(configs) == list_choices("recipe")
    epochs = [configs[name]["trainer"]["max_epochs"] for name in configs]
    assert epochs == sorted(set(epochs))
    assert configs["standard"] == compose_config("distill", [])
    patient = build_spec(configs["patient"])
    assert not any(term.uses_labels for term in patient.recipe.build_loss().chosen.values())
    assert configs["patient"]["loss"]["soft_target"]["temperature"] == 1.0
    assert isinstance(patient.data, ImageData)
    assert patient.data.mix is not None
    assert patient.data.mix.mixup == 1.0  # a uniform share from 0 to 1
    assert patient.teacher_recipe is not None
    assert patient.teacher_recipe.max_epochs == configs["standard"]["trainer"]["max_epochs"]


def test_overrides_take_precedence_over_a_recipe() -> None:
    config = compose_config(
        "distill",
        [
            "recipe=patient",
            "trainer.max_epochs=30",
            "loss=[soft_target,dist]",
            "data.mix.mixup=null",
        ],
    )
    assert (
        config["trainer"]["max_epochs"],
        set(config["loss"]),
        config["data"]["mix"]["mixup"],
    ) == (30, {"soft_target", "dist"}, None)


@pytest.mark.parametrize("name", slow_but(group="debug"))
def test_every_debug_choice_runs(name: str) -> None:
    few = {
        "overfit": ("trainer.max_epochs=8",),
        "default": ("trainer.limit_train_batches=3",),
        "profiler": ("trainer.limit_train_batches=3",),
    }
    result = call(f"debug={name}", *few.get(name, ()), *SMALL)
    assert result.code == 0, result.err
    assert results(Path("run"))["status"] == "finished"


def test_overfitting_learns_its_two_batches(tmp_path: Path) -> None:
    student = train_student(None, tmp_path, "debug=overfit", "trainer.max_epochs=8")
    losses = [point["train/loss"] for point in student.curves if "train/loss" in point]
    assert len(losses) == 16
    assert losses[-1] < 0.7 * losses[0]


def test_debug_fdr_limits_every_split_to_two_batches(sample_run: Path, tmp_path: Path) -> None:
    config = compose_config("distill", ["debug=fdr", *SMALL, "data.batch_size=16"])
    workspace = Workspace(
        build_spec(config), Stages(tmp_path / "stages"), Console(silent=True), tracker=None
    )
    workspace.prepare_data()
    student = workspace.load_model(workspace.spec.student, seed=0)
    for split in ("validation", "test"):
        assert len(workspace.load_predictions(student, split).target) == 32
    points = read_curves(stage(sample_run / "run", "student") / "curves.jsonl")
    assert max(point["step"] for point in points) == 2


def test_a_slurm_trial_is_one_task_that_is_requeued_at_the_time_limit() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "distill",
            overrides=["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=4", "trainer=ddp"],
            return_hydra_config=True,
        )
    launcher = OmegaConf.to_container(config.hydra.launcher)
    assert isinstance(launcher, dict)
    assert (
        launcher["_target_"]
        == "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    )
    assert (launcher["nodes"], launcher["tasks_per_node"], launcher["gpus_per_node"]) == (1, 1, 4)
    assert launcher["max_num_timeout"] > 0
    assert launcher["signal_delay_s"] > 0
    assert config.trainer.devices == "auto"


@pytest.mark.parametrize("name", list_choices("hparams_search"))
def test_every_search_proposes_settings_that_compose(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("distill", overrides=[f"hparams_search={name}"], return_hydra_config=True)
    sweeper = config.hydra.sweeper
    assert sweeper._target_ == "hydra_plugins.kd_app_search.SearchSweeper"
    space = parse_space(
        OverridesParser.create().parse_overrides(
            [f"{key}={value}" for key, value in sweeper.space.items()]
        )
    )
    first: dict[str, Any] = {}
    for key, kind in space.items():
        is_categorical = isinstance(kind, CategoricalDistribution)
        first[key] = kind.choices[0] if is_categorical else kind.low  # type: ignore[attr-defined]
    build_spec(
        compose_config(
            "distill",
            [f"hparams_search={name}", *(f"{key}={value}" for key, value in first.items())],
        )
    )
