"""``training.json`` of a stage, which may have been changed."""

import json
from pathlib import Path
from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.training.record import describe_outcome, read_training

RECORD: dict[str, Any] = {
    "best": {"epoch": 3.0, "top1": 0.9, "nll": 0.5, "loss": 0.1},
    "epochs": 5,
    "max_epochs": 10,
    "images_per_second": None,
    "weights": {"source": "random", "sha256": "ab"},
    "files": {"model.safetensors": "ab"},
    "ranks": [],
}


def test_a_record_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps(RECORD), encoding="utf-8")
    assert read_training(tmp_path) == RECORD
    (tmp_path / "training.json").write_text(json.dumps({**RECORD, "best": {}}), encoding="utf-8")
    assert read_training(tmp_path)["best"] == {}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"epochs": -1}, "epochs"),
        ({"best": {"top1": 0.9}}, "best"),
        ({"files": None}, "files"),
        ({"weights": []}, "weights"),
        ({"images_per_second": "x"}, "images_per_second"),
    ],
)
def test_another_record_is_refused_by_its_key(
    changes: dict[str, Any], key: str, tmp_path: Path
) -> None:
    (tmp_path / "training.json").write_text(json.dumps({**RECORD, **changes}), encoding="utf-8")
    with pytest.raises(RequestError, match=f"training.json' can't be read: {key}"):
        read_training(tmp_path)


@pytest.mark.parametrize("content", ["[]", "null", "{", ""])
def test_what_is_no_record_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(content, encoding="utf-8")
    with pytest.raises(RequestError, match=r"training\.json' can't be read"):
        read_training(tmp_path)


def test_an_early_end_and_the_kind_of_the_weights_are_described() -> None:
    early, kind = describe_outcome({**RECORD, "best": {**RECORD["best"], "weights": "average"}})
    assert early.endswith("after epoch 5 of 10; the exported weights are those of epoch 4")
    assert kind.startswith("the averaged weights are exported: their validation top1 of 0.9000")
    assert describe_outcome({**RECORD, "epochs": 10}) == []
