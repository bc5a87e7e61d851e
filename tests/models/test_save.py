"""timm loads the shipped student without kd_app."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from kd_app.config import InputSpec, RunError
from kd_app.models.create import create, resolve_input
from kd_app.models.save import save_model
from tests.builders import DIGITS, GRAY
from tests.models.test_create import STATS, Own
from tests.models.test_spec import request

PIXELS = InputSpec(3, 48, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.85, "bicubic")
VIT = {"img_size": (48, 32), "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2}

LOADER = """
import json, sys
class NoKdApp:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "kd_app":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoKdApp())
import timm, torch
from timm.data import resolve_model_data_config
results = {}
for folder in sys.argv[1:]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    data = resolve_model_data_config(model)
    shape = (2, *data["input_size"])
    image = torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape)
    results[folder] = {
        "logits": model(image).tolist(),
        "data": data,
        "classes": list(model.pretrained_cfg["label_names"]),
    }
print(json.dumps(results))
assert not [name for name in sys.modules if name.startswith("kd_app")]
"""


def save_net(folder: Path, name: str, pixels: InputSpec, **kwargs: Any) -> nn.Module:
    model: nn.Module = timm.create_model(
        name, num_classes=10, in_chans=pixels.channels, **kwargs
    ).eval()
    save_model(model, folder, pixels=pixels, classes=DIGITS, license="cc-by-4.0")
    return model


def test_layers_that_share_their_weights_are_saved(tmp_path: Path) -> None:
    model: Any = save_net(tmp_path, "vit_tiny_patch16_224", PIXELS, **VIT)
    model.blocks[1] = model.blocks[0]
    save_model(model, tmp_path, pixels=PIXELS, classes=DIGITS, license="mit")
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("test_resnet", {}), ("test_efficientnet", {}), ("vit_tiny_patch16_224", VIT)],
)
def test_timm_alone_loads_its_models_and_answers_the_same(
    name: str, kwargs: dict[str, Any], tmp_path: Path
) -> None:
    """A slow test does it in a process without kd_app."""
    model = save_net(tmp_path, name, PIXELS, **kwargs)
    loaded: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(loaded)
    assert type(loaded).__module__.startswith("timm.")
    image = torch.linspace(-1, 1, 2 * 3 * 48 * 32).view(2, 3, 48, 32)
    torch.testing.assert_close(loaded(image), model(image))
    assert loaded.pretrained_cfg["label_names"] == list(DIGITS)
    assert (tuple(data["input_size"]), tuple(data["mean"]), tuple(data["std"])) == (
        (3, 48, 32),
        PIXELS.mean,
        PIXELS.std,
    )
    assert (data["crop_pct"], data["interpolation"]) == (PIXELS.crop, PIXELS.interpolation)


@pytest.mark.slow
def test_timms_models_load_where_there_is_no_kd_app_and_answer_the_same(tmp_path: Path) -> None:
    gray = InputSpec(1, 32, 32, (0.25,), (0.5,))
    models = {
        "cnn": (save_net(tmp_path / "cnn", "test_resnet", PIXELS), PIXELS),
        "gray": (save_net(tmp_path / "gray", "test_efficientnet", gray), gray),
        "vit": (save_net(tmp_path / "vit", "vit_tiny_patch16_224", PIXELS, **VIT), PIXELS),
    }
    command = [sys.executable, "-c", LOADER, *(str(tmp_path / name) for name in models)]
    process = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    results = json.loads(process.stdout)
    for name, (model, pixels) in models.items():
        result, size = results[str(tmp_path / name)], (pixels.channels, pixels.height, pixels.width)
        image = torch.linspace(-1, 1, 2 * size[0] * size[1] * size[2]).view(2, *size)
        torch.testing.assert_close(torch.tensor(result["logits"]), model(image))
        assert result["classes"] == list(DIGITS)
        data = result["data"]
        assert (tuple(data["input_size"]), tuple(data["mean"]), tuple(data["std"])) == (
            size,
            pixels.mean,
            pixels.std,
        )
        assert (data["crop_pct"], data["interpolation"]) == (pixels.crop, pixels.interpolation)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "test_resnet"])
def test_a_saved_model_loads_unchanged(tmp_path: Path, name: str) -> None:
    model = save_net(tmp_path / "student", name, GRAY)
    spec = request(checkpoint=tmp_path / "student")
    loaded = create(spec, resolve_input(spec, STATS), 10, seed=0)
    assert loaded.pixels == GRAY
    assert all(
        torch.equal(tensor, model.state_dict()[key])
        for key, tensor in loaded.model.state_dict().items()
    )
    assert (spec.origin.license, spec.origin.label_names) == ("cc-by-4.0", DIGITS)


def test_weights_are_written_in_plain_memory_order_and_alone(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=10).to(memory_format=torch.channels_last)
    save_model(model, tmp_path / "student", pixels=PIXELS, classes=DIGITS, license="none")
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    stored = load_file(tmp_path / "student" / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=10)
    model.state_dict()["fc.bias"][3] = torch.nan
    with pytest.raises(RunError, match=r"NaN or infinite values in 1 tensor \(fc\.bias: 1 val"):
        save_model(model, tmp_path / "student", pixels=PIXELS, classes=DIGITS, license="none")
    assert not (tmp_path / "student").exists()


def test_a_user_provided_module_ships_weights_and_class_name(tmp_path: Path) -> None:
    model = Own()
    save_model(model, tmp_path / "student", pixels=GRAY, classes=DIGITS, license="none")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["label_names"]) == (
        "Own",
        10,
        list(DIGITS),
    )
    assert config["pretrained_cfg"]["mean"] == [0.3]
    stored = load_file(tmp_path / "student" / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
