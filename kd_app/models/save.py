"""What ships: a folder that timm loads without kd_app."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from kd_app.config import InputSpec
from kd_app.models.layer_widths import WIDTHS
from kd_app.models.simkd_student import REUSED, Reused
from kd_app.models.weights_metadata import write_with_metadata

WEIGHTS, CONFIG, PROGRAM = "model.safetensors", "config.json", "model.pt2"
CONVERTED, INT8, INT8_OF_BYTES = "quantized.pt2", "quantized.pte", "quantized_uint8.pte"
"""Of a quantized student: the int8 graph as an exported program, the same lowered to
the runtime that it is measured in, and lowered to what kd-export ships: batches of
uint8 images in, which it normalizes itself.
"""


def save_model(
    model: nn.Module,
    folder: Path,
    *,
    pixels: InputSpec,
    classes: Sequence[str],
    license: str,
    widths: Mapping[str, Any] | None = None,
) -> None:
    """Write `model.safetensors` and `config.json` in timm's local-dir layout:
    architecture, arguments, normalization, size, class names, license.

    ``timm.create_model("local-dir:<folder>", pretrained=True)`` loads a timm model from
    there; a module that is not timm's gets the same files, with its class as the
    architecture. A model whose layers have other `widths` than its architecture, or
    whose classifier stands behind a projector, records that, and has an exported
    program beside it, ``torch.export.load("model.pt2").module()``, that takes batches
    of any size and needs neither kd_app nor timm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model.to(memory_format=torch.contiguous_format)
    data = {
        "input_size": (pixels.channels, pixels.height, pixels.width),
        "mean": pixels.mean,
        "std": pixels.std,
        "crop_pct": pixels.crop,
        "interpolation": pixels.interpolation,
    }
    if hasattr(model, "pretrained_cfg"):
        extra: dict[str, Any] = {
            "label_names": list(classes),
            "pretrained_cfg": {"license": license},
        }
        if widths:
            extra[WIDTHS] = dict(widths)
        if isinstance(model, Reused):
            extra[REUSED] = model.projector.made_of
        if widths or isinstance(model, Reused):
            _export(model, folder / PROGRAM, pixels)
        save_for_hf(
            model, str(folder), model_config=extra, data_config=data, safe_serialization=True
        )
        return
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()},
        folder / WEIGHTS,
    )
    config = {
        "architecture": type(model).__qualname__,
        "num_classes": len(classes),
        "label_names": list(classes),
    }
    (folder / CONFIG).write_text(
        json.dumps({**config, "pretrained_cfg": {**data, "license": license}}, indent=2),
        encoding="utf-8",
    )


def _export(model: nn.Module, path: Path, pixels: InputSpec) -> None:
    example = torch.zeros(2, pixels.channels, pixels.height, pixels.width)
    program = torch.export.export(
        model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, path)


def copy_labeled(source: Path, target: Path, *, license: str, teacher: str | None) -> None:
    """A copy of a model's folder in the new folder `target` whose weights and
    config.json say under which `license` it is, and who taught it.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(WEIGHTS, CONFIG))
    write_with_metadata(source / WEIGHTS, target / WEIGHTS, license=license, teacher=teacher)
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    config |= {
        "license": license,
        "teacher": teacher,
        "pretrained_cfg": {**config["pretrained_cfg"], "license": license},
    }
    (target / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
