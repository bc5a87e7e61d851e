"""A finished run's models, measured again: on its own data, on other data, and what is
refused.
"""

import io
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

import kd_app
from kd_app.config import RequestError
from tests.builders import accept_changes, results
from tests.commands.call import TINY, call, expect_refusal, paragraph, snapshot, succeed


def evaluate(*words: str) -> str:
    return succeed(*words, command="kd-evaluate")


def not_evaluated(*words: str) -> str:
    return expect_refusal(*words, command="kd-evaluate")


def test_its_own_test_images_give_the_same_figures_again(sample_run: Path) -> None:
    before = snapshot(sample_run)
    out = evaluate(f"run={sample_run / 'run'}", "out=again", "limit=2")
    assert results(Path("again"))["test"] == results(sample_run / "run")["test"]
    assert results(Path("again"))["verdict"] == results(sample_run / "run")["verdict"]
    for role, model in results(sample_run / "run")["models"].items():
        again = results(Path("again"))["models"][role]
        assert {
            key: again[key] for key in ("name", "params", "macs", "size_bytes", "sha256")
        }.items() <= model.items()
    assert "top-1 accuracy" in out
    assert "Measured test images of the run: again" in out
    assert snapshot(sample_run / "run") == {
        name.removeprefix("run/"): content
        for name, content in before.items()
        if name.startswith("run/")
    }


def test_any_split_may_be_asked_for(sample_run: Path) -> None:
    evaluate(f"run={sample_run / 'run'}", "out=again", "split=validation")
    assert (
        results(Path("again"))["test"]["num_images"]
        == results(sample_run / "run")["data"]["sizes"]["validation"]
    )


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve digits of each class as images in folders, names of the folders as the
    run's classes.
    """
    digits, folder = load_digits(), tmp_path_factory.mktemp("written")
    for label in range(10):
        (folder / str(label)).mkdir()
        for number in np.flatnonzero(digits.target == label)[:12]:
            Image.fromarray((digits.images[number] * 255 / 16).astype(np.uint8)).save(
                folder / str(label) / f"{number:04d}.png"
            )
    return folder


@pytest.fixture(scope="module")
def other(
    sample_run: Path, digit_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[str, ...], str]:
    """The run, measured on images in folders: where, the words for them, the output."""
    out = tmp_path_factory.mktemp("other") / "other"
    data = ("data=folder", f"data.root={digit_files}", "data.source.channels=1")
    words = (*data, f"stages={out.parent / 'stages'}")
    return out, words, evaluate(f"run={sample_run / 'run'}", f"out={out}", *words)


def test_other_images_of_the_same_classes_are_measured_all(
    sample_run: Path, other: tuple[Path, tuple[str, ...], str]
) -> None:
    folder, _, out = other
    content = results(folder)
    assert content["status"] == "finished"
    assert content["test"]["num_images"] == 120
    assert content["data"]["classes"] == list("0123456789")
    assert "Measured all images of folder" in out
    assert (
        content["models"]["student"]["sha256"]
        == results(sample_run / "run")["models"]["student"]["sha256"]
    )
    runs = kd_app.load_runs(folder.parent)
    assert list(runs["path"]) == [str(folder)]
    assert runs["test.teacher.top1"].notna().all()


def test_a_model_that_is_no_run_is_measured_alike(
    sample_run: Path, other: tuple[Path, tuple[str, ...], str]
) -> None:
    evaluate(f"model={sample_run / 'run' / 'student'}", "out=model", *other[1])
    of_run, of_model = (results(each)["test"] for each in (other[0], Path("model")))
    assert of_model["student"] == of_run["student"]
    assert (of_model["teacher"], of_model["split"]) == (None, "all")


def test_all_measures_of_other_images_their_groups_and_what_corruption_does_to_each_model(
    sample_run: Path, digit_files: Path
) -> None:
    files = sorted(digit_files.rglob("*.png"))
    table = [
        "path,label,group",
        *(
            f"{file.relative_to(digit_files)},{file.parent.name},site {number % 5}"
            for number, file in enumerate(files)
        ),
    ]
    (digit_files / "labels.csv").write_text("\n".join(table), encoding="utf-8")
    corruptions = ("robustness.corruptions=[jpeg,gaussian_noise]", "robustness.severities=[2,5]")
    words = (
        f"run={sample_run / 'run'}",
        "out=other",
        "data=csv",
        f"data.root={digit_files}",
        "data.source.channels=1",
        "split=all",
        "stages=stages",
    )
    out = evaluate(*words, *corruptions)
    content, run = results(Path("other"))["test"], kd_app.load_run("other")
    assert "On corrupted images (2 kinds) the student gets" in out
    assert all(
        content["student"][name] is not None
        for name in ("f1", "f1_low", "brier", "brier_low", "classwise_ece")
    )
    assert all(
        content["pair"][name] is not None
        for name in ("reverse_kl", "rank_correlation", "rank_correlation_low")
    )
    assert 0 < content["pair"]["cka"] <= 1
    assert content["per_class"]["support"] == [12] * 10
    assert sum(each["num_images"] for each in content["groups"].values()) == 120
    for name, rows in run.predictions.groupby("group"):
        for role in ("teacher", "labels_only", "student"):
            assert content["groups"][name]["accuracy"][role]["value"] == pytest.approx(
                (rows[f"{role}_top1"] == rows["target"]).mean()
            )
    confusion = run.read_confusion("teacher")
    assert confusion.to_numpy().sum() == 120
    assert np.diag(confusion) / 12 == pytest.approx(
        content["per_class"]["accuracy"]["teacher"], abs=1e-6
    )
    with pytest.raises(RequestError, match="no model of this run 'techer'"):
        run.read_confusion("techer")
    assert [(each["corruption"], each["severity"]) for each in content["robustness"]] == [
        ("jpeg", 2), ("jpeg", 5), ("gaussian_noise", 2), ("gaussian_noise", 5)
    ]  # fmt: skip
    worst, expected = (
        content["robustness"][1],
        through_jpeg(sample_run / "run", digit_files, run.predictions["file"], quality=7),
    )
    assert worst["agreement"] == expected["agreement"]
    assert [worst["accuracy"][role] for role in ("student", "teacher")] == [
        expected[role] for role in ("student", "teacher")
    ]
    assert {stage["name"]: stage["status"] for stage in results(Path("other"))["stages"]}[
        "corrupted-student-all"
    ] == "computed"
    evaluate(*words[:1], "out=again", *words[2:], *corruptions)
    assert {stage["status"] for stage in results(Path("again"))["stages"]} == {"reused"}
    assert results(Path("again"))["test"] == content


def through_jpeg(run: Path, folder: Path, files: Iterable[str], *, quality: int) -> dict[str, Any]:
    """Accuracies and agreement on JPEGs of these images, by Pillow and timm alone."""
    models: dict[str, Any] = {
        "student": timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval(),
        "teacher": kd_app.load_run(run).load_teacher().eval(),
    }
    top1: dict[str, list[int]] = {"student": [], "teacher": []}
    for file in files:
        image = io.BytesIO()
        Image.open(folder / file).save(image, "jpeg", quality=quality)
        value = torch.from_numpy(np.asarray(Image.open(image)) / 255).float()[None, None]
        for role, model in models.items():
            mean, std = model.pretrained_cfg["mean"][0], model.pretrained_cfg["std"][0]
            with torch.no_grad():
                top1[role].append(int(model((value - mean) / std).argmax()))
    labels = [int(Path(file).parent.name) for file in files]
    right = {role: pytest.approx(np.mean(np.equal(each, labels))) for role, each in top1.items()}
    return {
        "student": right["student"],
        "teacher": right["teacher"],
        "agreement": pytest.approx(np.mean(np.equal(top1["student"], top1["teacher"]))),
    }


def test_a_finished_run_is_measured_on_corrupted_images_when_the_same_words_ask_for_it(
    sample_run: Path, run: Path
) -> None:
    succeed(
        *TINY,
        "out=run",
        f"stages={sample_run / 'stages'}",
        "robustness.corruptions=[contrast]",
        "robustness.severities=[4]",
    )
    again = results(run)
    assert [(each["corruption"], each["severity"]) for each in again["test"]["robustness"]] == [
        ("contrast", 4)
    ]
    assert again["validation"]["robustness"] == []
    assert {**again["test"], "robustness": []} == results(sample_run / "run")["test"]


def test_a_student_that_nobody_taught_is_measured_by_all_that_needs_no_teacher() -> None:
    succeed(
        *TINY[:2],
        "teacher=none",
        "loss=[cross_entropy]",
        "student.name=resnet8",
        "out=plain",
        "stages=stages",
    )
    evaluate("run=plain", "out=again", "limit=1", "robustness.corruptions=[pixelate]")
    content = results(Path("again"))["test"]
    assert content["pair"] is None
    assert content["gains"] == {}
    assert content["student"]["brier"] is not None
    assert set(content["per_class"]["accuracy"]) == {"student"}
    assert [(list(each["accuracy"]), each["agreement"]) for each in content["robustness"]] == [
        (["student"], None)
    ] * 3


def test_images_of_other_classes_are_refused_by_name(
    sample_run: Path, photos: Path, tmp_path: Path
) -> None:
    words = (
        f"run={sample_run / 'run'}",
        "out=other",
        "data=folder",
        f"stages={tmp_path / 'stages'}",
    )
    output = not_evaluated(*words, f"data.root={photos}")
    assert "The run's models have 10 classes, these data have 3;" in output
    assert "'class0'" in output


def test_images_of_a_part_of_the_classes_are_measured(
    sample_run: Path, digit_files: Path, tmp_path: Path
) -> None:
    words = (
        f"run={sample_run / 'run'}",
        "out=other",
        "data=folder",
        f"stages={tmp_path / 'stages'}",
    )
    nine = Path(
        shutil.copytree(
            digit_files,
            tmp_path / "nine",
            ignore=lambda folder, names: ["9"] if Path(folder) == digit_files else [],
        )
    )
    output = " ".join(evaluate(*words, f"data.root={nine}", "data.source.channels=1").split())
    assert "1 of the 10 classes have no image here ('9')" in output
    content = results(Path("other"))["test"]
    assert (content["split"], content["num_images"]) == ("all", 108)
    assert content["per_class"]["support"] == [12] * 9 + [0]


def test_a_run_that_is_not_finished_is_refused(run: Path) -> None:
    content = results(run)
    for status in ("running", "failed"):
        accept_changes(run, status=status)
        assert f"is {status}, not finished. Expected a finished run." in not_evaluated(
            f"run={run}", "out=again"
        )
    (run / "results.json").write_text(json.dumps(content)[:500], encoding="utf-8")
    assert "can't be read" in not_evaluated(f"run={run}", "out=again")


def test_a_run_without_its_configuration_is_refused(run: Path) -> None:
    (run / "config.yaml").unlink()
    assert "config.yaml' is missing" in not_evaluated(f"run={run}", "out=again")


def test_the_results_of_something_else_are_not_written_over(sample_run: Path, run: Path) -> None:
    before = snapshot(run)
    result = call(f"run={sample_run / 'run'}", f"out={run}", command="kd-evaluate")
    assert result.code == 2
    assert "holds a run with another configuration" in paragraph(result.err)
    assert snapshot(run) == before


def test_a_model_whose_stage_is_gone_is_left_out_and_that_is_said(
    sample_run: Path, run: Path
) -> None:
    content = results(run)
    stages = [
        {**stage, "path": "gone"} if stage["name"] == "labels_only" else stage
        for stage in content["stages"]
    ]
    accept_changes(run, stages=stages)
    assert "Note: labels_only is left out, because its model was deleted (" in evaluate(
        f"run={run}", "out=again", "limit=2"
    )
    content = results(Path("again"))["test"]
    assert content["labels_only"] is None
    assert content["student"] == results(sample_run / "run")["test"]["student"]
