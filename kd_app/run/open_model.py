"""What a path means where a model is asked for: an artifact, a run, a run's teacher, or
a model's folder.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import timm
import torch

from kd_app.config import InputSpec, RequestError, suggest_closest
from kd_app.config.errors import take_first_line
from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.cascade import Cascade, ImageStage
from kd_app.deployment.torch_model import TorchModel
from kd_app.models.create import create, resolve_input
from kd_app.models.save import CONFIG, WEIGHTS
from kd_app.models.spec import ImageStats, ModelSpec
from kd_app.reporting.teacher_reference import read_teacher_reference
from kd_app.run.workspace import decode_size
from kd_app.run_files import REFERENCE, RESULTS, STUDENT

_EXPECTED = (
    "Expected: a file that kd-export wrote, with its manifest.json beside it; a run's folder (its"
    " student), the teacher folder in it, a model's folder in timm's local-dir layout"
)
_NOTHING_SEEN = ImageStats(3, 1, (0.0,), (1.0,))
"""A model that lies in a folder says itself what it expects."""


class Model(ImageStage, Protocol):
    """Answers in `classes`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the logits."""

    @property
    def pixels(self) -> InputSpec:
        """What it expects."""


@dataclass(frozen=True)
class OpenModel:
    """A model ready to answer. file: what its sha256 is of · run: the folder of the run
    that it belongs to, if it lies in one's.
    """

    name: str
    model: Model
    file: Path
    run: Path | None


def open_model(said: str, *, threads: int | None) -> OpenModel:
    """The model that `said` names; `threads` is for an artifact's runtime. Raises
    `RequestError` in a paragraph for what is no model.
    """
    path = Path(said)
    if not path.exists():
        near = (
            suggest_closest(path.name, [each.name for each in path.parent.iterdir()])
            if path.parent.is_dir()
            else ""
        )
        raise RequestError(f"There is no {said!r}. {near}{_EXPECTED}.")
    if path.is_dir():
        folder, run = _resolve_folder(path)
        return OpenModel(said, _from_folder(folder, said), folder / WEIGHTS, run)
    run = path.parent.parent if (path.parent.parent / RESULTS).is_file() else None
    return OpenModel(said, open_file(path, threads=threads), path, run)


def open_file(path: Path, *, threads: int | None) -> Model:
    """The model in a file: an artifact, or the weights in a model's folder. Raises
    `RequestError`.
    """
    if path.name == WEIGHTS:
        return _from_folder(path.parent, str(path))
    if path.suffix == ".json":
        raise RequestError(f"{str(path)!r} is no model's file. {_EXPECTED}.")
    try:
        return open_artifact(path, threads=threads)
    except ValueError as error:
        raise RequestError(str(error)) from None


@dataclass(frozen=True)
class OpenedCascade:
    """A cascade, its stages as models, and the files that they came from."""

    cascade: Cascade
    models: tuple[Model, ...]
    files: tuple[Path, ...]


def open_cascade(path: Path, *, threads: int | None) -> OpenedCascade:
    """The cascade of a cascade.json. Raises `RequestError`: it is none, a stage is gone
    or another, the stages' classes differ.
    """
    found: dict[Path, Model] = {}

    def open_stage(file: Path) -> Model:
        found[file] = open_file(file, threads=threads)
        return found[file]

    try:
        cascade = Cascade.load(path, open_stage)
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(str(error)) from None
    check_same_classes([(file.name, model.classes) for file, model in found.items()])
    return OpenedCascade(cascade, tuple(found.values()), tuple(found))


def check_same_classes(named: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    """Raises `RequestError` where what is named by its first entry knows other classes
    than the first, or has them in another order.
    """
    (first, reference), *others = named
    for name, classes in others:
        if classes == reference:
            continue
        if sorted(classes) == sorted(reference):
            at, was, now = next(
                (k, a, b) for k, (a, b) in enumerate(zip(reference, classes, strict=True)) if a != b
            )
            raise RequestError(
                f"{first} and {name} know the same {len(classes)} classes in another order: class"
                f" {at} is {was!r} in the one and {now!r} in the other. Expected: one order in all"
                " stages. Export them from runs on the same data."
            )
        strange = [each for each in classes if each not in reference] or [
            each for each in reference if each not in classes
        ]
        raise RequestError(
            f"{first} knows {len(reference)} classes, {name} {len(classes)}; they differ in"
            f" {', '.join(map(repr, strange[:5]))}. Expected: the same classes by the same names."
            " Name models that were trained for the same classes."
        )


def find_channels_and_size(models: Sequence[Model]) -> tuple[int, int]:
    """How files are opened for these models: with how many channels, and the shorter
    side up to which they are kept, as a run does it.
    """
    return max(each.pixels.channels for each in models), decode_size(
        [max(each.pixels.height, each.pixels.width) for each in models]
    )


def _resolve_folder(path: Path) -> tuple[Path, Path | None]:
    """The folder of the model that is meant, and its run's."""
    if (path / RESULTS).is_file():
        return path / STUDENT, path
    if (path / REFERENCE).is_file():
        return _resolve_teacher(path), path.parent
    if not (path / CONFIG).is_file():
        raise RequestError(
            f"The folder {str(path)!r} holds neither {RESULTS} nor {CONFIG}. {_EXPECTED}."
        )
    return path, path.parent if (path.parent / RESULTS).is_file() else None


def _resolve_teacher(path: Path) -> Path:
    """Where a run's teacher lies."""
    reference = read_teacher_reference(path)
    found = reference.folder
    if found is None:
        raise RequestError(
            f"The teacher of {str(path.parent)!r}, {reference.name}, came from a hub and was used as it is:"
            " no folder holds it. Put it in one, in timm's local-dir layout, and name that, or"
            " export it and name the file."
        )
    if not (found / CONFIG).is_file():
        raise RequestError(
            f"The teacher of {str(path.parent)!r} is not in {str(found)!r} (any more). Expected a"
            " model's folder there. Say the run's kd-distill command again to make it, or name"
            " another model."
        )
    return found


def _from_folder(folder: Path, said: str) -> TorchModel:
    """The model in timm's local-dir layout."""
    try:
        architecture = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["architecture"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{said!r} has no model in {str(folder)!r} ({type(error).__name__}:"
            f" {take_first_line(error)}). {_EXPECTED}."
        ) from None
    if not timm.is_model(architecture):
        raise RequestError(
            f"The model of {said!r} is a {architecture}, which timm does not know: it came from a"
            " factory of somebody's own, which is not run here. Export it with kd-export, and name"
            " the file."
        )
    request = ModelSpec(
        role="model",
        name=None,
        pretrained="auto",
        checkpoint=folder,
        kwargs={},
        image_size=None,
        factory=None,
    )
    origin = request.origin
    assert origin.num_classes is not None
    pixels = resolve_input(request, _NOTHING_SEEN)
    created = create(request, pixels, origin.num_classes, seed=0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TorchModel(
        created.model,
        origin.label_names or tuple(map(str, range(origin.num_classes))),
        pixels,
        device,
    )
