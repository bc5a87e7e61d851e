"""The files that a configuration reads, and their hashes."""

from pathlib import Path
from typing import Any

import pytest

from kd_app.config.compose import compose_config
from kd_app.run.input_files import find_paths, hash_inputs


def test_every_key_that_names_a_path_is_found(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    config = compose_config(
        "distill",
        [
            "data=folder",
            "data.root=photos",
            "data.unlabeled=more",
            "teacher.checkpoint=teacher.pth",
            "teacher.classes=map.csv",
            "student.name=local-dir:nets/small",
            f"+student.kwargs.file={tmp_path}/weights.bin",
            "license.policy=policy.yaml",
        ],
    )
    config["teacher"]["chain"] = ["resnet8", {"name": None, "checkpoint": "runs/a"}]
    assert {key: str(path) for key, path in find_paths(config, is_listed=True).items()} == {
        "teacher.checkpoint": "teacher.pth",
        "teacher.classes": "map.csv",
        "teacher.chain.1.checkpoint": "runs/a",
        "student.name": "nets/small",
        "student.kwargs.file": f"{tmp_path}/weights.bin",
        "license.policy": "policy.yaml",
    }
    data = {key for key in find_paths(config, is_listed=False) if key.startswith("data.")}
    assert data == {"data.root", "data.unlabeled"}


def test_a_word_is_a_path_only_in_a_part_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    node: dict[str, Any] = {"_target_": "my.Data", "name": "photos", "folder": "photos"}
    assert find_paths({"data": node}, is_listed=True) == {"data.folder": Path("photos")}
    ours = {**node, "_target_": "kd_app.data.module.ImageData"}
    assert find_paths({"data": ours, "out": "photos"}, is_listed=True) == {}


def test_of_a_run_and_of_a_model_folder_only_the_model_is_hashed(tmp_path: Path) -> None:
    for name in ("run/student/config.json", "run/student/model.safetensors", "run/results.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "run/student/README.md").touch()
    paths = {"a": tmp_path / "run", "b": tmp_path / "run/student", "c": tmp_path / "gone"}
    before = hash_inputs(paths)
    assert set(before["a"]) == {"student/config.json", "student/model.safetensors"}
    assert set(before["b"]) == {"config.json", "model.safetensors"}
    assert before["c"] == {}
    (tmp_path / "run/report.html").touch()
    assert hash_inputs(paths) == before
    (tmp_path / "run/student/model.safetensors").write_text("other")
    assert hash_inputs(paths)["a"] != before["a"]


def test_all_files_of_another_folder_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "own" / "deep").mkdir(parents=True)
    (tmp_path / "own" / "deep" / "table.bin").write_bytes(b"1")
    assert set(hash_inputs({"x": tmp_path / "own"})["x"]) == {"deep/table.bin"}
    assert set(hash_inputs({"x": tmp_path / "own/deep/table.bin"})["x"]) == {"table.bin"}
