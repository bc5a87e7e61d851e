"""Modules and data of one's own: as objects from a notebook, or by name."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kd_app
from kd_app.callbacks.curve_log import read_curves
from kd_app.config import RequestError
from kd_app.reporting.runs import Run
from tests.builders import quick_speed, results, stage, student_sha256
from tests.training.processes import distill_in_process
from tests.training.small_parts import CLASSES, Net, OwnData, build_seeded

PARTS = "tests.training.small_parts"
QUICK = (
    "data=digits",
    "logger=[]",
    # Their teacher is not trained.
    "checks=off",
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=1",
    "optimizer.lr=0.05",
)


def places(folder: Path) -> list[str]:
    return [f"out={folder / 'out'}", f"stages={folder / 'stages'}"]


@pytest.fixture(scope="module", autouse=True)
def _measure_briefly() -> Iterator[None]:
    """Measure the speed for a moment only."""
    with patch("kd_app.measurement.classification.measure_throughput", quick_speed):
        yield


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, nn.Module, nn.Module, Path]:
    """A run of three objects; the student and the teacher as they were handed over."""
    folder = tmp_path_factory.mktemp("objects")
    teacher, student = (
        build_seeded(lambda: Net(width=12), 1),
        build_seeded(lambda: Net(drop=0.3), 2),
    )
    run = kd_app.distill(
        *QUICK,
        *places(folder),
        "trainer.log_every=1",
        teacher=teacher,
        student=student,
        data=OwnData(),
    )
    return run, teacher, student, folder


def test_three_objects_make_a_run_with_its_proof(own_run: Any) -> None:
    run, teacher, *_ = own_run
    record = results(run.path)
    assert record["status"] == "finished"
    assert record["data"]["classes"] == [str(number) for number in range(CLASSES)]
    assert set(record["models"]) == {"teacher", "labels_only", "student"}
    assert record["models"]["teacher"]["params"] == sum(
        parameter.numel() for parameter in teacher.parameters()
    )
    assert {"retention", "gain", "agreement"} <= set(record["test"]["pair"])
    assert record["test"]["num_images"] == 40
    assert len(run.predictions) == 40
    assert {record["license"][part] for part in ("teacher", "student_start", "data", "ships")} == {
        "unknown"
    }
    assert len(record["license"]["unknown"]) == 3
    assert {model["license"] for model in record["models"].values()} == {"unknown"}


def test_external_images_give_examples_without_pictures(own_run: Any) -> None:
    run, *_ = own_run
    assert len(run.examples) > 5
    assert run.examples["png"].isna().all()
    assert run.results.data.name == "OwnData"


def test_models_passed_from_python_are_not_changed(own_run: Any) -> None:
    _, teacher, student, _ = own_run
    for module, fresh in (
        (teacher, build_seeded(lambda: Net(width=12), 1)),
        (student, build_seeded(lambda: Net(drop=0.3), 2)),
    ):
        for name, tensor in fresh.state_dict().items():
            assert torch.equal(module.state_dict()[name], tensor), name
        assert all(parameter.requires_grad for parameter in module.parameters())
        assert module.training


def test_control_and_student_start_from_the_same_weights_and_end_with_others(own_run: Any) -> None:
    run, _, student, _ = own_run
    records = {
        role: json.loads((stage(run.path, role) / "training.json").read_text())
        for role in ("labels_only", "student")
    }
    assert records["labels_only"]["weights"] == records["student"]["weights"]
    ends = [
        load_file(stage(run.path, role) / "model" / "model.safetensors")
        for role in ("labels_only", "student")
    ]
    assert not torch.equal(ends[0]["head.weight"], ends[1]["head.weight"])
    for end in ends:
        assert not torch.equal(end["head.weight"], student.state_dict()["head.weight"])


def test_control_and_student_see_the_images_in_the_same_order(own_run: Any) -> None:
    run, *_ = own_run
    first = [
        next(read_curves(stage(run.path, role) / "curves.jsonl"))
        for role in ("labels_only", "student")
    ]
    assert first[0]["train/cross_entropy"] == first[1]["train/cross_entropy"]


def test_the_saved_student_has_weights_and_a_description(own_run: Any) -> None:
    run, *_ = own_run
    shipped = run.path / "student"
    again = Net(drop=0.3)
    again.load_state_dict(load_file(shipped / "model.safetensors"))
    config = json.loads((shipped / "config.json").read_text())
    assert (config["architecture"], config["license"]) == ("Net", "unknown")


def test_the_same_objects_find_the_finished_run_and_others_are_refused(
    own_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run, teacher, student, folder = own_run
    before = (run.path / "results.json").read_bytes()
    again = kd_app.distill(
        *QUICK,
        *places(folder),
        "trainer.log_every=1",
        teacher=teacher,
        student=student,
        data=OwnData(),
    )
    assert again.path == run.path
    assert (run.path / "results.json").read_bytes() == before
    assert "finished" in capsys.readouterr().out
    with pytest.raises(RequestError, match="another configuration"):
        kd_app.distill(
            *QUICK, *places(folder), "trainer.log_every=1", student=student, data=OwnData()
        )


def test_the_callers_random_numbers_are_not_disturbed(tmp_path: Path) -> None:
    torch.manual_seed(4)
    state = torch.get_rng_state()
    alone = ["teacher=none", "loss=[cross_entropy]"]
    kd_app.distill(*QUICK, *places(tmp_path), *alone, student=Net(drop=0.3), data=OwnData())
    state_after = torch.get_rng_state()
    torch.manual_seed(4)
    Net(drop=0.3)
    assert torch.equal(state_after, torch.get_rng_state())
    assert not torch.equal(state_after, state)


def test_results_of_a_run_without_a_teacher_have_no_teacher(tmp_path: Path) -> None:
    run = kd_app.distill(
        *QUICK,
        *places(tmp_path),
        "teacher=none",
        "loss=[cross_entropy]",
        student=Net(),
        data=OwnData(),
    )
    record = results(run.path)
    assert set(record["models"]) == {"student"}
    assert (
        record["license"]["teacher"],
        record["license"]["ships"],
        record["models"]["student"]["license"],
    ) == (None, "unknown", "unknown")
    for split in ("validation", "test"):
        assert (record[split]["teacher"], record[split]["labels_only"], record[split]["pair"]) == (
            None,
            None,
            None,
        )
        assert record[split]["student"]["top1"] is not None
    assert record["verdict"] is None
    assert record["speed"]["teacher"] is None
    assert not (run.path / "teacher").exists()
    assert [each["name"] for each in record["stages"]] == [
        "student",
        "answers-student-validation",
        "answers-student-test",
    ]


def test_named_parts_give_the_same_run(tmp_path: Path) -> None:
    named = [
        f"teacher._target_={PARTS}.Net",
        "teacher.kwargs.width=12",
        f"student._target_={PARTS}.Net",
        f"data._target_={PARTS}.OwnData",
    ]
    licenses = ["teacher.license=mit", "student.license=own", "data.license=cc-by-4.0"]
    run = kd_app.distill(
        *QUICK, *places(tmp_path), *named, *licenses, "data.batch_size=10", "+data.images=50"
    )
    record = results(run.path)
    assert {role: model["license"] for role, model in record["models"].items()} == {
        "teacher": "mit",  # used as it is
        "labels_only": "cc-by-4.0",
        "student": "cc-by-4.0",
    }
    assert record["models"]["student"]["name"] == f"{PARTS}:Net"
    assert record["test"]["num_images"] == 50
    assert record["data"]["sizes"] == {"train": 50, "validation": 50, "test": 50}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"data._target_={PARTS}.NoData"], r"data._target_='.*NoData' does not exist"),
        ([f"data._target_={PARTS}.Net"], "is a Net, expected a LightningDataModule"),
        ([f"data._target_={PARTS}.OwnData", "+data.imagse=5"], "imagse"),
        (
            [f"data._target_={PARTS}.OwnData", "data.batch_size=64"],
            "train loader of the data module has no batches",
        ),
        (
            [f"data._target_={PARTS}.OwnData", "robustness=standard"],
            "leave corruptions out: robustness=none",
        ),
        (
            [f"data._target_={PARTS}.OwnData", "trainer=ddp_sim"],
            "provides the same batches to every process.*use trainer.devices=1",
        ),
        ([f"student._target_={PARTS}.Nett"], r"student._target_='.*Nett' does not exist"),
    ],
)
def test_invalid_parts_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        kd_app.distill(*QUICK, *places(tmp_path), *words)
    assert not list(tmp_path.iterdir())


def test_objects_do_not_train_in_several_processes(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="can't be sent to other processes"):
        kd_app.distill("trainer=ddp_sim", *places(tmp_path), "logger=[]", student=Net())


def test_no_secret_of_the_environment_is_in_the_files_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "s3cr3t-of-" + name.lower())
    alone = ["teacher=none", "loss=[cross_entropy]"]
    kd_app.distill(*QUICK, *places(tmp_path), *alone, student=Net(), data=OwnData())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if b"s3cr3t-of-" in path.read_bytes()]


def test_a_killed_training_on_external_shuffled_data_is_bit_identical(tmp_path: Path) -> None:
    """The data module has no position within an epoch, so the training resumes at the
    last full epoch, in the order of that epoch.
    """
    named = [
        "teacher=none",
        "loss=[cross_entropy]",
        f"student._target_={PARTS}.Net",
        "student.kwargs.drop=0.3",
        f"data._target_={PARTS}.OwnData",
        "data.batch_size=8",
        "trainer.max_epochs=3",
    ]
    words: Callable[[str], list[str]] = lambda name: [  # noqa: E731
        *QUICK,
        *places(tmp_path / name),
        *named,
        "trainer.checkpoint_minutes=1e-9",
    ]
    log = str(tmp_path / "log")
    kd_app.distill(*words("whole"))
    for moment, sign, code in (
        (8, signal.SIGINT, 130),
        (3, signal.SIGKILL, -9),
    ):
        step = ("kd_app.training.module:Distillation.training_step", moment)
        assert distill_in_process(words("killed"), log, step, sign=sign) == code, Path(
            log
        ).read_text()
    assert distill_in_process(words("killed"), log) == 0, Path(log).read_text()
    assert "resumes at step 5" in Path(log).read_text()
    assert student_sha256(tmp_path / "killed" / "out") == student_sha256(tmp_path / "whole" / "out")
