"""Python code for the model card that loads the student and classifies an image.

The code holds kd_app's own functions for the pixels, so that it needs no kd_app and
gives the logits of the evaluation.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Final

from kd_app.config.targets import FACTORY
from kd_app.data.preparation import prepare_image
from kd_app.models.save import CONVERTED, INT8, INT8_OF_BYTES, PROGRAM
from kd_app.reporting.inline_code import collect_source
from kd_app.reporting.results import Results

_TIMM: Final = """\
model = timm.create_model("local-dir:student", pretrained=True).eval()"""

_PROGRAM: Final = """\
# The layers of this model are narrower than those of the timm model of the same name, so
# torch.export loads the whole program.
model = torch.export.load("student/model.pt2").module()"""

_EXTERNAL: Final = """\
model = {name}({arguments}).eval(){remark}
model.load_state_dict(load_file("student/model.safetensors"))"""

_CODE: Final = """\
from __future__ import annotations

{imports}

# The pixels of a run: upright, transparency on white, 8 bits, resized, cropped.


{functions}


# "student" is the folder that holds this file
{model}
config = json.loads(Path("student/config.json").read_text())
settings = config["pretrained_cfg"]
channels, height, width = settings["input_size"]
input_spec = SimpleNamespace(
    channels=channels,
    height=height,
    width=width,
    crop=settings["crop_pct"],
    interpolation=settings["interpolation"],
)
with Image.open("image.png") as image:
    pixels = prepare_image(image, input_spec, SimpleNamespace(**config["decoding"]))
mean, std = (torch.tensor(settings[key]).view(-1, 1, 1) for key in ("mean", "std"))
with torch.inference_mode():
    logits = model(((torch.from_numpy(pixels) / 255 - mean) / std)[None])
probabilities = logits.softmax(dim=1)[0]
label = config["label_names"][probabilities.argmax()]
print(label, f"{{probabilities.max():.1%}}")"""

_IMPORTS: Final = (
    "import json",
    "from pathlib import Path",
    "from types import SimpleNamespace",
    "import torch",
)

_INT8: Final = f"""\
The student is quantized: the metrics below are those of `{INT8}`, its int8 program for
ExecuTorch (input: one normalized image; output: logits). The code above runs the float weights
from which the program was built. `torch.export.load("student/{CONVERTED}").module()` rounds as
the program does and takes any number of images. `kd-export` exports `{INT8_OF_BYTES}`, a program
that takes uint8 images and normalizes them."""


def write_usage(folder: Path, results: Results) -> list[str]:
    """The paragraphs of the section 'How to use it': code for the files in `folder`."""
    code = write_code(_PROGRAM) if (folder / PROGRAM).is_file() else write_snippet(results)
    parts = [f"```python\n{code}\n```"]
    if (folder / INT8).is_file():
        parts.append(_INT8)
    return parts


def write_snippet(results: Results) -> str:
    """Code that loads the student, with timm or with the user-provided factory, and
    classifies an image.
    """
    if not is_external(results):
        registrations = _list_registrations(results.models["student"].name)
        return write_code(_TIMM, "import timm", *registrations)
    config = results.config["student"]
    module, _, name = results.models["student"].name.partition(":")
    kwargs = config.get("kwargs") or {}
    arguments = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
    remark = "  # the arguments of the training" if config["_target_"] == FACTORY else ""
    model = _EXTERNAL.format(name=name, arguments=arguments, remark=remark)
    return write_code(
        model, "from safetensors.torch import load_file", f"from {module} import {name}"
    )


def write_code(model: str, *imports: str) -> str:
    """Code that prepares an image with kd_app's own functions, which need numpy and
    Pillow only, and classifies it with the `model`.
    """
    code = collect_source(prepare_image)
    lines = {*imports, *_IMPORTS, *code.imports}
    return _CODE.format(
        imports="\n".join(sorted(lines, key=_sort_import)),
        functions="\n\n\n".join(code.parts.values()),
        model=model,
    )


def _sort_import(line: str) -> tuple[bool, bool, str]:
    """Modules of Python first, and ``import`` before ``from``."""
    first, module = line.split()[:2]
    return module.partition(".")[0] not in sys.stdlib_module_names, first == "from", line


def is_external(results: Results) -> bool:
    """Whether the student is a user-provided module that timm does not know."""
    name = results.models["student"].name
    target = (results.config.get("student") or {}).get("_target_", FACTORY)
    return target != FACTORY or (":" in name and not name.startswith("hf-hub:"))


def _list_registrations(name: str) -> list[str]:
    """The import that registers a network of kd_app with timm, if it is one."""
    from timm.models import is_model, model_entrypoint

    import_module("kd_app.models.small")
    architecture = name.split(".", maxsplit=1)[0]
    if not is_model(architecture):
        return []
    if not model_entrypoint(architecture).__module__.startswith("kd_app."):
        return []
    return [f"import kd_app.models.small  # registers {architecture} with timm"]
