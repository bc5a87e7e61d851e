"""``trainer=`` of the commands that open a finished run or a model."""

from functools import cache
from typing import Any

import pytest
import torch

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.config.paths import list_choices
from kd_app.jobs.compress import Compression
from kd_app.jobs.export import Export
from kd_app.jobs.predict import Prediction
from kd_app.run import machine
from kd_app.run.machine import (
    adapt_trainer,
    choose_device,
    choose_limit,
    describe_unused,
    list_changes,
    load_defaults,
    remove_machine,
)
from kd_app.specs.schema import EvaluationSettings

WORDS = {
    "evaluate": ["run=r", "out=o"],
    "export": ["run=r"],
    "compress": ["run=r"],
    "predict": ["model=m", "images=i", "out=o.csv"],
}
MEASURING = ("evaluate", "export", "predict")
RECORDED = {
    **load_defaults(),
    "accelerator": "gpu",
    "devices": 4,
    "num_nodes": 2,
    "precision": "16-mixed",
    "max_epochs": 7,
    "limit_train_batches": 3,
}


@cache
def compose(command: str, *overrides: str) -> dict[str, Any]:
    return compose_config(command, [*WORDS[command], *overrides])


def test_every_command_takes_the_group_and_accepts_its_own_config() -> None:
    schemas = {
        "evaluate": EvaluationSettings,
        "export": Export,
        "compress": Compression,
        "predict": Prediction,
    }
    for command, schema in schemas.items():
        config = compose(command, "trainer=cpu")
        assert config["trainer"]["accelerator"] == "cpu"
        assert set(config["trainer"]) == set(load_defaults())
        schema(**config)


@pytest.mark.parametrize("command", MEASURING)
def test_a_measurement_takes_the_device_and_nothing_else(command: str) -> None:
    plain = adapt_trainer(RECORDED, compose(command), measures=True)
    assert [plain[key] for key in ("accelerator", "devices", "num_nodes", "precision")] == [
        "auto",
        1,
        1,
        "auto",
    ]
    assert plain["limit_train_batches"] == 3
    config = compose(command, "trainer=ddp_sim", "trainer.precision=bf16-mixed")
    changed = adapt_trainer(RECORDED, config, measures=True)
    assert changed == {**plain, "accelerator": "cpu"}
    assert choose_device(config) == torch.device("cpu")


def test_a_training_runs_as_the_run_did_but_for_what_the_command_sets() -> None:
    def adapt(*overrides: str) -> dict[str, Any]:
        adapted = adapt_trainer(RECORDED, compose("compress", *overrides), measures=False)
        return {key: value for key, value in adapted.items() if value != RECORDED[key]}

    assert adapt() == {}
    assert adapt("trainer.precision=32-true") == {"precision": "32-true"}
    cpu = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "precision": "auto"}
    assert adapt("trainer=cpu") == cpu
    assert adapt("trainer=cpu", "trainer.limit_train_batches=2", "trainer.max_epochs=9") == {
        **cpu,
        "limit_train_batches": 2,
        "max_epochs": 9,
    }


def test_settings_that_do_nothing_are_named() -> None:
    for words in ([], ["trainer=cpu"], ["trainer=ddp"], ["trainer.precision=32-true"]):
        assert describe_unused(compose("evaluate", *words)) == ()
    assert describe_unused(compose("evaluate", "data=folder", "data.root=x")) == ()
    (note,) = describe_unused(compose("evaluate", "trainer.devices=2", "trainer.compile=true"))
    assert note.startswith("trainer.devices, trainer.compile do nothing here: models are measured")
    (note,) = describe_unused(compose("predict", "trainer.precision=bf16-mixed"))
    assert note.startswith("trainer.precision does nothing here")


def test_a_device_that_this_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match=r"no such device that torch supports\. Use trainer=cpu"):
        choose_device(compose("predict", "trainer=gpu"))
    with pytest.raises(RequestError, match=r"accelerator='tpu' does not fit"):
        choose_device(compose("predict", "trainer.accelerator=tpu"))


def test_both_words_limit_a_measurement() -> None:
    assert choose_limit(compose("evaluate")) is None
    assert choose_limit(compose("evaluate", "trainer.limit_test_batches=3")) == 3
    assert choose_limit(compose("evaluate", "trainer.limit_test_batches=3", "limit=2")) == 2


def test_all_choices_differ_in_the_machine_alone() -> None:
    defaults = load_defaults()
    for choice in list_choices("trainer"):
        node = compose("evaluate", f"trainer={choice}")["trainer"]
        assert set(list_changes({"trainer": node})) == set(machine._MACHINE)
        assert {key: node[key] for key in node if key not in machine._MACHINE} == {
            **{key: defaults[key] for key in node if key not in machine._MACHINE},
            "max_epochs": None,
        }


def test_the_record_of_a_measurement_is_the_same_on_all_machines() -> None:
    cpu, auto = compose("evaluate", "trainer=cpu"), compose("evaluate")
    assert remove_machine(cpu) == remove_machine(auto)
    assert "trainer" not in remove_machine(cpu)
