"""Hand-written ONNX files with a manifest: quick to write, and broken on request."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kd_app.config import Decoding, InputSpec
from kd_app.deployment.formats.base import UInt8Model
from kd_app.deployment.manifest import VERSION, describe_decoding, describe_input
from kd_app.digest import hash_file
from kd_app.run_files import MANIFEST

OPSET = 18


def draw_weights(input_spec: InputSpec, classes: int) -> NDArray[np.float32]:
    """Weights ``[channels * height * width, classes]``."""
    features = input_spec.channels * input_spec.height * input_spec.width
    return np.random.default_rng(0).normal(0, 0.02, (features, classes)).astype(np.float32)


def write_linear(
    folder: Path,
    input_spec: InputSpec,
    classes: tuple[str, ...],
    *,
    weights: NDArray[np.float32] | None = None,
    decoding: Decoding | None = None,
    nodes: tuple[onnx.NodeProto, ...] = (),
    has_input: bool = True,
) -> Path:
    """Write ``model.onnx``, which computes ``(images / 255) @ weights``.

    nodes: applied to the logits afterwards, from 'product' to 'logits' · has_input:
    whether the images are an input, or a constant.
    """
    weights = draw_weights(input_spec, len(classes)) if weights is None else weights
    shape = (input_spec.channels, input_spec.height, input_spec.width)
    product = "product" if nodes else "logits"
    initializers = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array(255, np.float32), "scale"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", *shape])
    if not has_input:
        blank = np.zeros((1, *shape), np.uint8)
        initializers.append(numpy_helper.from_array(blank, "images"))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None])
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["float", "scale"], ["scaled"]),
            helper.make_node("Flatten", ["scaled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], [product]),
            *nodes,
        ],
        "linear",
        [images] if has_input else [],
        [logits],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    path = folder / "model.onnx"
    onnx.save(model, path)
    record: dict[str, Any] = {
        "format": "onnx",
        "input": describe_input(input_spec),
        "classes": list(classes),
        "license": "mit",
        "sha256": hash_file(path),
        "opset": OPSET,
    }
    if decoding is not None:
        record["decoding"] = describe_decoding(decoding)
    manifest = {"schema_version": VERSION, "files": {path.name: record}}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return path


@contextmanager
def reuse_graph(file: Path) -> Iterator[None]:
    """Write the graph of `file` as that of any model, which takes seconds otherwise."""
    graph = file.read_bytes()

    def write(model: UInt8Model, input_spec: InputSpec, path: Path, *, opset: int) -> None:
        path.write_bytes(graph)

    with (
        patch("kd_app.deployment.formats.onnx.write_onnx", write),
        patch("kd_app.deployment.formats.onnx_int8.write_onnx", write),
    ):
        yield
