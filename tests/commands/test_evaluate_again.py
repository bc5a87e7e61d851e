"""A finished run's models, measured again: on its own data, on other data, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import kd_app
from tests.commands.call import call, done, paragraph, refused, snapshot
from tests.training.made import results


def evaluated(*words: str) -> str:
    return done(*words, command="kd-evaluate")


def not_evaluated(*words: str) -> str:
    return refused(*words, command="kd-evaluate")


def test_its_own_test_images_give_the_same_figures_again(made: Path) -> None:
    before = snapshot(made)
    out = evaluated(f"run={made / 'run'}", "out=again", "limit=2")
    assert results(Path("again"))["test"] == results(made / "run")["test"]
    assert results(Path("again"))["verdict"] == results(made / "run")["verdict"]
    for role, model in results(made / "run")["models"].items():
        again = results(Path("again"))["models"][role]
        assert {key: again[key] for key in ("name", "params", "macs", "size_bytes", "sha256")}.items() <= model.items()
    assert "top-1 accuracy" in out
    assert "Measured test images of the run: again" in out
    assert snapshot(made / "run") == {name.removeprefix("run/"): content for name, content in before.items() if name.startswith("run/")}


def test_any_split_may_be_asked_for(made: Path) -> None:
    evaluated(f"run={made / 'run'}", "out=again", "split=validation")
    assert results(Path("again"))["test"]["num_images"] == results(made / "run")["data"]["sizes"]["validation"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve digits of each class as images in folders, names of the folders as the run's classes."""
    digits, folder = load_digits(), tmp_path_factory.mktemp("written")
    for label in range(10):
        (folder / str(label)).mkdir()
        for number in np.flatnonzero(digits.target == label)[:12]:
            Image.fromarray((digits.images[number] * 255 / 16).astype(np.uint8)).save(folder / str(label) / f"{number:04d}.png")
    return folder


def test_other_images_of_the_same_classes_are_measured_all(made: Path, written: Path) -> None:
    out = evaluated(f"run={made / 'run'}", "out=other", "data=folder", f"data.root={written}", "data.source.channels=1", "stages=stages")
    found = results(Path("other"))
    assert found["status"] == "finished"
    assert found["test"]["num_images"] == 120
    assert found["data"]["classes"] == list("0123456789")
    assert "Measured all images of folder" in out
    assert found["models"]["student"]["sha256"] == results(made / "run")["models"]["student"]["sha256"]
    runs = kd_app.load_runs(".")
    assert list(runs["path"]) == ["other"]
    assert runs["test.teacher.top1"].notna().all()


def test_images_of_other_classes_are_refused_by_name(made: Path, photos: Path, written: Path, tmp_path: Path) -> None:
    words = (f"run={made / 'run'}", "out=other", "data=folder", f"stages={tmp_path / 'stages'}")
    said = not_evaluated(*words, f"data.root={photos}")
    assert "The run's models know 10 classes, these data have 3;" in said
    assert "'class0'" in said
    nine = Path(shutil.copytree(written, tmp_path / "nine", ignore=lambda folder, names: ["9"] if Path(folder) == written else []))
    assert "differ in '9'" in not_evaluated(*words, f"data.root={nine}", "data.source.channels=1")


def test_a_run_that_is_not_finished_is_refused(run: Path) -> None:
    content = results(run)
    for status in ("running", "failed"):
        (run / "results.json").write_text(json.dumps({**content, "status": status}), encoding="utf-8")
        assert f"is {status}, not finished. Say its kd-distill command again" in not_evaluated(f"run={run}", "out=again")
    (run / "results.json").write_text(json.dumps(content)[:500], encoding="utf-8")
    assert "can't be read" in not_evaluated(f"run={run}", "out=again")


def test_a_run_without_its_configuration_is_refused(run: Path) -> None:
    (run / "config.yaml").unlink()
    assert "config.yaml' can't be read" in not_evaluated(f"run={run}", "out=again")


def test_the_results_of_something_else_are_not_written_over(made: Path, run: Path) -> None:
    before = snapshot(run)
    ended = call(f"run={made / 'run'}", f"out={run}", command="kd-evaluate")
    assert ended.code == 2
    assert "holds a run with another configuration" in paragraph(ended.err)
    assert snapshot(run) == before


def test_a_model_whose_stage_is_gone_is_left_out_and_that_is_said(made: Path, run: Path) -> None:
    content = results(run)
    content["stages"] = [{**stage, "path": "gone"} if stage["name"] == "labels_only" else stage for stage in content["stages"]]
    (run / "results.json").write_text(json.dumps(content), encoding="utf-8")
    assert "Note: the labels_only is not there any more (gone); it is left out" in evaluated(f"run={run}", "out=again", "limit=2")
    found = results(Path("again"))["test"]
    assert found["labels_only"] is None
    assert found["student"] == results(made / "run")["test"]["student"]


def test_a_run_may_teach_the_next(made: Path) -> None:
    done("debug=fdr", "logger=[csv]", f"teacher.checkpoint={made / 'run'}", "out=next", "stages=stages")
    taught = results(Path("next"))["models"]["teacher"]
    assert taught["sha256"] == results(made / "run")["models"]["student"]["sha256"]
    assert "teacher" not in {stage["name"] for stage in results(Path("next"))["stages"]}
