"""The folder of the shipped student: timm loads the folder without kd_app."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import nn

from kd_app.config import InputSpec, RunError
from kd_app.files import list_regular_files
from kd_app.models.finite import describe_nonfinite, find_nonfinite
from kd_app.models.layer_widths import WIDTHS
from kd_app.models.model_config import CONFIG, read_model_config
from kd_app.models.simkd_student import REUSED, SimKDStudent
from kd_app.models.weights_metadata import write_with_metadata

WEIGHTS, PROGRAM = "model.safetensors", "model.pt2"
EMBEDDING = "embedding"
"""Entry of a model's config.json: the model was trained to output an embedding, not
logits.
"""
DECODING = "decoding"
"""Entry of a student's config.json: how the run decoded image files."""
CONVERTED, INT8, INT8_OF_BYTES = "quantized.pt2", "quantized.pte", "quantized_uint8.pte"
"""Files of a quantized student: the int8 graph as an exported program, the graph
lowered to the runtime that measures latency, and the graph lowered for kd-export, with
uint8 images as input and normalization inside.
"""


def save_model(
    model: nn.Module,
    folder: Path,
    *,
    pixels: InputSpec,
    classes: Sequence[str],
    license: str,
    widths: Mapping[str, Any] | None = None,
    label: str = "the model",
    entries: Mapping[str, Any] | None = None,
) -> None:
    """Write `model.safetensors` and `config.json` in timm's local-dir layout:
    architecture, arguments, normalization, size, class names, license.

    ``timm.create_model("local-dir:<folder>", pretrained=True)`` loads a timm model from
    this folder. Other modules get the same files, with the class name as architecture.
    A model with other layer `widths` than its architecture, or with a SimKD projector,
    also records the difference and gets an exported program,
    ``torch.export.load("model.pt2").module()``, which takes batches of any size and
    needs neither kd_app nor timm. entries: further entries of the config.json.

    Raises `RunError`, which names the model by its `label`, if a weight is NaN or
    infinite.
    """
    if wrong := find_nonfinite(model):
        raise RunError(
            f"The weights of {label} hold NaN or infinite values in {len(wrong)} tensor"
            f"{'s' if len(wrong) > 1 else ''}"
            f" ({describe_nonfinite(wrong)}), so nothing was saved. A training that diverges ends"
            " like that: lower optimizer.lr, set trainer.gradient_clip_val, or use"
            " trainer.precision=32-true."
        )
    folder.mkdir(parents=True, exist_ok=True)
    model = model.to(memory_format=torch.contiguous_format)
    # Copies, because safetensors refuses tensors that several layers share.
    save_file(
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        folder / WEIGHTS,
    )
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
            **(entries or {}),
        }
        if widths:
            extra[WIDTHS] = dict(widths)
        if isinstance(model, SimKDStudent):
            extra[REUSED] = model.projector.arguments
        if widths or isinstance(model, SimKDStudent):
            _export(model, folder / PROGRAM, pixels)
        save_config_for_hf(model, str(folder / CONFIG), model_config=extra, data_config=data)
        return
    config = {
        "architecture": type(model).__qualname__,
        "num_classes": len(classes),
        "label_names": list(classes),
        **(entries or {}),
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


def copy_labeled(
    source: Path,
    target: Path,
    *,
    license: str,
    teacher: str | None,
    decoding: Mapping[str, Any],
) -> None:
    """Copy the regular files of a model folder into the folder `target`, with `license`
    and `teacher` written into the weights and the config.json.

    Links are not followed: the folder may be somebody else's, and the copy is shipped.
    A finished stage holds no other files than those in its record.

    decoding: how the run decoded image files, for the config.json.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in list_regular_files(source)[0]:
        if name not in (WEIGHTS, CONFIG) and not name.startswith("."):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)
    write_with_metadata(source / WEIGHTS, target / WEIGHTS, license=license, teacher=teacher)
    config = read_model_config(source).raw
    config |= {
        "license": license,
        "teacher": teacher,
        DECODING: dict(decoding),
        "pretrained_cfg": {**config["pretrained_cfg"], "license": license},
    }
    (target / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
