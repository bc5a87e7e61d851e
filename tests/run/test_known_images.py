"""Images that a run knows from its training, recognized by content."""

import shutil
from pathlib import Path

import pytest

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.data import fingerprint
from kd_app.data.base import RunData
from kd_app.data.build import build_data
from kd_app.data.evaluation import Evaluation
from kd_app.run.inputs import RunInputs
from kd_app.run.known_images import KnownImages, leave_out_used, list_measured
from tests.builders import image_folder


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
    notes = leave_out_used(known, data, "all", measure=True)
    assert "They are measured, too" in notes[0]
    assert len(list_measured(data, "all")) == 20
    notes = leave_out_used(known, data, "all", measure=False)
    assert "16 of the 20 images were used to train the run's models" in notes[0]
    assert "14 to learn from" in notes[0]
    assert "2 to choose the best epoch" in notes[0]
    assert len(list_measured(data, "all")) == 4


def test_only_new_images_are_no_reason_for_a_note_and_none_is_refused(
    run: Path, tmp_path: Path
) -> None:
    new = image_folder(tmp_path / "new", images=2, side=17)
    assert leave_out_used(KnownImages.read(run), evaluate(new), "all", measure=False) == []
    used = tmp_path / "used"
    rows = (run / "split.csv").read_text().splitlines()
    for row in rows[1:]:
        _, file, _, split, *_ = row.split(",")
        if split == "train":
            (used / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "photos" / file, used / file)
    with pytest.raises(RequestError, match="no new image to measure"):
        leave_out_used(KnownImages.read(run), evaluate(used), "all", measure=False)


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
