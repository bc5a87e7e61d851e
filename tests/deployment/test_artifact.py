"""Exported files reproduce the model; invalid files are rejected before they run."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

from kd_app.config import RunError
from kd_app.data.normalize import normalize
from kd_app.data.pixel_store import ImageSelection, hold
from kd_app.data.views import CenterCropView, compute_image_keys
from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.export import export, measure_difference
from kd_app.deployment.formats.onnx import Onnx
from kd_app.digest import hash_file, seal
from kd_app.run_files import MANIFEST
from tests.deployment.conftest import CLASSES, DECODING, PIXELS
from tests.deployment.graphs import reuse_graph

ALONE = """
import sys
onnx = {"onnx", "google", "ml_dtypes", "typing_extensions"}  # the library and what it needs
allowed = {"kd_app", "numpy", "PIL", "onnxruntime", *onnx}
class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed and top not in sys.stdlib_module_names and top[0] != "_":
            raise ModuleNotFoundError(f"{name} is not to be had here", name=name)
sys.meta_path.insert(0, Only())
import numpy as np
from pathlib import Path
from PIL import Image
from kd_app.deployment.artifact import open_artifact
opened = open_artifact(Path(sys.argv[1]), threads=1)
images = np.load(sys.argv[2])
picture = opened.prepare_image(Image.open(sys.argv[3]))
np.savez(sys.argv[4], logits=opened.infer_logits(images), picture=picture)
assert not {"torch", "pydantic", "hydra"} & set(sys.modules)
"""


def test_an_onnx_file_needs_numpy_pillow_onnx_and_onnxruntime_only(
    onnx_file: Path, net: nn.Module, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 31, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    np.save(tmp_path / "images.npy", images)
    arguments = [
        str(onnx_file),
        str(tmp_path / "images.npy"),
        str(tmp_path / "photo.png"),
        str(tmp_path / "out.npz"),
    ]
    process = subprocess.run(
        [sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    outputs = np.load(tmp_path / "out.npz")
    with torch.no_grad():
        expected = net(normalize(torch.from_numpy(images), PIXELS, torch.contiguous_format)).numpy()
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
    store = hold(torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None])
    index = np.array([0])
    cropped = CenterCropView()(
        ImageSelection(store, index), compute_image_keys(0, index, -1), PIXELS
    )[0]
    np.testing.assert_array_equal(outputs["picture"], cropped.transpose(2, 0, 1))


def test_batches_of_any_size_give_the_same_logits(
    onnx_file: Path, images: NDArray[np.uint8]
) -> None:
    artifact = open_artifact(onnx_file)
    assert artifact.classes == CLASSES
    np.testing.assert_allclose(
        np.concatenate([artifact.infer_logits(images[:1]), artifact.infer_logits(images[1:])]),
        artifact.infer_logits(images),
        atol=1e-5,
    )


def test_a_gray_image_is_repeated_for_a_color_model(onnx_file: Path) -> None:
    picture = open_artifact(onnx_file).prepare_image(Image.new("L", (16, 16), 77))
    assert picture.shape == (3, 16, 16)
    assert (picture == 77).all()


def test_the_file_contains_no_paths_of_the_machine(onnx_file: Path) -> None:
    assert str(Path(torch.__file__).parent.parent).encode() not in onnx_file.read_bytes()
    assert b"stack_trace" not in onnx_file.read_bytes()


def test_a_file_that_does_not_reproduce_the_model_fails_the_run(
    onnx_file: Path, net: nn.Module, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    about: Any = {
        "stem": "model",
        "input_spec": PIXELS,
        "decoding": DECODING,
        "classes": CLASSES,
        "license": "mit",
        "calibration": [],
    }
    with (
        reuse_graph(onnx_file),
        pytest.raises(
            RunError,
            match=r"off by up to .* of the largest one, more than formats\.onnx\.tolerance=1e-12",
        ),
    ):
        export(net, Onnx(opset=18, tolerance=1e-12), tmp_path, images=images, **about)


def test_the_difference_to_another_model_is_measured(
    onnx_file: Path, net: nn.Module, images: NDArray[np.uint8]
) -> None:
    assert measure_difference(net, PIXELS, open_artifact(onnx_file), images) < 1e-5
    other = deepcopy(net)
    other.fc.reset_parameters()  # type: ignore[union-attr, operator]
    assert measure_difference(other, PIXELS, open_artifact(onnx_file), images) > 1e-2


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3, 16, 17), np.uint8),
        np.zeros((1, 3, 16, 16), np.float32),
        np.zeros((3, 16, 16), np.uint8),
    ],
)
def test_images_of_another_shape_or_type_are_rejected(onnx_file: Path, wrong: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 images of shape \(batch, 3, 16, 16\), got"):
        open_artifact(onnx_file).infer_logits(wrong)


def _manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(seal(manifest)), encoding="utf-8")


def _whole(file: Path) -> None:
    """Put the sha256 of this file into the manifest."""
    _manifest(
        file.parent, lambda manifest: manifest["files"][file.name].update(sha256=hash_file(file))
    )


def _no_manifest(file: Path) -> None:
    (file.parent / MANIFEST).unlink()


def _not_named(file: Path) -> None:
    _manifest(
        file.parent,
        lambda manifest: manifest["files"].update({"other.onnx": manifest["files"].pop(file.name)}),
    )


def _cut_manifest(file: Path) -> None:
    text = (file.parent / MANIFEST).read_text(encoding="utf-8")
    (file.parent / MANIFEST).write_text(text[: len(text) // 2], encoding="utf-8")


def _newer_manifest(file: Path) -> None:
    _manifest(file.parent, lambda manifest: manifest.update(schema_version=2))


def _no_input(file: Path) -> None:
    _manifest(file.parent, lambda manifest: manifest["files"][file.name].pop("input"))


def _unknown_format(file: Path) -> None:
    _manifest(file.parent, lambda manifest: manifest["files"][file.name].update(format="pickle"))


def _exchange(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"\0")


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _truncate_and_declare(file: Path) -> None:
    _truncate(file)
    _whole(file)


def _empty_and_declare(file: Path) -> None:
    file.write_bytes(b"")
    _whole(file)


def _change_manifest(file: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(file)
    change(model)
    file.write_bytes(model.SerializeToString())
    _whole(file)


def _other_opset(file: Path) -> None:
    _change_manifest(file, lambda model: setattr(model.opset_import[0], "version", 17))


def _future_opset(file: Path) -> None:
    _change_manifest(file, lambda model: setattr(model.opset_import[0], "version", 99))
    _manifest(file.parent, lambda manifest: manifest["files"][file.name].update(opset=99))


def _stranger(file: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = "com.stranger"
        model.opset_import.append(helper.make_opsetid("com.stranger", 1))

    _change_manifest(file, change)


def _stranger_within(file: Path) -> None:
    """Put the operator into a branch of an If."""

    def change(model: onnx.ModelProto) -> None:
        inner = helper.make_node("Evil", [], ["inner"], domain="com.stranger")
        branch = helper.make_graph(
            [inner], "branch", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1])]
        )
        model.graph.node.append(
            helper.make_node("If", ["images"], ["unused"], then_branch=branch, else_branch=branch)
        )

    _change_manifest(file, change)


def _elsewhere(file: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../secret")

    _change_manifest(file, change)


def _move_elsewhere(tensor: onnx.TensorProto) -> None:
    tensor.name, tensor.data_type = "w", TensorProto.FLOAT
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def _elsewhere_sparse(file: Path) -> None:
    _change_manifest(
        file, lambda model: _move_elsewhere(model.graph.sparse_initializer.add().values)
    )


def _elsewhere_in_an_attribute(file: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        attribute = model.graph.node[0].attribute.add(name="x")
        _move_elsewhere(attribute.sparse_tensors.add().values)

    _change_manifest(file, change)


def _elsewhere_in_a_training_graph(file: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        _move_elsewhere(model.training_info.add().initialization.initializer.add())

    _change_manifest(file, change)


def _function(file: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        _move_elsewhere(model.functions.add(name="f").node.add().attribute.add(name="x").t)

    _change_manifest(file, change)


def _absurd_size(file: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[:] = [2**40, 2**40]

    _change_manifest(file, change)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_no_manifest, r"There is no .*manifest\.json"),
        (_not_named, "is not in the manifest.json of its folder, which lists other.onnx"),
        (_cut_manifest, "can't be read"),
        (_newer_manifest, "has schema_version 2"),
        (_no_input, "does not describe the file completely"),
        (_unknown_format, "has the format 'pickle'"),
        (_exchange, "is not the file that was exported"),
        (_truncate, "is not the file that was exported"),
        (_truncate_and_declare, "truncated or no ONNX model"),
        (_empty_and_declare, "truncated or no ONNX model"),
        (
            _other_opset,
            "the operator set 17, but its manifest has 18|the operator set 17; expected",
        ),
        (_future_opset, "the operator set 99; expected one of"),
        (_stranger, "needs operators of 'com.stranger', which are not ONNX's own"),
        (_stranger_within, "needs operators of 'com.stranger', which are not ONNX's own"),
        (_elsewhere, "its weights are in other files"),
        (_elsewhere_sparse, "its weights are in other files"),
        (_elsewhere_in_an_attribute, "its weights are in other files"),
        (_elsewhere_in_a_training_graph, "its weights are in other files"),
        (_function, "local functions"),
        (_absurd_size, "are not 1099511627776x1099511627776 numbers"),
    ],
)
def test_an_invalid_file_is_rejected_before_it_runs(
    onnx_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    file = Path(shutil.copytree(onnx_file.parent, tmp_path / "export")) / onnx_file.name
    spoil(file)

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("the runtime received the file")

    monkeypatch.setattr(onnxruntime, "InferenceSession", run)
    with pytest.raises(ValueError, match=reason):
        open_artifact(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no file .*gone\.onnx"):
        open_artifact(tmp_path / "gone.onnx")


def test_a_missing_runtime_is_named(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "kd_app.deployment.runtimes.onnxruntime_file", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install onnxruntime \(or kd_app\[deploy\]\)"):
        open_artifact(onnx_file)


def test_openvino_reads_the_file_and_gives_the_same_logits(
    onnx_file: Path, images: NDArray[np.uint8]
) -> None:
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(
        str(onnx_file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    outputs = compiled([images])[0]
    np.testing.assert_allclose(outputs, open_artifact(onnx_file).infer_logits(images), atol=1e-4)
