from dataclasses import replace
from pathlib import Path

from kd_app.tracking.outcome import build_outcome
from kd_app.tracking.tables import build_confusion_tables, build_tables
from tests.tracking.runs import RESULTS, files


def test_without_a_teacher_a_test_and_files_there_is_nothing_to_hand_on_and_no_table() -> None:
    results = {
        "test": None,
        "validation": {"student": {"top1": 0.5}},
        "models": {"student": {"name": "resnet8"}},
    }
    told = build_outcome("fm", results, [], Path("/out"), [])
    assert (told.makes, told.test, build_tables(told), build_confusion_tables(told)) == (
        (),
        {},
        {},
        {},
    )
    assert told.figures == {"validation.student.top1": 0.5, "models.student.name": "resnet8"}


def test_figures_keep_their_dotted_names_and_what_is_no_figure_is_left_out() -> None:
    told = build_outcome("fm", RESULTS, [], Path("/out"), [])
    assert told.figures["test.labels_only.top1_low"] == 0.77
    assert told.figures["test.num_images"] == 360
    assert not any(
        name.startswith(("test.pair.g", "stages", "test.teacher.classes")) for name in told.figures
    )
    assert list(told.test) == ["teacher", "labels_only", "student"]


def test_files_are_named_as_they_lie_in_the_runs_folder_also_those_in_folders(
    tmp_path: Path,
) -> None:
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("x")
    told = build_outcome("fm", RESULTS, [*files(tmp_path / "fm"), elsewhere], tmp_path / "fm", [])
    assert set(told.files) >= {
        "config.yaml",
        "results.json",
        "student/model.safetensors",
        "elsewhere.txt",
    }
    assert {each.kind: list(each.files) for each in told.makes}["student"] == [
        "student/model.safetensors"
    ]


def test_more_than_a_hundred_classes_have_no_confusion_matrix(tmp_path: Path) -> None:
    told = build_outcome("fm", RESULTS, files(tmp_path / "fm"), tmp_path / "fm", [])
    assert len(build_confusion_tables(told)["student"].rows) == 9
    assert (
        build_confusion_tables(replace(told, classes=[str(number) for number in range(101)])) == {}
    )
