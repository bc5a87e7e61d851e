"""Controls: each is the student's training with one thing changed."""

import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.special import softmax
from scipy.stats import entropy

import kd_app
from kd_app.callbacks.curve_log import read_curves
from kd_app.config import RequestError
from kd_app.config.compose import choose_all_labels, compose_config
from kd_app.config.paths import list_choices
from kd_app.models.spec import ImageStats, ModelSpec
from kd_app.specs.controls import (
    compute_label_entropy,
    compute_mean_entropy,
    extract_family,
    select_nearest,
    solve_smoothing,
)
from kd_app.specs.spec import build_spec
from kd_app.training import timing
from tests.builders import results, stage, teacher_folder
from tests.commands.call import TINY, succeed
from tests.training.oracle import true_labels
from tests.training.processes import distill_in_process
from tests.training.small_parts import OwnData

OTHERS = ("auto", "pseudo_labels", "self_supervised", "other_images")
"""Not trained here: a choice by the data, and controls for other data or tasks."""
ALL = [each for each in list_choices("controls") if each not in OTHERS]
"""The controls for images with labels."""
OVERRIDES = (*TINY, f"controls=[{','.join(ALL)}]", "trainer=cpu", "trainer.precision=32-true")
FEW_CANDIDATES = [
    f"~controls.other_family.student.candidates.{name}"
    for name in (
        *("efficientnet_b0", "regnetx_002", "regnety_004", "resnet50", "resnet56"),
        *("lcnet_100", "resnet10t", "resnet18", "wrn_16_2"),
        *("mobilenetv2_050_dense", "mobilenetv2_100_dense", "mobilenetv2_100"),
        "mobilenetv3_small_100",
    )
]
"""Fewer models to choose from."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every control; its stages beside it. Epochs are timed in one turn of a
    step.
    """
    folder = tmp_path_factory.mktemp("controls")
    places = (f"out={folder / 'run'}", f"stages={folder / 'stages'}")
    with patch.object(timing, "_TURNS", 1), patch.object(timing, "_STEPS", 1):
        output = succeed(*OVERRIDES, *FEW_CANDIDATES, *places)
    (folder / "output").write_text(output, encoding="utf-8")
    return folder / "run"


def test_every_control_is_trained_measured_and_reported(run: Path) -> None:
    content, output = results(run), (run.parent / "output").read_text(encoding="utf-8")
    assert ALL == [
        "labels_only",
        "match_wall_time",
        "other_family",
        "shuffled_teacher",
        "smoothed_labels",
    ]
    for split in ("validation", "test"):
        for control in ALL:
            gain = content[split]["student"]["top1"] - content[split][control]["top1"]
            assert content[split]["gains"][control]["value"] == pytest.approx(gain)
            assert content[split]["gains"][control]["low"] <= gain + 1e-9
    assert set(content["models"]) == {"teacher", "student", *ALL}
    stages = {each["name"] for each in content["stages"]}
    assert {
        *ALL,
        "epochs-match_wall_time",
        "answers-teacher-train",
        *(f"answers-{control}-test" for control in ALL),
    } <= stages
    assert {f"{control}_top1" for control in ALL} <= set(
        pd.read_parquet(run / "predictions.parquet").columns
    )
    assert set(ALL) <= set(pd.read_csv(run / "metrics.csv")["stage"])
    assert f"other family ({content['models']['other_family']['name']})" in output
    assert "Recommendation:" in output


@pytest.mark.slow
def test_a_run_with_them_is_measured_again(run: Path, tmp_path: Path) -> None:
    succeed(f"run={run}", f"out={tmp_path / 'again'}", "limit=2", command="kd-evaluate")
    assert results(tmp_path / "again")["test"] == results(run)["test"]


def test_other_controls_do_not_change_what_is_trained_without_them(
    run: Path, tmp_path: Path
) -> None:
    overrides = [each for each in OVERRIDES if not each.startswith("controls=")]
    succeed(*overrides, f"out={tmp_path / 'run'}", f"stages={run.parent / 'stages'}")
    assert {each["status"] for each in results(tmp_path / "run")["stages"]} == {"reused"}


def read_start(run: Path, role: str) -> Any:
    return json.loads((stage(run, role) / "training.json").read_text(encoding="utf-8"))["weights"]


def read_first(run: Path, role: str, value: str) -> float:
    return next(read_curves(stage(run, role) / "curves.jsonl"))[value]


def test_they_share_initial_weights_and_the_order_of_images(run: Path) -> None:
    for control in set(ALL) - {"other_family"}:
        assert read_start(run, control) == read_start(run, "student")
    for control in ("labels_only", "match_wall_time", "shuffled_teacher"):
        assert read_first(run, control, "train/cross_entropy") == pytest.approx(
            read_first(run, "student", "train/cross_entropy"), rel=1e-6
        )


def test_the_shuffled_teacher_has_other_logits_for_the_same_images(run: Path) -> None:
    assert read_first(run, "shuffled_teacher", "train/soft_target") != read_first(
        run, "student", "train/soft_target"
    )


def read_stage_config(run: Path, role: str) -> Any:
    return json.loads((stage(run, role) / "stage.json").read_text(encoding="utf-8"))["config"]


def test_smoothed_labels_are_as_soft_as_the_teacher(run: Path) -> None:
    answers = load_file(stage(run, "answers-teacher-train") / "answers.safetensors")[
        "logits"
    ].astype(np.float64)
    teacher_entropy = float(entropy(softmax(answers / 4, axis=1), axis=1).mean())
    smoothing = read_stage_config(run, "smoothed_labels")["loss"]["cross_entropy"]["smoothing"]
    label = np.full(10, smoothing / 10)
    label[3] += 1 - smoothing
    assert float(entropy(label)) == pytest.approx(teacher_entropy, abs=1e-3)
    resolved = results(run)["models"]["smoothed_labels"]["decided"]
    assert resolved["teacher_entropy"] == pytest.approx(teacher_entropy, abs=1e-6)
    assert (resolved["temperature"], resolved["loss"]["cross_entropy"]["smoothing"]) == (
        4.0,
        smoothing,
    )


@given(st.floats(0, 1), st.integers(2, 1000))
def test_the_smoothing_gives_the_requested_entropy(share: float, num_classes: int) -> None:
    target = share * math.log(num_classes)
    assert compute_label_entropy(
        solve_smoothing(target, num_classes), num_classes
    ) == pytest.approx(target, abs=1e-3)


def test_a_certain_teacher_gives_no_smoothing_and_a_uniform_one_gives_full_smoothing() -> None:
    assert solve_smoothing(
        compute_mean_entropy(np.array([[1e4, 0, 0]], np.float32), 1.0), 3
    ) == pytest.approx(0, abs=1e-6)
    assert solve_smoothing(
        compute_mean_entropy(np.zeros((2, 3), np.float32), 1.0), 3
    ) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "temperature"),
    [
        (["loss.soft_target.temperature=2"], 2.0),
        (["loss=[cross_entropy,nkd]", "loss.nkd.temperature=3"], 3.0),
        (["loss=[cross_entropy,crd]"], 1.0),
        (["controls.smoothed_labels.label_entropy_temperature=5"], 5.0),
    ],
)
def test_labels_are_as_soft_as_the_teacher_at_the_temperature_of_the_students_term(
    overrides: list[str], temperature: float
) -> None:
    words = choose_all_labels(["controls=[smoothed_labels]", *overrides])
    spec = build_spec(compose_config("distill", words))
    assert spec.controls["smoothed_labels"].label_entropy_temperature == temperature


LONG = (
    "logger=[]",
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=4",
    "student.name=resnet8",
)


@pytest.mark.slow
def test_match_wall_time_trains_for_the_measured_epochs_also_after_a_kill(tmp_path: Path) -> None:
    teacher = teacher_folder(tmp_path / "teacher", "wrn_16_2")
    overrides = [
        *LONG,
        f"teacher.checkpoint={teacher}",
        "controls=[match_wall_time]",
        "checks=warn",  # the teacher knows nothing
        f"out={tmp_path / 'run'}",
        f"stages={tmp_path / 'stages'}",
    ]
    log = str(tmp_path / "log")
    steps = "kd_app.training.module:Distillation.training_step"
    assert distill_in_process(overrides, log, (steps, 30)) == -9, "in the middle of measuring"
    assert not list(tmp_path.glob("stages/match_wall_time-*"))
    assert (
        distill_in_process(
            overrides, log, ("kd_app.training.module:Distillation.on_train_epoch_end", 20)
        )
        == -9
    ), Path(log).read_text(encoding="utf-8")
    measured = next(tmp_path.glob("stages/epochs-match_wall_time-*/epochs.json")).read_bytes()
    assert distill_in_process(overrides, log) == 0, Path(log).read_text(encoding="utf-8")
    again = stage(tmp_path / "run", "epochs-match_wall_time")
    assert sorted(path.name for path in again.iterdir()) == ["epochs.json", "stage.json"]
    assert (again / "epochs.json").read_bytes() == measured
    resolved = json.loads(measured)
    seconds = resolved["seconds_an_epoch"]
    assert (
        resolved["max_epochs"]
        == max(2, round(2 * seconds["student"] / seconds["match_wall_time"]))
        > 2
    )
    validated = [
        row["epoch"]
        for row in read_curves(stage(tmp_path / "run", "match_wall_time") / "curves.jsonl")
        if "validation/top1" in row
    ]
    assert validated == list(range(resolved["max_epochs"]))
    assert results(tmp_path / "run")["models"]["match_wall_time"]["decided"] == resolved


@pytest.mark.slow
def test_if_the_teacher_is_better_than_the_labels_shuffling_destroys_the_gain(
    tmp_path: Path,
) -> None:
    own = "tests.training.oracle"
    quick = [
        "logger=[]",
        "trainer=cpu",
        "trainer.precision=32-true",
        "trainer.max_epochs=25",
        "optimizer.lr=0.003",
    ]
    data = [f"data.source._target_={own}.Mislabeled", "data.view.padding=0"]
    nets = [
        f"teacher._target_={own}.Oracle",
        "teacher.name=null",
        "teacher.max_epochs=0",
        f"student._target_={own}.Perceptron",
        "student.name=null",
    ]
    learn = [
        "loss=[soft_target]",
        "loss.soft_target.temperature=1",
        "controls=[labels_only,shuffled_teacher]",
    ]
    run = kd_app.distill(
        *quick, *data, *nets, *learn, f"out={tmp_path / 'run'}", f"stages={tmp_path / 'stages'}"
    )
    truth = true_labels()[run.predictions["index"]]
    right = {
        role: float((run.predictions[f"{role}_top1"] == truth).mean())
        for role in ("teacher", "labels_only", "shuffled_teacher", "student")
    }
    assert right["teacher"] == 1
    assert right["student"] > 0.9
    assert right["shuffled_teacher"] < right["student"] - 0.1
    assert right["shuffled_teacher"] == pytest.approx(right["labels_only"], abs=0.12)


WRONG = {
    "controls=[pseudo_labels]": (
        "The control pseudo_labels needs training images without labels, but every training image"
        " has a label. Set data.label_fraction"
    ),
    "controls=[pseudo_labels] data.label_fraction=0.1"
    " controls.pseudo_labels.pseudo_label_confidence=1": (
        "controls: pseudo_label_confidence=1 does not fit"
    ),
    "controls=[match_wall_time] +controls.match_wall_time.label_entropy_temperature=4"
    " ~controls.match_wall_time.loss.cross_entropy.smoothing": "none of the control's loss terms",
    "controls=[match_wall_time] controls.match_wall_time.match_wall_time=3": (
        "controls: match_wall_time=3 does not fit"
    ),
    "controls=[smoothed_labels] controls.smoothed_labels.label_entropy_temperature=0": (
        "controls: label_entropy_temperature=0 does not fit"
    ),
    "controls=[self_supervised]": "no trained classifier: set task=embedding",
    "task=embedding controls=[shuffled_teacher]": "Choose the control other_images",
    "task=embedding controls=[labels_only]": "cross_entropy of the controls reads labels",
    "task=embedding controls=[self_supervised]"
    " +controls.self_supervised.shuffle_teacher_images=all": "the teacher sees no image at all",
    "controls=[other_family] controls.other_family.student.name=resnet9": (
        "There is no controls.other_family.student model 'resnet9'"
    ),
    "controls=[other_family] +controls.other_family.student.names=x": (
        "Did you mean 'controls.other_family.student.name'?"
    ),
    "controls=[other_family] controls.other_family.student.candidates=null": (
        "Expected with name=auto: the models to choose from"
    ),
    "controls=[other_family] controls.other_family.student.candidates.resnet8.name=7": (
        "does not fit"
    ),
}


@pytest.mark.parametrize(("overrides", "message"), WRONG.items())
def test_an_invalid_control_is_refused_before_data_are_read(overrides: str, message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("?", r"\?")):
        build_spec(compose_config("distill", choose_all_labels(overrides.split())))


def test_batches_without_image_indices_have_no_partners(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError,
        match="The control shuffled_teacher needs",
    ):
        kd_app.distill(
            "controls=[shuffled_teacher]", f"out={tmp_path}", "logger=[]", data=OwnData()
        )


def spec_of(name: str, **kwargs: Any) -> ModelSpec:
    return ModelSpec(
        role="net",
        name=name,
        pretrained="auto",
        checkpoint=None,
        kwargs=kwargs,
        image_size=None,
        factory=None,
    )


@pytest.mark.parametrize(
    ("student", "size", "chosen"),
    [("resnet8", 8, "wrn_16_1"), ("wrn_16_1", 8, "resnet8"), ("resnet8", 28, "mobilenetv2_050")],
)
def test_the_model_of_another_family_is_the_nearest_in_cost_with_a_feature_map_left(
    student: str, size: int, chosen: str
) -> None:
    candidates = [
        spec_of("resnet8"),
        spec_of("wrn_16_1"),
        spec_of("wrn_16_2"),
        spec_of("lcnet_050"),
        spec_of("mobilenetv2_050", output_stride=8),
    ]
    nearest = select_nearest(candidates, spec_of(student), ImageStats(1, size, (0.5,), (0.5,)), 10)
    assert nearest.spec.name == chosen
    assert extract_family(nearest.spec.name) != extract_family(student)
    assert nearest.macs > 0


def test_without_a_candidate_of_another_family_a_model_has_to_be_named() -> None:
    with pytest.raises(
        RequestError,
        match=r"None of the models in net.candidates is of another family than resnet8",
    ):
        select_nearest(
            [spec_of("resnet20")], spec_of("resnet8"), ImageStats(1, 8, (0.5,), (0.5,)), 10
        )


@pytest.mark.slow
def test_several_processes_train_each_control(tmp_path: Path) -> None:
    teacher = teacher_folder(tmp_path / "teacher")
    overrides = [
        *(each for each in OVERRIDES if not each.startswith(("teacher.name=", "trainer="))),
        f"teacher.checkpoint={teacher}",
        "trainer=ddp_sim",
        "data.batch_size=32",
    ]
    succeed(*overrides, f"out={tmp_path / 'run'}", f"stages={tmp_path / 'stages'}")
    models = results(tmp_path / "run")["models"]
    for control in ALL:
        epochs = models[control].get("decided", {}).get("max_epochs", 1)
        ranks = json.loads(
            (stage(tmp_path / "run", control) / "training.json").read_text(encoding="utf-8")
        )["ranks"]
        assert [each["images"] for each in ranks] == [2 * 32 * epochs] * 2
