"""Data and weights that are not what they should be: one paragraph that names them, and
nothing written over.
"""

import gzip
import pickle
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.builders import results, teacher_folder
from tests.commands.call import DIVERGING, TINY, call, expect_refusal, paragraph, snapshot, succeed

SMALL = (
    *TINY,
    "student.name=resnet8",
    "controls=[]",
    "data=folder",
    "data.image_size=16",
    "data.num_workers=0",
    "out=run",
)


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims to be so large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 0)
        + b"IDAT"
    )


@pytest.fixture
def damaged_photos(photos: Path, tmp_path: Path) -> Path:
    """Photos, of which one is cut off and one is a decompression bomb."""
    folder = Path(shutil.copytree(photos, tmp_path / "spoiled"))
    whole = (folder / "class1" / "003.png").read_bytes()
    (folder / "class1" / "003.png").write_bytes(whole[: len(whole) // 2])
    (folder / "class2" / "bomb.png").write_bytes(png(60_000, 60_000))
    return folder


def test_a_folder_that_is_not_there_is_named_with_what_is_called_alike(
    photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    message = expect_refusal("data=folder", f"data.root={tmp_path / 'photo'}")
    assert f"There is no '{tmp_path / 'photo'}'. Did you mean 'photos'?" in message


def test_an_empty_folder_and_one_of_a_single_class_are_refused(
    photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds nothing. Expected: <root>/<class>/<image>" in expect_refusal(
        "data=folder", f"data.root={tmp_path / 'empty'}"
    )
    shutil.copytree(photos / "class0", tmp_path / "one" / "class0")
    assert "holds a single class, 'class0'. Expected: at least two" in expect_refusal(
        "data=folder", f"data.root={tmp_path / 'one'}"
    )


def test_images_that_cant_be_read_end_the_run_by_name_and_number(
    damaged_photos: Path, tmp_path: Path
) -> None:
    before = snapshot(tmp_path)
    result = call(*SMALL, f"data.root={damaged_photos}", f"stages={tmp_path / '.stages'}")
    message = paragraph(result.err)
    assert result.code == 2
    assert "2 of 37 images can't be read: class1/003.png, class2/bomb.png" in message
    assert "data.on_error=skip" in message
    assert snapshot(tmp_path) == before


def test_they_are_left_out_named_and_counted_where_that_is_asked_for(damaged_photos: Path) -> None:
    out = succeed(*SMALL, f"data.root={damaged_photos}", "data.on_error=skip")
    note, *_ = results(Path("run"))["notes"]
    assert note.startswith(
        "2 image(s) can't be read and are left out: class1/003.png, class2/bomb.png"
    )
    assert "2 image(s) can't be read and are left out" in " ".join(out.split())
    assert sum(results(Path("run"))["data"]["sizes"].values()) == 35


def test_fashion_mnist_that_is_missing_or_cut_off_says_how_to_get_it(tmp_path: Path) -> None:
    message = expect_refusal("data=fashion_mnist", f"data.root={tmp_path}")
    assert "`apt-get install dataset-fashion-mnist`" in message
    assert "train-images-idx3-ubyte.gz" in message
    assert "data.root=<that folder>" in message
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"\0" * 50)[:-9])
    assert "truncated or damaged" in expect_refusal("data=fashion_mnist", f"data.root={tmp_path}")


class Marks:
    """A pickle that would leave a mark when it is loaded as code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def with_teacher(checkpoint: Path, *words: str) -> str:
    return expect_refusal(*TINY, f"teacher.checkpoint={checkpoint}", *words)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = timm.create_model(
        "resnet8", num_classes=10, in_chans=1
    ).state_dict()
    return weights


def test_a_checkpoint_that_would_run_code_is_refused_and_the_code_does_not_run(
    tmp_path: Path,
) -> None:
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Marks(tmp_path / "mark")))
    torch.save({"state_dict": Marks(tmp_path / "mark")}, tmp_path / "zipped.pt")
    for name in ("plain.pt", "zipped.pt"):
        assert "a pickle that would run code, which is never done" in with_teacher(tmp_path / name)
    assert not (tmp_path / "mark").exists()
    with (tmp_path / "plain.pt").open("rb") as file:
        pickle.load(file)
    assert (tmp_path / "mark").exists()  # it would have


def test_a_checkpoint_that_is_cut_off_missing_or_no_checkpoint_is_refused(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    torch.save(state, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    assert "cut.pt' can't be read as weights" in with_teacher(tmp_path / "cut.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    assert "contains no state dict of tensors" in with_teacher(tmp_path / "empty.pt")
    assert "There is no checkpoint file" in with_teacher(tmp_path / "nowhere.pt")


def test_weights_of_another_model_are_refused_by_name(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    torch.save(state, tmp_path / "resnet8.pt")
    message = with_teacher(tmp_path / "resnet8.pt", "teacher.name=resnet14")
    assert "The weights from file resnet8.pt do not fit this model" in message
    assert "missing" in message
    message = expect_refusal(
        *TINY, f"student.checkpoint={tmp_path / 'resnet8.pt'}", "student.name=wrn_16_1"
    )
    assert "left over" in message


def test_a_model_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "is not a model folder for the teacher" in expect_refusal(
        *TINY, f"teacher.name=local-dir:{tmp_path}"
    )
    folder = teacher_folder(tmp_path / "teacher")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors' can't be read as weights" in expect_refusal(
        *TINY, f"teacher.name=local-dir:{folder}"
    )


def test_a_teacher_of_other_classes_is_not_given_a_random_head(
    photos: Path, tmp_path: Path
) -> None:
    folder = teacher_folder(tmp_path / "teacher")
    words = (
        *SMALL,
        f"data.root={photos}",
        f"teacher.name=local-dir:{folder}",
        f"stages={tmp_path / '.stages'}",
    )
    result = call(*words, "teacher.max_epochs=0")
    assert result.code == 2
    assert (
        "The teacher resnet8 has 10 classes, the data have 3 classes, and teacher.max_epochs=0"
        " forbids its training" in paragraph(result.err)
    )
    assert "random weights" in expect_refusal(*TINY, "teacher.max_epochs=0")


def test_a_teacher_of_other_classes_is_fine_tuned_and_that_is_recorded(
    photos: Path, tmp_path: Path
) -> None:
    folder = teacher_folder(tmp_path / "teacher")
    out = succeed(*SMALL, f"data.root={photos}", f"teacher.name=local-dir:{folder}")
    assert "Teacher: resnet8 fine-tuned for 1 epoch on" in out
    weights = results(Path("run"))["models"]["teacher"]["weights"]
    assert weights["missing"] == ["head.bias", "head.weight"] or weights["missing"] == [
        "fc.bias",
        "fc.weight",
    ]
    assert weights["unexpected"] == []


@pytest.mark.slow
def test_a_student_that_is_larger_than_its_teacher_is_allowed_and_that_is_said() -> None:
    assert "Note: the student is larger than its teacher" in succeed(
        *TINY, "student.name=resnet14", "out=run"
    )


def test_images_without_a_place_to_write_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "can't be created: " in expect_refusal(*TINY, f"out={tmp_path / 'file'}")
    assert "is a file, not a folder" in expect_refusal(*TINY, f"out={tmp_path / 'file' / 'run'}")


def test_a_run_that_fails_says_why_and_leaves_that_in_its_results() -> None:
    result = call(*TINY, *DIVERGING, "out=run")
    assert result.code == 1
    message = paragraph(result.err)
    assert message.startswith("The run failed: The loss term ")
    assert results(Path("run"))["status"] == "failed"
    assert results(Path("run"))["reason"] in message
