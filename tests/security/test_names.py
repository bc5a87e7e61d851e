"""Classes and files are called as somebody likes: nothing is written outside the run
and its stages, and what is told of them is whole.
"""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

import kd_app
from kd_app.config.csv_cells import restore_cell
from tests.builders import results
from tests.commands.call import TINY, succeed

SMALL = (
    *TINY,
    "student.name=resnet8",
    "data.image_size=16",
    "data.num_workers=0",
    "controls=[]",
    "out=run",
    "stages=stages",
)
LABELS = [
    "../../up",
    "/tmp/absolute",
    "a/b",
    "new\nline",
    'tab\tand,comma;"quote"',
    "=1+1",
    "..",
    "[red]x[/red]",
    "\u202eabc",
    "${oc.env:HOME}",
]
FOLDERS = [name for name in LABELS if "/" not in name and name != ".."] + [
    "-rf",
    "%s {0}",
    "~",
    "con fig.yaml",
]


def image(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 128 + shade, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def assert_names_are_whole(classes: list[str]) -> None:
    """The classes stand unchanged wherever a run tells of them."""
    run = kd_app.load_run("run")
    assert results(Path("run"))["data"]["classes"] == classes
    assert (
        json.loads(Path("run/student/config.json").read_text(encoding="utf-8"))["label_names"]
        == classes
    )
    with Path("run/split.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(results(Path("run"))["data"]["sizes"].values())
    assert set(run.predictions["file"]) <= {restore_cell(row["file"]) for row in rows}
    marks = ("=", "+", "-", "@", "\t", "\r")
    assert not any(cell.startswith(marks) for row in rows for cell in row.values())
    assert len(run.predictions) == results(Path("run"))["test"]["num_images"]
    assert run.load_student() is not None


def test_labels_of_a_table_lead_nowhere(tmp_path: Path) -> None:
    data = tmp_path / "data"
    rows = [
        (f"{number}-{copy}.png", label) for number, label in enumerate(LABELS) for copy in range(8)
    ]
    for number, (name, _) in enumerate(rows):
        image(data / name, number % 100)
    with (data / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    loggers = ("logger=[csv,tensorboard,wandb]", "logger.wandb.mode=offline")
    succeed(*SMALL, "data=csv", f"data.root={data}", *loggers)
    assert_names_are_whole(sorted(LABELS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "here"]
    assert sorted(path.name for path in Path().iterdir()) == ["run", "stages"]
    assert not Path("/tmp/absolute").exists()
