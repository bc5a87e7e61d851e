from pathlib import Path

from kd_app.tracking.outcome import outcome
from tests.tracking.runs import RESULTS, files


def test_without_a_teacher_and_without_a_test_there_is_no_lineage_and_no_table() -> None:
    told = outcome({"test": None, "validation": {"student": {"top1": 0.5}}, "models": {"student": {"name": "resnet8"}}}, [], Path("/out"), None)
    assert (told.lineage, told.test) == ({}, {})
    assert told.figures == {"validation.student.top1": 0.5, "models.student.name": "resnet8"}


def test_figures_keep_their_dotted_names_and_what_is_no_figure_is_left_out() -> None:
    told = outcome(RESULTS, [], Path("/out"), None)
    assert told.figures["test.labels_only.top1_low"] == 0.77
    assert told.figures["test.num_images"] == 360
    assert not any(name.startswith(("test.pair.g", "stages", "test.teacher.classes")) for name in told.figures)
    assert list(told.test) == ["teacher", "labels_only", "student"]


def test_files_are_named_as_they_lie_in_the_runs_folder_also_those_in_folders(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("x")
    told = outcome(RESULTS, [*files(tmp_path / "fm"), elsewhere], tmp_path / "fm", None)
    assert list(told.files) == ["config.yaml", "results.json", "student/model.safetensors", "elsewhere.txt"]
