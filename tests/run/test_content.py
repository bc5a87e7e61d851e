"""What belongs to a run's folder, and what is somebody's own."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.reporting.results import write
from kd_app.run.content import is_run, list_left
from tests.reporting.run_folders import build_results


def write_config(folder: Path, config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("distill", []),
        ("compress", ["run=a", "steps=[prune]"]),
        ("evaluate", ["run=a", "out=b"]),
        ("export", ["run=a"]),
    ],
)
def test_the_configuration_of_every_command_marks_a_run(
    command: str, overrides: list[str], tmp_path: Path
) -> None:
    config = compose_config(command, overrides)
    if command == "compress":
        # its record is that of the run, see kd_app.jobs.compress
        config = {**compose_config("distill", []), "compressed": config}
    assert is_run(write_config(tmp_path, config))


@pytest.mark.parametrize("text", ["a: 1", "[data, student]", "{", "", "data: 1\nstudent: 2\n"])
def test_another_config_yaml_is_no_run_unless_the_results_are(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert not is_run(tmp_path)
    (tmp_path / "results.json").write_text("{}", encoding="utf-8")
    assert not is_run(tmp_path)
    write(tmp_path / "results.json", build_results())
    assert is_run(tmp_path)


def test_only_what_a_run_leaves_is_listed(tmp_path: Path) -> None:
    ours = ["config.yaml", "metrics.csv", "report.md", "model_int8.onnx", "cascade.json"]
    theirs = ["thesis.txt", "config.yaml.bak", "notes", "reports", "my_model.onnx", ".git"]
    for name in ours + theirs:
        (tmp_path / name).touch()
    for name in ("student/model.safetensors", "teacher/reference.json", "wandb/run-1/x.wandb"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "compressed").mkdir()  # somebody's own folder of that name
    (tmp_path / "tensorboard").symlink_to("notes")
    left = [path.name for path in list_left(tmp_path)]
    assert left == sorted([*ours, "student", "teacher", "wandb"])


def test_the_folder_of_another_command_is_left_if_it_is_whole(tmp_path: Path) -> None:
    config = compose_config("export", ["run=a"])
    write_config(tmp_path / "export", config)
    assert [path.name for path in list_left(tmp_path)] == ["export"]
    (tmp_path / "export" / "thesis.txt").touch()
    assert list_left(tmp_path) == []


@pytest.mark.parametrize("folder", ["student", "wandb", "tensorboard", "mlflow"])
def test_a_file_of_ones_own_among_the_runs_files_is_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "thesis.txt").touch()
    with pytest.raises(RequestError, match=rf"would remove '.*{folder}/thesis.txt', which is no"):
        list_left(tmp_path)
