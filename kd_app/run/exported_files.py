"""The files of a run's models: each written once, found again by whoever asks for the
same.
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
from kd_app.models.save import INT8_OF_BYTES
from kd_app.reporting.results import Results
from kd_app.run.workspace import RunModel, Workspace
from kd_app.stages import RECORD, hash_file

STEMS = {"student": "model", "teacher": "teacher"}
"""The beginning of the names of a role's files."""
_LEARNED = "the int8 program of a quantized student, as kd-compress wrote it"
_FLOAT = (
    "from the float weights of a quantized student, not from its int8 program; int8 has ranges of"
    " its own"
)
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "executorch", "torchao")


class ExportRequest(Protocol):
    """Which files are asked for, and how they are made."""

    roles: tuple[str, ...]
    nodes: dict[str, dict[str, Any]]
    formats: dict[str, Format]
    calibration_images: int
    compared_images: int


@dataclass(frozen=True)
class ExportedFile:
    """A file in its stage: whose it is, where, and its entry in the manifest there;
    `found_again` as of its format.
    """

    role: str
    format: str
    path: Path
    told: dict[str, Any]
    found_again: bool


def write_files(
    shop: Workspace, before: Results, members: Mapping[str, RunModel], asked: ExportRequest
) -> dict[str, ExportedFile]:
    """The files by name, made or found. Raises as `kd_app.deployment.export.export`."""
    found: dict[str, ExportedFile] = {}
    for role in asked.roles:
        for name in asked.formats:
            path = _write_stage(shop, members[role], name, asked, before.models[role].license)
            told = {**read_manifest(path.parent)["files"][path.name], "role": role}
            if members[role].program is not None:
                told["weights"] = (
                    _LEARNED if isinstance(asked.formats[name], ExecuTorchInt8) else _FLOAT
                )
                shop.console.print(f"{path.name}: {told['weights']}")
            found[path.name] = ExportedFile(role, name, path, told, asked.formats[name].found_again)
    return found


def _resolve_format(form: Format, member: RunModel) -> Format:
    """The format, or of a quantized student what ships its program. Raises
    `RequestError` where that program is not there.
    """
    if member.program is None or not isinstance(form, ExecuTorchInt8):
        return form
    program = member.program.with_name(INT8_OF_BYTES)
    if not program.is_file():
        raise RequestError(
            f"The student is quantized, and {str(program)!r}, its int8 program, is not there: it"
            " was removed, or an earlier kd_app quantized it. Say its kd-compress command again"
            " with remake=[quantize] and overwrite=true, or export its float weights:"
            " 'formats=[onnx,executorch]'."
        )
    return Quantized(program=program, max_batch=form.max_batch)


def sample_images(
    shop: Workspace, split: Any, pixels: InputSpec, number: int
) -> list[NDArray[np.uint8]]:
    """Batches of so many images of a split, drawn at random, as an exported file takes
    them.
    """
    batches = (
        to_uint8_input(batch.image, pixels) for batch in shop.data.sample(split, pixels, number)
    )
    return list(islice(batches, number))


def _write_stage(
    shop: Workspace, member: RunModel, name: str, asked: ExportRequest, license: str
) -> Path:
    pixels, role = member.loaded.pixels, member.role
    form = _resolve_format(asked.formats[name], member)

    def build(folder: Path) -> None:
        for old in (
            path for path in folder.iterdir() if path.name != RECORD
        ):  # of an attempt that was killed
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        shop.console.print_transient(f"  {STEMS[role]}{form.ending}: writing ...")
        export(
            member.loaded.model,
            form,
            folder,
            stem=STEMS[role],
            pixels=pixels,
            classes=shop.classes,
            license=license,
            calibration=sample_images(shop, "train", pixels, asked.calibration_images),
            images=np.concatenate(sample_images(shop, "validation", pixels, asked.compared_images)),
        )

    config = {
        "format": asked.nodes[name],
        "settled": vars(asked.formats[name]),
        "model": {
            "name": member.spec.name,
            "pixels": vars(pixels),
            "classes": list(shop.classes),
            "license": license,
        },
        "images": [asked.calibration_images, asked.compared_images],
        "packages": _list_versions(),
    }
    inputs = {"data": shop.data.fingerprint, "weights": member.loaded.weights.sha256}
    inputs |= {"program": hash_file(form.program)} if isinstance(form, Quantized) else {}
    return (
        shop.find_or_build(f"export-{role}-{name}", config, inputs, build).path
        / f"{STEMS[role]}{form.ending}"
    )


def _list_versions() -> dict[str, str]:
    """What writes the files."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
