"""Exported files of a run's models, cached as stages: an export with the same settings
and weights reuses the file.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kd_app.config import InputSpec, RequestError
from kd_app.deployment.export import export
from kd_app.deployment.formats.base import Format
from kd_app.deployment.formats.executorch import ExecuTorchInt8, Quantized
from kd_app.deployment.manifest import read_manifest
from kd_app.deployment.predictions import to_uint8_input
from kd_app.digest import hash_file
from kd_app.models.save import INT8_OF_BYTES
from kd_app.reporting.results import Results
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace
from kd_app.stages import RECORD

STEMS = {"student": "model", "teacher": "teacher"}
"""The file name of a role, without the format's ending."""
_INT8_PROGRAM = "the int8 program of a quantized student, as kd-compress wrote it"
_FLOAT_WEIGHTS = (
    "from the float weights of a quantized student, not from its int8 program; int8 has ranges of"
    " its own"
)
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "executorch", "torchao")
"""The packages whose versions decide the content of a file."""


class ExportRequest(Protocol):
    """Which files to write, and how. nodes: the config of each format."""

    roles: tuple[str, ...]
    nodes: dict[str, dict[str, Any]]
    formats: dict[str, Format]
    calibration_images: int
    compared_images: int


@dataclass(frozen=True)
class ExportedFile:
    """A file in the folder of its stage.

    entry: the file's entry in the manifest there. found_again: as of the format.
    """

    role: str
    format: str
    path: Path
    entry: dict[str, Any]
    found_again: bool


def write_files(
    workspace: Workspace,
    before: Results,
    models: Mapping[str, RunModel],
    request: ExportRequest,
) -> dict[str, ExportedFile]:
    """Write the requested files, or reuse cached ones; the files by name.

    Raises as `kd_app.deployment.export.export`.
    """
    files: dict[str, ExportedFile] = {}
    for role in request.roles:
        model = models[role]
        for name, format in request.formats.items():
            path = _write_stage(workspace, model, name, request, before.models[role].license)
            entry = {**read_manifest(path.parent)["files"][path.name], "role": role}
            if model.program is not None:
                is_program = isinstance(format, ExecuTorchInt8)
                entry["weights"] = _INT8_PROGRAM if is_program else _FLOAT_WEIGHTS
                workspace.console.print(f"{path.name}: {entry['weights']}")
            files[path.name] = ExportedFile(role, name, path, entry, format.cacheable)
    return files


def _resolve_format(format: Format, model: RunModel) -> Format:
    """The format; for ExecuTorch int8 of a quantized student the format that copies
    the student's program. Raises `RequestError` if that program is missing.
    """
    if model.program is None or not isinstance(format, ExecuTorchInt8):
        return format
    program = model.program.with_name(INT8_OF_BYTES)
    if not program.is_file():
        raise RequestError(
            f"The int8 program of the quantized student is missing: there is no {str(program)!r}."
            " The file was deleted, or an older kd_app quantized the student. Run the kd-compress"
            " command again with remake=[quantize] and overwrite=true, or export the float weights:"
            " 'formats=[onnx,executorch]'."
        )
    return Quantized(program=program, max_batch=format.max_batch)


def sample_images(
    workspace: Workspace, split: Any, input_spec: InputSpec, number: int
) -> list[NDArray[np.uint8]]:
    """Batches with `number` randomly chosen images of a split, as the uint8 input of an
    exported file.
    """
    batches = (
        to_uint8_input(batch.image, input_spec)
        for batch in workspace.data.sample(split, input_spec, number)
    )
    return list(islice(batches, number))


def _write_stage(
    workspace: Workspace, model: RunModel, name: str, request: ExportRequest, license: str
) -> Path:
    """Write one file as a stage, or reuse the stage; the path of the file."""
    input_spec, role, task = model.loaded.pixels, model.role, workspace.task
    format = _resolve_format(request.formats[name], model)

    def build(folder: Path) -> None:
        # An attempt that was killed may have left files.
        for path in folder.iterdir():
            if path.name != RECORD:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        workspace.console.print_transient(f"  {STEMS[role]}{format.ending}: writing ...")
        calibration = sample_images(workspace, "train", input_spec, request.calibration_images)
        compared = sample_images(workspace, "validation", input_spec, request.compared_images)
        export(
            task.wrap_output(model.loaded.model),
            format,
            folder,
            stem=STEMS[role],
            input_spec=input_spec,
            decoding=workspace.decoding,
            classes=workspace.classes,
            output=task.output,
            license=license,
            calibration=calibration,
            images=np.concatenate(compared),
        )

    config = {
        "format": request.nodes[name],
        "settled": vars(request.formats[name]),
        "model": {
            "name": model.spec.name,
            "pixels": vars(input_spec),
            "decoding": vars(workspace.decoding),
            "classes": list(workspace.classes),
            "license": license,
        },
        "images": [request.calibration_images, request.compared_images],
        "packages": _list_versions(),
        **({} if task.output == "logits" else {"output": task.output}),
    }
    inputs = {"data": workspace.data.fingerprint, "weights": model.loaded.weights.sha256}
    inputs |= {"program": hash_file(format.program)} if isinstance(format, Quantized) else {}
    stage = workspace.find_or_build(f"export-{role}-{name}", config, inputs, build)
    return stage.path / f"{STEMS[role]}{format.ending}"


def _list_versions() -> dict[str, str]:
    """The versions of the installed export packages."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
