"""Weights, checkpoints and arrays that are pickles: refused, and nothing of them is
run.
"""

import json
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytest
import torch

import kd_app
from kd_app.config import RequestError
from kd_app.digest import hash_file, hash_value
from kd_app.models.checkpoint import read_checkpoint
from kd_app.stages import hash_content
from tests.builders import accept_changes, image_folder, stage, teacher_folder
from tests.commands.call import TINY, call, expect_refusal, succeed
from tests.security.payloads import PICKLES, Pickled, Touch, change_record, write_zip


@pytest.mark.parametrize("pickled", PICKLES)
def test_the_payloads_leave_their_mark_where_somebody_unpickles_them(
    pickled: Pickled, tmp_path: Path
) -> None:
    with suppress(UnpicklingError, RuntimeError, TypeError):
        torch.load(pickled(tmp_path / "file", tmp_path / "left"), weights_only=False)
    assert (tmp_path / "left").exists()


@pytest.mark.parametrize("pickled", PICKLES)
@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.ckpt", "x.bin", "x.safetensors", "x"])
def test_weights_with_a_payload_are_not_read(
    name: str, pickled: Pickled, tmp_path: Path, mark: Path
) -> None:
    with pytest.raises(RequestError, match="can't be read as weights"):
        read_checkpoint(pickled(tmp_path / name, mark))


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_checkpoint_with_a_payload_is_refused(role: str, tmp_path: Path, mark: Path) -> None:
    assert "can't be read as weights" in expect_refusal(
        *TINY, f"{role}.checkpoint={write_zip(tmp_path / 'x.pth', mark)}"
    )


def test_a_model_folder_whose_safetensors_are_a_pickle_is_refused(
    tmp_path: Path, mark: Path
) -> None:
    folder = teacher_folder(tmp_path / "teacher")
    write_zip(folder / "model.safetensors", mark)
    for output in (
        f"teacher.name=local-dir:{folder}",
        f"teacher.checkpoint={folder}",
        f"student.checkpoint={folder}",
    ):
        assert "can't be read as weights" in expect_refusal(*TINY, output)


def test_a_pickle_in_the_place_of_the_safetensors_is_not_taken(
    run: Path, tmp_path: Path, mark: Path
) -> None:
    folder = teacher_folder(tmp_path / "teacher")
    for each in (folder, run / "student"):
        (each / "model.safetensors").unlink()
        for name in ("pytorch_model.bin", "model.pth", "open_clip_pytorch_model.bin"):
            write_zip(each / name, mark)
    accept_changes(run)
    assert "can't be read as weights" in expect_refusal(*TINY, f"teacher.name=local-dir:{folder}")
    assert "can't be read as weights" in expect_refusal(
        "debug=fdr", f"teacher.checkpoint={run}", "out=next", "logger=[csv]"
    )
    assert "can't be read as weights" in expect_refusal(
        f"run={run}", "out=again", command="kd-evaluate"
    )
    with pytest.raises(RequestError, match="can't be loaded"):
        kd_app.load_run(run).load_student()


def test_a_teacher_that_a_run_refers_to_is_no_pickle(run: Path, tmp_path: Path, mark: Path) -> None:
    folder = teacher_folder(tmp_path / "teacher")
    weights = write_zip(folder / "model.safetensors", mark)
    change_record(run / "teacher" / "reference.json", "path", str(folder))
    change_record(run / "teacher" / "reference.json", "sha256", hash_file(weights))
    with pytest.raises(RequestError, match="can't be loaded"):
        kd_app.load_run(run).load_teacher()


def header(content: Any, size: int | None = None) -> bytes:
    """A .safetensors of a header alone, of the `size` that it claims."""
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


@pytest.mark.parametrize(
    "content",
    [
        header({}, 2**63),
        header({}, 2**40),
        header({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        header({"w": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 4]}}) + b"1234",
        header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}) + b"1234",
        header({"w": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}}) + b"1234",
        header([1, 2]),
        b"",
    ],
)
def test_absurd_safetensors_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(RequestError, match="can't be read as weights"):
        read_checkpoint(tmp_path / "x.safetensors")


def make_unfinished(folder: Path) -> Path:
    """A stage as a killed training left it."""
    (folder / "training.json").unlink()
    return folder.rename(folder.with_name(f"{folder.name}.partial"))


def test_a_checkpoint_of_a_training_to_go_on_with_is_no_pickle(
    sample_run: Path, tmp_path: Path, mark: Path
) -> None:
    stages = Path(shutil.copytree(sample_run / "stages", tmp_path / "stages"))
    write_zip(
        make_unfinished(stages / stage(sample_run / "run", "student").name) / "last.ckpt", mark
    )
    assert "last.ckpt is damaged or missing; the training restarts from the beginning" in " ".join(
        succeed(*TINY, "out=run", f"stages={stages}").split()
    )


def forge(folder: Path) -> None:
    """Let the record of a stage name what is there now."""
    record = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    del record["sha256"]
    names = [path.name for path in folder.iterdir() if path.name != "stage.json"]
    record["files"] = {name: hash_content(folder / name) for name in names}
    record["sha256"] = hash_value(record)
    (folder / "stage.json").write_text(json.dumps(record), encoding="utf-8")


def test_arrays_of_a_stage_are_no_pickles(tmp_path: Path, mark: Path) -> None:
    photos = image_folder(tmp_path / "photos", images=12)
    words = (
        *TINY,
        "student.name=resnet8",
        "controls=[]",
        "data=folder",
        f"data.root={photos}",
        "data.image_size=16",
    )
    succeed(*words, "out=first")
    for name in ("sizes.npy", "shapes.npy"):
        folder = stage(Path("first"), "data")
        np.save(folder / name, np.array([Touch(mark)], dtype=object), allow_pickle=True)
        forge(folder)
        assert call(*words, "out=second").code == 2


def test_answers_of_a_stage_are_no_pickles(sample_run: Path, tmp_path: Path, mark: Path) -> None:
    stages = Path(shutil.copytree(sample_run / "stages", tmp_path / "stages"))
    folder = stages / stage(sample_run / "run", "answers-student-test").name
    write_zip(folder / "answers.safetensors", mark)
    forge(folder)
    assert call(*TINY, "out=run", f"stages={stages}").code == 2
