"""Python code for the model card that loads the student and classifies an image."""

from importlib import import_module
from pathlib import Path
from typing import Final

from kd_app.config.targets import FACTORY
from kd_app.models.save import CONVERTED, INT8, INT8_OF_BYTES, PROGRAM
from kd_app.reporting.results import Results

_TIMM: Final = """\
{imports}import timm
import torch
from PIL import Image

# "student" is the folder that holds this file
model = timm.create_model("local-dir:student", pretrained=True).eval()
settings = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**settings, is_training=False)
image = Image.open("image.png").convert("L" if settings["input_size"][0] == 1 else "RGB")
with torch.inference_mode():
    probabilities = model(transform(image)[None]).softmax(dim=1)[0]
label = model.pretrained_cfg["label_names"][probabilities.argmax()]
print(label, f"{{probabilities.max():.1%}}")"""

_PROGRAM: Final = """\
import json
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform

# "student" is the folder that holds this file. The layers of this model are narrower than
# those of the timm model of the same name, so torch.export loads the whole program.
model = torch.export.load("student/model.pt2").module()
config = json.loads(Path("student/config.json").read_text())
keys = ("input_size", "mean", "std", "crop_pct", "interpolation")
settings = {key: config["pretrained_cfg"][key] for key in keys}
transform = create_transform(**settings, is_training=False)
image = Image.open("image.png").convert("L" if settings["input_size"][0] == 1 else "RGB")
with torch.inference_mode():
    probabilities = model(transform(image)[None]).softmax(dim=1)[0]
label = config["label_names"][probabilities.argmax()]
print(label, f"{probabilities.max():.1%}")"""

_EXTERNAL: Final = """\
from safetensors.torch import load_file
from {module} import {name}

# "student" is the folder that holds this file; config.json holds the normalization of images
model = {name}({arguments}).eval(){remark}
model.load_state_dict(load_file("student/model.safetensors"))"""

_INT8: Final = f"""\
The student is quantized: the metrics below are those of `{INT8}`, its int8 program for
ExecuTorch (input: one normalized image; output: logits). The code above runs the float weights
from which the program was built. `torch.export.load("student/{CONVERTED}").module()` rounds as
the program does and takes any number of images. `kd-export` exports `{INT8_OF_BYTES}`, a program
that takes uint8 images and normalizes them."""


def write_usage(folder: Path, results: Results) -> list[str]:
    """The paragraphs of the section 'How to use it': code for the files in `folder`."""
    code = _PROGRAM if (folder / PROGRAM).is_file() else write_snippet(results)
    parts = [f"```python\n{code}\n```"]
    if (folder / INT8).is_file():
        parts.append(_INT8)
    return parts


def write_snippet(results: Results) -> str:
    """Code that loads the student: with timm, or with the user-provided factory."""
    if not is_external(results):
        return _TIMM.format(imports=_write_import(results.models["student"].name))
    config = results.config["student"]
    module, _, name = results.models["student"].name.partition(":")
    kwargs = config.get("kwargs") or {}
    arguments = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    remark = "  # the arguments of the training" if config["_target_"] == FACTORY else ""
    return _EXTERNAL.format(module=module, name=name, arguments=arguments, remark=remark)


def is_external(results: Results) -> bool:
    """Whether the student is a user-provided module that timm does not know."""
    name = results.models["student"].name
    return results.config["student"]["_target_"] != FACTORY or (
        ":" in name and not name.startswith("hf-hub:")
    )


def _write_import(name: str) -> str:
    """The import that registers a network of kd_app with timm; else ''."""
    from timm.models import is_model, model_entrypoint

    import_module("kd_app.models.small")
    architecture = name.split(".", maxsplit=1)[0]
    if not is_model(architecture):
        return ""
    if not model_entrypoint(architecture).__module__.startswith("kd_app."):
        return ""
    return f"import kd_app.models.small  # registers {architecture} with timm\n"
