"""NaN, infinite and missing logits are errors that name the file and the images."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from kd_app.config import InputSpec, RequestError
from kd_app.config.compose import compose_config
from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.cascade import ModelCascade
from kd_app.deployment.logits import LogitsBuffer, NonFiniteLogitsError, check_finite
from kd_app.jobs.predict import predict
from tests.deployment.graphs import draw_weights, write_linear

SPEC = InputSpec(1, 4, 4, (0.0,), (1.0,))
TEN = tuple("abcdefghij")
ROOT = helper.make_node("Sqrt", ["product"], ["logits"])
NEGATIVE = np.full((16, 2), -1, np.float32)
"""With `ROOT`, a black image has the logits 0, and every other image NaN."""


def set_first(value: float) -> np.ndarray:
    weights = draw_weights(SPEC, 10)
    weights[3, 4] = value
    return weights


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weights": set_first(np.nan)}, r"weights hold NaN or infinite values \('weights'\)"),
        ({"weights": set_first(np.inf)}, r"weights hold NaN or infinite values \('weights'\)"),
        (
            {
                "nodes": (
                    helper.make_node(
                        "Constant",
                        [],
                        ["nan"],
                        value=helper.make_tensor("nan", TensorProto.FLOAT, [1], [float("nan")]),
                    ),
                    helper.make_node("Max", ["product", "nan"], ["logits"]),
                )
            },
            r"weights hold NaN or infinite values \('nan'\)",
        ),
        (
            {"weights": draw_weights(SPEC, 7)},
            r"returns an array of shape .*7\); expected a row of 10",
        ),
        ({"has_input": False}, "it takes nothing; expected uint8 images"),
    ],
)
def test_a_file_that_can_not_classify_is_refused_when_it_is_opened(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = write_linear(tmp_path, SPEC, TEN, **changes)
    with pytest.raises(ValueError, match=rf"model\.onnx' can't be opened: .*{reason}"):
        open_artifact(path)


def test_negative_infinity_is_allowed_as_in_the_mask_of_an_attention(tmp_path: Path) -> None:
    mask = np.array([0, -np.inf], np.float32)
    nodes = (
        helper.make_node(
            "Constant", [], ["mask"], value=onnx.numpy_helper.from_array(mask, "mask")
        ),
        helper.make_node("Add", ["product", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["logits"]),
    )
    artifact = open_artifact(write_linear(tmp_path, SPEC, TEN[:2], nodes=nodes))
    assert artifact.infer_logits(np.zeros((1, 1, 4, 4), np.uint8)).tolist() == [[1, 0]]


def test_a_node_that_fails_names_the_file(tmp_path: Path) -> None:
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, 10])
    nodes = (
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("Reshape", ["product", "shape"], ["logits"]),
    )
    artifact = open_artifact(write_linear(tmp_path, SPEC, TEN, nodes=nodes))
    with pytest.raises(RequestError, match=r"model\.onnx' can't be run on 2 images: .*Reshape"):
        artifact.infer_logits(np.zeros((2, 1, 4, 4), np.uint8))


def test_logits_that_are_not_finite_name_the_file_and_the_images(tmp_path: Path) -> None:
    path = write_linear(tmp_path, SPEC, TEN[:2], weights=NEGATIVE, nodes=(ROOT,))
    artifact = open_artifact(path)
    images = np.zeros((4, 1, 4, 4), np.uint8)
    assert (artifact.infer_logits(images) == 0).all()
    images[[1, 3]] = 9
    with pytest.raises(NonFiniteLogitsError, match="NaN or infinite logits for 2 of 4") as raised:
        artifact.infer_logits(images)
    assert raised.value.images == [1, 3]
    sound = write_linear(tmp_path, SPEC, TEN[:2], weights=np.zeros((16, 2), np.float32))
    cascade = ModelCascade(
        [open_artifact(sound), artifact], (0.6,), "maximum", temperatures=(1.0, 1.0)
    )
    with pytest.raises(NonFiniteLogitsError) as raised:
        cascade.infer(images)
    assert raised.value.images == [1, 3]


def test_kd_predict_names_the_image_and_writes_nothing(tmp_path: Path) -> None:
    path = write_linear(tmp_path, SPEC, TEN[:2], weights=NEGATIVE, nodes=(ROOT,))
    (tmp_path / "photos").mkdir()
    for name, level in (("a.png", 0), ("b.png", 0), ("c.png", 7)):
        Image.new("L", (4, 4), level).save(tmp_path / "photos" / name)
    out = tmp_path / "labels.csv"
    settings = [f"model={path}", f"images={tmp_path / 'photos'}", f"out={out}", "batch_size=2"]
    with pytest.raises(
        RequestError, match=r"model\.onnx' returned NaN .* 1 of 1 images \('c.png'\)"
    ):
        predict(compose_config("predict", settings))
    assert not out.exists()


def test_many_logits_are_checked_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_app.metrics.blocks.VALUES", 25)
    logits = np.zeros((9, 10))
    check_finite(logits, "model")
    logits[[3, 8], 5] = np.nan, np.inf
    with pytest.raises(NonFiniteLogitsError) as raised:
        check_finite(logits, "model", range(100, 109))
    assert raised.value.images == [103, 108]


def test_logits_in_a_file_are_mapped_and_the_file_is_removed(tmp_path: Path) -> None:
    blocks = [np.full((2, 3), number, np.float32) for number in range(4)]
    buffers = LogitsBuffer(tmp_path), LogitsBuffer(None)
    for buffer in buffers:
        for block in blocks:
            buffer.append(block)
    mapped, held = (buffer.read() for buffer in buffers)
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, held)
    assert list(tmp_path.iterdir()) == []
