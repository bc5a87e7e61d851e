"""Open the model at a path: an artifact, a run's student, a run's teacher, or a model
folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import timm
import torch

from kd_app.config import Decoding, InputSpec, RequestError, choose_decoding, suggest_closest
from kd_app.config.links import check_links
from kd_app.deployment.artifact import open_foreign
from kd_app.deployment.cascade import ImageStage, ModelCascade
from kd_app.deployment.torch_model import TorchModel
from kd_app.models.class_names import describe_classes
from kd_app.models.create import create, resolve_input
from kd_app.models.model_config import CONFIG, read_model_config
from kd_app.models.normalized import NormalizedEmbedding
from kd_app.models.save import EMBEDDING, WEIGHTS
from kd_app.models.spec import ImageStats, ModelSpec
from kd_app.reporting.teacher_reference import read_teacher_reference
from kd_app.run.recorded_pixels import read_decoding
from kd_app.run_files import READ, REFERENCE, RESULTS, STUDENT

_EXPECTED = (
    "Expected: a file that kd-export wrote, next to its manifest.json; a run folder (its student);"
    " the teacher folder of a run; or a model folder in timm's local-dir layout"
)
ARTIFACTS: Final = (".onnx", ".pte", ".pt2")
_BARE_WEIGHTS = (
    *(".safetensors", ".pth", ".pth.tar", ".pt", ".ckpt", ".bin", ".index.json", ".npz", ".pkl"),
)
CPU: Final = torch.device("cpu")
_UNUSED_STATS = ImageStats(3, 1, (0.0,), (1.0,))
"""Image statistics for a model folder, whose config.json already contains the input."""


class ImageClassifier(ImageStage, Protocol):
    """A model that returns logits for images, in torch or in another runtime."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""

    @property
    def pixels(self) -> InputSpec:
        """The input of the model."""

    @property
    def decoding(self) -> Decoding:
        """How the run that trained the model decoded image files."""


@dataclass(frozen=True)
class OpenModel:
    """A model ready for inference.

    file: the file that identifies the model by its sha256. run: the folder of the run
    that contains the model, if any.
    """

    name: str
    model: ImageClassifier
    file: Path
    run: Path | None


def open_model(name: str, *, threads: int | None, device: torch.device = CPU) -> OpenModel:
    """Open the model at the path `name`. threads: number of threads of an artifact's
    runtime. device: of a model in torch. Raises `RequestError` if the path is no
    model.
    """
    path = Path(name)
    if not path.exists():
        hint = ""
        if path.parent.is_dir():
            hint = suggest_closest(path.name, [each.name for each in path.parent.iterdir()])
        raise RequestError(f"There is no {name!r}. {hint}{_EXPECTED}.")
    if path.is_dir():
        folder, run = _resolve_folder(path)
        return OpenModel(name, _load_folder(folder, name, run, device), folder / WEIGHTS, run)
    run = path.parent.parent if (path.parent.parent / RESULTS).is_file() else None
    return OpenModel(name, open_file(path, threads=threads, device=device), path, run)


def open_file(path: Path, *, threads: int | None, device: torch.device = CPU) -> ImageClassifier:
    """Open an artifact, or the weights of a model folder. Raises `RequestError`."""
    if path.name == WEIGHTS:
        return _load_folder(path.parent, str(path), None, device)
    if path.suffix == ".json":
        raise RequestError(f"{str(path)!r} is not a model file. {_EXPECTED}.")
    if path.name.endswith(_BARE_WEIGHTS):
        raise RequestError(
            f"{str(path)!r} contains weights, but not the model that they belong to: its"
            " architecture, input and classes. Put the weights into a folder in timm's local-dir"
            " layout and name the folder: model = timm.create_model(<name>, num_classes=<number>,"
            f" checkpoint_path={str(path)!r}); timm.models.save_for_hf(model, <folder>,"
            " model_config={'label_names': [<class>, ...]}, safe_serialization=True). The student"
            " of a run is opened by the run's folder."
        )
    try:
        return open_foreign(path, threads=threads)
    except ValueError as error:
        raise RequestError(str(error)) from None


@dataclass(frozen=True)
class OpenedCascade:
    """A cascade, the models of its stages, and the files of these models."""

    cascade: ModelCascade
    models: tuple[ImageClassifier, ...]
    files: tuple[Path, ...]


def open_cascade(path: Path, *, threads: int | None, device: torch.device = CPU) -> OpenedCascade:
    """Open the cascade described by a cascade.json.

    Raises `RequestError` if the file is invalid, a stage is missing or was replaced, or
    the stages have different classes.
    """
    models: dict[Path, ImageClassifier] = {}

    def open_stage(file: Path) -> ImageClassifier:
        models[file] = open_file(file, threads=threads, device=device)
        return models[file]

    try:
        cascade = ModelCascade.load(path, open_stage)
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(str(error)) from None
    check_same_classes([(file.name, model.classes) for file, model in models.items()])
    return OpenedCascade(cascade, tuple(models.values()), tuple(models))


def check_same_classes(named: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    """Raise `RequestError` unless all entries ``(name of a model, its classes)`` have
    the classes of the first one, in the same order.
    """
    (first, reference), *others = named
    require_classes(first, reference)
    for name, classes in others:
        if classes == reference:
            continue
        if sorted(classes) == sorted(reference):
            pairs = enumerate(zip(reference, classes, strict=True))
            number, (expected, actual) = next(each for each in pairs if each[1][0] != each[1][1])
            raise RequestError(
                f"{first} and {name} have the same {len(classes)} classes in a different order:"
                f" class {number} is {expected!r} in the first and {actual!r} in the second."
                " Expected: one order in all stages. Export them from runs on the same data."
            )
        different = [each for each in classes if each not in reference] or [
            each for each in reference if each not in classes
        ]
        raise RequestError(
            f"{first} has {len(reference)} classes, {name} has {len(classes)}; they differ in"
            f" {', '.join(map(repr, different[:5]))}. Expected: the same class names in all"
            " models. Name models that were trained on the same classes."
        )


def require_classes(name: str, classes: tuple[str, ...]) -> None:
    """Raise `RequestError` for a model that outputs an embedding."""
    if not classes:
        raise RequestError(
            f"{name} outputs an embedding (task=embedding), and this command compares predicted"
            " classes. Expected: a model that learned classes. kd-evaluate run=<its run> measures"
            " it by the teacher's neighbors, and kd-export does so for files; kd-predict writes"
            " embeddings and nearest images."
        )


def _resolve_folder(path: Path) -> tuple[Path, Path | None]:
    """The model folder that `path` refers to, and the folder of the model's run."""
    check_links(path)
    if (path / RESULTS).is_file():
        check_links(path, READ)
        return path / STUDENT, path
    if (path / REFERENCE).is_file():
        return _resolve_teacher(path), path.parent
    if not (path / CONFIG).is_file():
        raise RequestError(
            f"The folder {str(path)!r} contains neither {RESULTS} nor {CONFIG}."
            f"{_suggest_files(path)} {_EXPECTED}."
        )
    return path, path.parent if (path.parent / RESULTS).is_file() else None


def _suggest_files(folder: Path) -> str:
    """The model files of a folder that kd-export filled, as a sentence."""
    names = [each.name for each in sorted(folder.iterdir()) if each.suffix in ARTIFACTS]
    return f" Name one of its files: {', '.join(names)}." if names else ""


def _resolve_teacher(path: Path) -> Path:
    """The model folder of a run's teacher; `path` is the run's teacher folder."""
    reference = read_teacher_reference(path)
    folder = reference.folder
    if folder is None:
        raise RequestError(
            f"The teacher of {str(path.parent)!r}, {reference.name}, was used as downloaded from a"
            " hub, so no folder contains it. Save it in a folder in timm's local-dir layout and"
            " name that folder, or export it and name the file."
        )
    if not (folder / CONFIG).is_file():
        raise RequestError(
            f"The teacher of {str(path.parent)!r} is missing: {str(folder)!r} is not a model"
            " folder (any more). Run the run's kd-distill command again to train it, or name"
            " another model."
        )
    return folder


def _load_folder(folder: Path, name: str, run: Path | None, device: torch.device) -> TorchModel:
    """Load the model in timm's local-dir layout. name: the path in error messages ·
    run: the folder of the model's run, whose student has the run's decoding.
    """
    try:
        config = read_model_config(folder)
    except RequestError as error:
        raise RequestError(f"{name!r} has no model in {str(folder)!r}. {error}") from None
    architecture = config.architecture
    if not timm.is_model(architecture):
        raise RequestError(
            f"The model of {name!r} is a {architecture}, which is not a timm model. It was built by"
            " a user-provided factory, which is not run here. Export the model with kd-export, and"
            " name the file."
        )
    spec = ModelSpec(
        role="model",
        name=None,
        pretrained="auto",
        checkpoint=folder,
        kwargs={},
        image_size=None,
        factory=None,
    )
    origin = spec.origin
    assert origin.num_classes is not None
    input_spec = resolve_input(spec, _UNUSED_STATS)
    decoding = read_decoding(run / STUDENT if run else folder) or choose_decoding(input_spec)
    if EMBEDDING in config.raw:
        embedder = NormalizedEmbedding(create(spec, input_spec, 0, seed=0).model)
        return TorchModel(embedder, (), input_spec, decoding, device, repr(name))
    model = create(spec, input_spec, origin.num_classes, seed=0).model
    record = spec.record
    names = record.classes.names if record.is_named else describe_classes(record.classes.names)
    classes = names or tuple(map(str, range(origin.num_classes)))
    return TorchModel(model, classes, input_spec, decoding, device, repr(name))
