"""A run without labels, then trainings on a few labels."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from torch import nn

from kd_app.config import InputSpec, RequestError
from kd_app.jobs.label_trials import distill_then_label
from kd_app.reporting.console import Console
from kd_app.reporting.results import write
from kd_app.specs.spec import ExternalParts
from tests.builders import image_folder, teacher_folder
from tests.reporting.run_folders import build_results
from tests.specs.test_label_trials import _compose


def test_the_run_comes_first_and_the_table_last(tmp_path: Path) -> None:
    folders: list[Path] = []

    def run(config: dict[str, Any], **_: Any) -> Path:
        assert config.get("label_trials") is None
        folders.append(Path(config["out"]))
        folders[-1].mkdir(parents=True)
        write(folders[-1] / "results.json", build_results())
        return folders[-1]

    config = _compose(f"out={tmp_path / 'run'}", "label_trials.fractions=[0.1,1]")
    with patch("kd_app.jobs.distill.distill", side_effect=run):
        out = distill_then_label(config, console=Console(silent=True))
    assert [path.relative_to(tmp_path).as_posix() for path in folders] == [
        "run",
        *(
            f"run/labels/{start}-{share}"
            for start in ("label_free", "random")
            for share in ["0.1", "1"]
        ),
    ]
    lines = (out / "labels.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0] for line in lines] == [
        "| start",
        "| ---",
        "| distilled without labels",
        "| random weights",
    ]


@pytest.mark.slow
def test_all_trainings_on_a_small_folder_are_in_the_table(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos", images=24)
    pixels = InputSpec(3, 16, 16, (0.5,) * 3, (0.25,) * 3)
    teacher = teacher_folder(tmp_path / "teacher", "resnet8", pixels=pixels)
    config = _compose(
        f"data.root={tmp_path / 'photos'}",
        f"teacher.checkpoint={teacher}",
        f"student.checkpoint={teacher}",
        "data.image_size=16",
        "data.batch_size=16",
        "data.num_workers=0",
        "trainer=cpu",
        "trainer.max_epochs=1",
        "label_trials.fractions=[0.5,1]",
        "checks=off",
        "logger=[]",
        f"stages={tmp_path / 'stages'}",
        f"out={tmp_path / 'run'}",
    )
    out = distill_then_label(config, console=Console(silent=True))
    rows = (out / "labels.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0] for line in rows[2:]] == [
        "| distilled without labels",
        "| its own weights",
        "| random weights",
    ]
    assert all(row.count("(") == 2 for row in rows[2:]), "two shares, each with an interval"


@pytest.mark.parametrize("options", [{"trial": 3}, {"own": ExternalParts(student=nn.Linear(1, 1))}])
def test_sweeps_and_objects_from_python_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="label_trials trains several models after a run"):
        distill_then_label(_compose(), **options)
