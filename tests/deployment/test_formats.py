"""Formats other than float ONNX: each file approximates the model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from kd_app.config import RequestError, RunError
from kd_app.deployment import own_files
from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.export import export
from kd_app.deployment.formats.executorch import ExecuTorch, ExecuTorchInt8
from kd_app.deployment.formats.onnx_int8 import OnnxInt8, is_without_vnni
from kd_app.deployment.formats.program import Program
from kd_app.digest import hash_file
from kd_app.run_files import MANIFEST
from tests.deployment.conftest import CLASSES, DECODING, PIXELS
from tests.deployment.graphs import reuse_graph

ABOUT: Any = {
    "stem": "model",
    "input_spec": PIXELS,
    "decoding": DECODING,
    "classes": CLASSES,
    "license": "mit",
}


def int8(**changed: Any) -> OnnxInt8:
    return OnnxInt8(**{"opset": 18, "reduce_range": True, "calibration": "MinMax", **changed})


@pytest.fixture(scope="module")
def int8_file(
    net: nn.Module,
    onnx_file: Path,
    images: NDArray[np.uint8],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder, calibration = tmp_path_factory.mktemp("int8"), [images[:4], images[4:]]
    with reuse_graph(onnx_file):
        return export(net, int8(), folder, calibration=calibration, images=images, **ABOUT)


def test_an_int8_file_approximates_the_float_one_with_seven_bit_weights_per_channel(
    int8_file: Path, onnx_file: Path, images: NDArray[np.uint8]
) -> None:
    expected, logits = (
        open_artifact(onnx_file).infer_logits(images),
        open_artifact(int8_file).infer_logits(images),
    )
    assert 0 < np.abs(logits - expected).max() < 0.2 * np.abs(expected).max()
    record = json.loads((int8_file.parent / MANIFEST).read_text(encoding="utf-8"))["files"][
        "model_int8.onnx"
    ]
    assert record["reduce_range"] is True
    assert record["calibration_images"] == 8
    assert record["largest_difference"] > 0
    weights = [
        tensor
        for tensor in onnx.load(int8_file).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert len(weights) >= 7
    for tensor in weights:
        values = onnx.numpy_helper.to_array(tensor)
        assert (np.abs(values).reshape(len(values), -1).max(axis=1) == 64).all()


def test_pixels_are_normalized_in_float(int8_file: Path) -> None:
    graph = onnx.load(int8_file).graph
    producers = {name: node.op_type for node in graph.node for name in node.output}
    first = next(node for node in graph.node if node.op_type == "Mul")
    assert [producers[name] for name in first.input if name in producers] == ["Cast"]


def test_the_range_is_reduced_on_x86_without_vnni() -> None:
    assert is_without_vnni(frozenset({"sse2", "avx2"}))
    assert not is_without_vnni(frozenset({"sse2", "avx512_vnni"}))
    assert not is_without_vnni(frozenset({"sse2", "avx_vnni"}))
    assert not is_without_vnni(frozenset({"asimd", "asimddp"}))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (
            [np.zeros((2, 3, 16, 18), np.uint8)],
            (
                r"uint8 of shape \(2, 3, 16, 18\); the model takes uint8 images of shape \(batch,"
                r" 3, 16, 16\)"
            ),
        ),
        ([np.zeros((2, 3, 16, 16), np.float32)], "float32 of shape"),
        ([], "needs calibration images for the activation ranges"),
    ],
)
def test_unsuitable_calibration_images_are_rejected_before_writing(
    net: nn.Module,
    images: NDArray[np.uint8],
    tmp_path: Path,
    wrong: list[NDArray[Any]],
    reason: str,
) -> None:
    with pytest.raises(RequestError, match=reason):
        export(net, int8(), tmp_path, calibration=wrong, images=images, **ABOUT)
    assert not list(tmp_path.iterdir())


class Odd(nn.Module):
    """A model whose control flow depends on the pixels, which no exporter supports."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean(dim=(2, 3)) if image.sum() > 0 else image.amax(dim=(2, 3))


def test_a_torch_program_opens_only_in_the_process_that_wrote_it(
    images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(images[0].size, len(CLASSES)))
    file = export(net, Program(tolerance=1e-4), tmp_path, calibration=[], images=images, **ABOUT)
    loaded = torch.export.load(file).module()
    np.testing.assert_allclose(
        open_artifact(file).infer_logits(images[:3]),
        loaded(torch.from_numpy(images[:3])).detach().numpy(),
        atol=1e-5,
    )
    assert open_artifact(file).infer_logits(images[:1]).shape == (1, len(CLASSES))
    monkeypatch.setattr(own_files, "_WRITTEN", set())  # as in any other process
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("the file was loaded"))
    with pytest.raises(ValueError, match="is not opened: loading runs code from the file"):
        open_artifact(file)


def test_a_model_that_can_not_be_exported_fails_the_run(
    images: NDArray[np.uint8], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="The model can't be written as ONNX: "):
        export(Odd(), int8(), tmp_path, calibration=[images], images=images, **ABOUT)


@pytest.mark.slow
def test_executorch_reproduces_the_model_and_approximates_it_in_int8(
    net: nn.Module, onnx_file: Path, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Large batches are split; renamed and truncated files are rejected."""
    plain = export(
        net,
        ExecuTorch(max_batch=4, tolerance=1e-4),
        tmp_path,
        calibration=[],
        images=images,
        **ABOUT,
    )
    expected = open_artifact(onnx_file).infer_logits(images)
    for threads in (None, 1):
        np.testing.assert_allclose(
            open_artifact(plain, threads=threads).infer_logits(images[:7]), expected[:7], atol=1e-4
        )
    (tmp_path / "int8").mkdir()
    small = export(
        net,
        ExecuTorchInt8(max_batch=4),
        tmp_path / "int8",
        calibration=[images[:4], images[4:]],
        images=images,
        **ABOUT,
    )
    assert (
        0
        < np.abs(open_artifact(small).infer_logits(images) - expected).max()
        < 0.3 * np.abs(expected).max()
    )
    assert small.stat().st_size < plain.stat().st_size / 2
    plain.rename(tmp_path / "stranger.pte")
    with pytest.raises(ValueError, match=r"is not in the manifest\.json of its folder"):
        open_artifact(tmp_path / "stranger.pte")
    small.write_bytes(small.read_bytes()[:-64])
    with pytest.raises(ValueError, match="is not the file that was exported"):
        open_artifact(small)
    small.write_bytes(small.read_bytes()[:1000])  # with a matching manifest
    record = json.loads((small.parent / MANIFEST).read_text(encoding="utf-8"))
    record["files"][small.name]["sha256"] = hash_file(small)
    (small.parent / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match="can't be opened: ExecuTorch rejects the file"):
        open_artifact(small)
