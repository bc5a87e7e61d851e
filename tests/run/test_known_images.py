"""Images that a run knows from its training, recognized by content."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from PIL import Image

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.data import fingerprint
from kd_app.data.base import RunData
from kd_app.data.build import build_data
from kd_app.data.evaluation import Evaluation
from kd_app.data.splits import read_split
from kd_app.reporting.results import Results
from kd_app.run.inputs import RunInputs
from kd_app.run.known_images import USED, KnownImages, leave_out_used, list_measured
from tests.builders import image_folder
from tests.data.test_duplicates import smooth, write


def build(root: Path) -> RunData:
    return build_data(compose_config("distill", ["data=folder", f"data.root={root}"])["data"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run, with the record of its images in ``photos``."""
    root = image_folder(tmp_path / "photos", images=10)
    (tmp_path / "run").mkdir()
    overrides = ["data=folder", f"data.root={root}", f"stages={tmp_path / 'stages'}"]
    config = compose_config("distill", overrides)
    inputs = RunInputs(tmp_path / "run", config, build(root))
    inputs.data.list()
    inputs.data.write_split(tmp_path / "run" / "split.csv")
    inputs.record()
    return tmp_path / "run"


def evaluate(root: Path) -> RunData:
    data = build(root)
    data.evaluate_only(Evaluation(("class0", "class1")))
    data.list()
    return data


def test_copies_of_training_images_are_left_out_whatever_their_names(
    run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "photos", other)
    for file in sorted(other.rglob("*.png")):
        file.rename(file.with_name(f"renamed{file.name}"))
    data, known = evaluate(other), KnownImages.read(run)
    notes = leave_out_used(known, data, "all", "measure")
    assert "They are measured, too" in notes[0]
    assert len(list_measured(data, "all")) == 20
    notes = leave_out_used(known, data, "all", "leave_out")
    assert "16 of the 20 images were used to train the run's models" in notes[0]
    assert "14 to learn from" in notes[0]
    assert "2 to choose the best epoch" in notes[0]
    assert len(list_measured(data, "all")) == 4


def test_only_new_images_are_no_reason_for_a_note_and_none_is_refused(
    run: Path, tmp_path: Path
) -> None:
    new = image_folder(tmp_path / "new", images=2, side=17)
    assert leave_out_used(KnownImages.read(run), evaluate(new), "all", "leave_out") == []
    used = tmp_path / "used"
    rows = (run / "split.csv").read_text().splitlines()
    for row in rows[1:]:
        _, file, _, split, *_ = row.split(",")
        if split == "train":
            (used / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "photos" / file, used / file)
    with pytest.raises(RequestError, match="no new image to measure"):
        leave_out_used(KnownImages.read(run), evaluate(used), "all", "leave_out")


def test_images_are_recognized_if_only_one_of_both_sets_is_hashed_as_a_whole(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "WHOLE_LIMIT", 10)
    monkeypatch.setattr(fingerprint, "_END", 20)
    data = evaluate(tmp_path / "photos")
    assert data.listing is not None
    assert not data.listing.whole
    assert len(KnownImages.read(run).find_used(data, "all")) == 16


def test_changes_of_the_runs_own_images_are_described(run: Path, tmp_path: Path) -> None:
    known = KnownImages.read(run)
    assert known.describe_changes(build(tmp_path / "photos")) == ""
    (tmp_path / "photos" / "class0" / "000.png").unlink()
    data = build(tmp_path / "photos")
    assert known.describe_changes(data) == "1 image removed (class0/000.png)"
    data.evaluate_only(Evaluation(("class0", "class1"), "test", known.splits))
    data.list()
    splits = [line.split(",")[3] for line in (run / "split.csv").read_text().splitlines()[1:]]
    assert len(list_measured(data, "validation")) <= splits.count("validation")
    assert len(list_measured(data, "all")) == 19


def scan(data: RunData, folder: Path) -> Path:
    folder.mkdir(parents=True)
    job = data.scan_job(32)
    assert job is not None
    job.run(folder, lambda done, total: None)
    data.load(folder)
    return folder


def test_training_images_that_were_saved_again_are_recognized_by_their_thumbnails(
    tmp_path: Path,
) -> None:
    root = write(tmp_path / "photos", 10)
    data = build(root)
    data.list()
    (tmp_path / "run").mkdir()
    data.write_split(tmp_path / "run" / "split.csv")
    stage = SimpleNamespace(name="data", path=str(scan(data, tmp_path / "data")))
    known = KnownImages.read(tmp_path / "run", cast(Results, SimpleNamespace(stages=[stage])))
    for name in ("a", "b"):
        (tmp_path / "again" / name).mkdir(parents=True)
        smooth(1000).save(tmp_path / "again" / name / "new.png")
    for file in sorted(root.rglob("*.png")):
        image = Image.open(file)
        larger = image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)
        larger.save(tmp_path / "again" / file.parent.name / f"{file.stem}.jpg", quality=95)
    other = build(tmp_path / "again")
    other.evaluate_only(Evaluation(("a", "b")))
    other.list()
    folder = scan(other, tmp_path / "scan")
    assert known.find_used(other, "all") == {}
    similar = known.find_similar(other, "all", folder)
    rows = read_split(tmp_path / "run" / "split.csv") or {}
    used = {file: row.split for file, row in rows.items() if row.split in USED}
    names = {other.files[n].replace(".jpg", ".png"): use for n, use in similar.items()}
    assert names == used
    assert len(used) == 16
    (note,) = leave_out_used(known, other, "all", "leave_out", folder)
    assert "16 of the 22 images are nearly identical to images that trained" in note
    assert "known_images=leave_out_similar leaves them out" in note
    assert len(list_measured(other, "all")) == 22
    (note,) = leave_out_used(known, other, "all", "leave_out_similar", folder)
    assert "They are left out" in note
    assert len(list_measured(other, "all")) == 6
    assert known.find_similar(other, "all", None) == {}
    assert KnownImages.read(tmp_path / "run").find_similar(other, "all", folder) == {}
