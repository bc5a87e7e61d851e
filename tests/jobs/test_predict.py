"""kd-predict writes a table with the labels of images."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kd_app.deployment.artifact import open_artifact
from kd_app.jobs.predict import _add_batch, _LabeledImages
from tests.commands.call import call, expect_refusal, succeed


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes and modes, in a folder and one below it."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    (folder / "b").mkdir()
    for name, shape in (("2.png", (8, 8)), ("b/1.png", (20, 31, 3)), ("b/3.jpg", (9, 7))):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_every_image_has_its_most_probable_classes_sorted_by_file_name(
    both: tuple[Path, str], photos: Path
) -> None:
    model = both[0] / "model.onnx"
    output = succeed(
        f"model={model}",
        f"images={photos}",
        "out=labels.csv",
        "top=3",
        "batch_size=2",
        command="kd-predict",
    )
    assert "3 images labeled in 10 classes" in output
    table = pd.read_csv("labels.csv", dtype={"label": str, "label_2": str, "label_3": str})
    assert list(table) == [
        "file",
        "label",
        "probability",
        "label_2",
        "probability_2",
        "label_3",
        "probability_3",
    ]
    assert list(table["file"]) == ["2.png", "b/1.png", "b/3.jpg"]
    artifact = open_artifact(model)
    image = artifact.prepare_image(Image.open(photos / "2.png"))
    logits = artifact.infer_logits(image[None])[0].astype(float)
    order = np.argsort(-logits)
    assert [table[column][0] for column in ("label", "label_2", "label_3")] == [
        artifact.classes[each] for each in order[:3]
    ]
    assert table["probability"][0] == pytest.approx(
        1 / np.exp(logits - logits.max()).sum(), rel=1e-5
    )


def test_a_run_its_student_and_its_float_file_predict_the_same_in_csv_and_parquet(
    both: tuple[Path, str], photos: Path
) -> None:
    tables, run = [], both[0].parent / "run"
    for number, model in enumerate((run, run / "student", both[0] / "model.onnx")):
        out = f"labels{number}.{'csv' if number else 'parquet'}"
        succeed(f"model={model}", f"images={photos}", f"out={out}", command="kd-predict")
        tables.append(pd.read_csv(out) if number else pd.read_parquet(out))
    for table in tables[1:]:
        assert list(table["label"].astype(str)) == list(tables[0]["label"].astype(str))
        np.testing.assert_allclose(table["probability"], tables[0]["probability"], rtol=1e-4)


def test_unreadable_images_are_all_named_and_either_refused_or_left_out(
    both: tuple[Path, str], photos: Path
) -> None:
    overrides = (f"model={both[0] / 'model.onnx'}", "images=spoiled", "out=labels.csv")
    Path("spoiled").mkdir()
    for name in ("a.png", "b.png"):
        (Path("spoiled") / name).write_bytes(b"no image")
    (Path("spoiled") / "c.png").write_bytes((photos / "2.png").read_bytes())
    (Path("spoiled") / "d.HEIC").write_bytes(b"x")
    message = expect_refusal(*overrides, command="kd-predict")
    assert "2 of 3 images can't be read: a.png, b.png" in message
    text = succeed(*overrides, "on_error=skip", command="kd-predict")
    assert "left out: a.png, b.png" in text
    assert "1 file (1 .heic) is left out" in text
    left_out = pd.read_csv("labels.left_out.csv")
    assert list(left_out["file"]) == ["a.png", "b.png", "d.HEIC"]
    assert list(left_out["reason"])[2] == "no image"
    assert list(pd.read_csv("labels.csv")["file"]) == ["c.png"]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("model=nothing.onnx",), "There is no 'nothing.onnx'"),
        (("images=nowhere",), "images='nowhere' does not exist"),
        (("images=nowhere", "out=there.csv"), "images='nowhere' does not exist"),
        (("images=gaps.csv",), "1 of 2 rows have no path; the first is row 3"),
        (("out=labels.txt",), "Expected: a file that ends in .csv or .parquet"),
        (("top=11",), "the model knows 10 classes"),
        (("batch_size=0",), "batch_size=0 does not fit"),
    ],
)
def test_a_wrong_request_is_refused_with_the_reason(
    both: tuple[Path, str], photos: Path, overrides: tuple[str, ...], reason: str
) -> None:
    settings = {
        "model": f"model={both[0] / 'model.onnx'}",
        "images": f"images={photos}",
        "out": "out=labels.csv",
    }
    settings |= {override.partition("=")[0]: override for override in overrides}
    Path("there.csv").write_text("mine")
    Path("gaps.csv").write_text("path,label\n2.png,a\n,b\n")
    if "out=there.csv" in overrides:
        settings["overwrite"] = "overwrite=true"
    assert reason in expect_refusal(*settings.values(), command="kd-predict")


def test_an_existing_table_is_only_overwritten_on_request(
    both: tuple[Path, str], photos: Path
) -> None:
    overrides = (f"model={both[0] / 'model.onnx'}", f"images={photos}", "out=labels.csv")
    Path("labels.csv").write_text("mine")
    assert "exists and was not changed" in expect_refusal(*overrides, command="kd-predict")
    assert Path("labels.csv").read_text() == "mine"
    assert call(*overrides, "overwrite=true", command="kd-predict").code == 0
    assert Path("labels.csv").read_text().startswith("file,label,probability")


def test_only_the_top_classes_of_an_image_stay_in_memory() -> None:
    predictions = _LabeledImages()
    log_p = np.log(np.random.default_rng(0).dirichlet(np.ones(500), size=4))
    _add_batch(predictions, [0, 1, 2, 3], (log_p, None), top=2)
    (labels,), (probabilities,) = predictions.labels, predictions.probabilities
    assert labels.tolist() == np.argsort(-log_p, axis=1)[:, :2].tolist()
    for kept in (labels, probabilities):
        assert kept.base is None
        assert kept.nbytes == 4 * 2 * 8
