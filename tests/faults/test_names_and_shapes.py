"""Folders of images that nobody would have made on purpose."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kd_app import load_run
from kd_app.config.csv_cells import restore_cell
from tests.builders import image_folder, results
from tests.commands.call import TINY, succeed
from tests.faults.conftest import Fault
from tests.security.test_names import FOLDERS, assert_names_are_whole


def distill(folder: Path, *words: str) -> str:
    return succeed(
        *TINY,
        "student.name=resnet8",
        "data=folder",
        f"data.root={folder}",
        "data.image_size=16",
        "out=run",
        "stages=stages",
        "controls=[]",
        *words,
    )


def test_strange_names_of_classes_and_files_come_back_as_they_are(
    photos: Path, tmp_path: Path, fault: Fault
) -> None:
    classes = ["a b", 'it\'s "q"', "ö 猫", "line\nbreak", "c;,\t=[x] %20$HOME", "-m", "null"]
    classes += FOLDERS
    for name in classes:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, image in enumerate(sorted((photos / "class0").iterdir())[:4]):
            shutil.copy(image, tmp_path / "photos" / name / f'{number} 🐈 "x"\n,${{x}}.png')
    distill(tmp_path / "photos")
    assert_names_are_whole(sorted(classes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "photos"]
    assert sorted(path.name for path in Path().iterdir()) == ["run", "stages"]
    files = sorted(
        f'{name}/{number} 🐈 "x"\n,${{x}}.png' for name in classes for number in range(4)
    )
    split = pd.read_csv("run/split.csv", keep_default_na=False)
    assert sorted(map(restore_cell, split["file"])) == files
    assert set(map(restore_cell, split["label"])) == set(classes)
    assert set(load_run("run").predictions["file"]) <= set(files)
    succeed("run=run", "out=again", command="kd-evaluate")
    assert results(Path("again"))["test"]["student"] == results(Path("run"))["test"]["student"]
    for what in ("spaces", "quotes", "a newline", "other scripts", "the shell's letters"):
        fault(
            f"{what} in the names of classes and files",
            happened="trained, written and read back as they are; kd-evaluate agrees",
            lost="nothing",
        )


@pytest.mark.slow
def test_a_thousand_classes_are_distilled(tmp_path: Path, fault: Fault) -> None:
    random = np.random.default_rng(0)
    for label in range(1000):
        (tmp_path / "photos" / f"{label:04}").mkdir(parents=True)
        for number in range(3):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                tmp_path / "photos" / f"{label:04}" / f"{number}.png"
            )
    distill(tmp_path / "photos")
    assert len(results(Path("run"))["data"]["classes"]) == 1000
    assert results(Path("run"))["status"] == "finished"
    fault("1,000 classes of three images", happened="the run ended", lost="nothing")


@pytest.mark.slow
def test_a_class_of_one_image_is_trained_on_and_not_measured(tmp_path: Path, fault: Fault) -> None:
    folder = image_folder(tmp_path / "photos", images=12, classes=3)
    for image in sorted((folder / "class1").iterdir())[1:]:
        image.unlink()
    output = " ".join(distill(folder).split())
    for split in ("validation", "test"):
        assert (
            "1 class(es) have too few images to divide, and no image in"
            f" {split}: 'class1'. Metrics on {split} do not include these classes." in output
        )
    assert sum("'class1'" in note for note in results(Path("run"))["notes"]) == 2
    fault(
        "a class with one image",
        happened="it is trained on; a note says that nothing is measured about it",
        lost="that class's figures",
    )


@pytest.mark.slow
def test_links_that_lead_back_end(photos: Path, tmp_path: Path, fault: Fault) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    (folder / "class0" / "up").symlink_to(folder)
    (folder / "class1" / "self").symlink_to(folder / "class1" / "self")
    (folder / "class2" / "again").symlink_to(folder / "class2")
    distill(folder)
    assert sum(results(Path("run"))["data"]["sizes"].values()) == 36
    fault(
        "links in the folder of images lead back to it",
        happened="each image was seen once",
        lost="nothing",
    )
