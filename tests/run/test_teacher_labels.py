"""Whether the teacher knows labels that the student does not see."""

from pathlib import Path

import pytest

from kd_app.models.composite import EmaTeacher
from kd_app.models.spec import ModelSpec
from kd_app.reporting.results import TeacherLabels, write
from kd_app.reporting.sentences import write_teacher_labels
from kd_app.run.teacher_labels import compare_labels, find_teacher_labels
from kd_app.run.workspace import Workspace
from tests.builders import build_workspace, teacher_folder
from tests.reporting.run_folders import build_results

SHARE = 0.1


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Digits with a tenth of the labels, and a teacher from a folder."""
    folder = tmp_path_factory.mktemp("few")
    teacher = teacher_folder(folder / "teacher")
    return build_workspace(
        folder,
        f"teacher.checkpoint={teacher}",
        "student.name=resnet8",
        f"data.label_fraction={SHARE}",
        "controls=[]",
    )


def write_run(
    folder: Path,
    few: Workspace,
    share: float | None,
    *,
    same_images: bool = True,
    teacher: TeacherLabels | None = None,
) -> Path:
    """The folder of a run on the images of `few`, with another share of the labels."""
    folder.mkdir()
    few.data.write_split(folder / "split.csv")
    results = build_results()
    assert results.data is not None
    results.config["data"] = {"label_fraction": share}
    results.data.fingerprint = few.data.fingerprint if same_images else "other"
    results.data.teacher_labels = teacher
    write(folder / "results.json", results)
    return folder


@pytest.mark.parametrize(
    ("share", "same_images", "teacher", "labels"),
    [
        (None, True, None, "more"),
        (1.0, False, None, "more"),
        (0.2, True, "same", "more"),
        (SHARE, True, "same", "same"),
        (0.05, True, "same", "same"),
        (SHARE, True, "more", "more"),
        (SHARE, True, "unknown", "unknown"),
        (0.05, False, "same", "unknown"),
    ],
)
def test_a_run_on_these_images_knows_its_own_labels_and_those_of_its_teacher(
    few: Workspace,
    tmp_path: Path,
    share: float | None,
    same_images: bool,
    teacher: TeacherLabels | None,
    labels: TeacherLabels,
) -> None:
    run = write_run(tmp_path / "run", few, share, same_images=same_images, teacher=teacher)
    assert compare_labels(run, few.data, SHARE) == labels


def test_a_run_on_other_images_knows_none_of_these_labels(few: Workspace, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", few, None)
    rows = (run / "split.csv").read_text(encoding="utf-8").splitlines()
    others = [row.replace(",train", ",test") for row in rows]
    (run / "split.csv").write_text("\n".join(others) + "\n", encoding="utf-8")
    assert compare_labels(run, few.data, SHARE) == "same"
    (run / "split.csv").unlink()
    assert compare_labels(run, few.data, SHARE) == "unknown"


def test_a_teacher_that_is_trained_here_sees_the_same_labels(
    few: Workspace, digits: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_teacher_labels(few, ready=False) == "same"
    assert find_teacher_labels(few, ready=True) == "unknown"
    assert find_teacher_labels(digits, ready=True) is None
    average = EmaTeacher(few.spec.student, 0.99)
    monkeypatch.setitem(vars(few.spec), "teacher", average)
    assert find_teacher_labels(few, ready=True) == "same"
    monkeypatch.setitem(vars(few.spec), "teacher", None)
    assert find_teacher_labels(few, ready=True) is None


def test_a_teacher_from_a_run_is_compared_by_the_runs_folder(
    few: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", few, None)
    teacher_folder(run / "student")
    teacher = ModelSpec(
        role="teacher",
        name=None,
        pretrained="auto",
        checkpoint=run,
        kwargs={},
        image_size=None,
        factory=None,
    )
    monkeypatch.setitem(vars(few.spec), "teacher", teacher)
    assert find_teacher_labels(few, ready=True) == "more"


def test_each_outcome_has_a_sentence() -> None:
    assert write_teacher_labels(None) == ""
    assert "on none of the labels" in write_teacher_labels("same")
    assert "passes them on" in write_teacher_labels("more")
    assert "not known" in write_teacher_labels("unknown")
