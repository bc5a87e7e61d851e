"""The files of a run's models: each written once, found again by whoever asks for the same."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kd_app.config import Pixels
from kd_app.deployment.export import export
from kd_app.deployment.formats.format import Format
from kd_app.deployment.manifest import read_manifest
from kd_app.deployment.measure import as_fed
from kd_app.reporting.results import Results
from kd_app.stages import RECORD
from kd_app.training.workshop import Member, Workshop

STEMS = {"student": "model", "teacher": "teacher"}
"""The beginning of the names of a role's files."""
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "executorch", "torchao")


class Asked(Protocol):
    """Which files are asked for, and how they are made."""

    roles: tuple[str, ...]
    nodes: dict[str, dict[str, Any]]
    formats: dict[str, Format]
    calibration_images: int
    compared_images: int


@dataclass(frozen=True)
class Written:
    """A file in its stage: whose it is, where, and its entry in the manifest there."""

    role: str
    format: str
    path: Path
    told: dict[str, Any]


def written(shop: Workshop, before: Results, members: Mapping[str, Member], asked: Asked) -> dict[str, Written]:
    """The files by name, made or found. Raises as `kd_app.deployment.export.export`."""
    found: dict[str, Written] = {}
    for role in asked.roles:
        for name in asked.formats:
            path = _stage(shop, members[role], name, asked, before.models[role].license)
            found[path.name] = Written(role, name, path, {**read_manifest(path.parent)["files"][path.name], "role": role})
    return found


def images_of(shop: Workshop, split: Any, pixels: Pixels, number: int) -> list[NDArray[np.uint8]]:
    """Batches of so many images of a split, drawn at random, as an exported file takes them."""
    batches = (as_fed(batch.image, pixels) for batch in shop.data.sample(split, pixels, number))
    return list(islice(batches, number))


def _stage(shop: Workshop, member: Member, name: str, asked: Asked, license: str) -> Path:
    form, pixels, role = asked.formats[name], member.created.pixels, member.role

    def build(folder: Path) -> None:
        for old in (path for path in folder.iterdir() if path.name != RECORD):  # of an attempt that was killed
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        shop.console.line(f"  {STEMS[role]}{form.ending}: writing ...")
        export(
            member.created.model,
            form,
            folder,
            stem=STEMS[role],
            pixels=pixels,
            classes=shop.classes,
            license=license,
            calibration=images_of(shop, "train", pixels, asked.calibration_images),
            images=np.concatenate(images_of(shop, "validation", pixels, asked.compared_images)),
        )

    config = {
        "format": asked.nodes[name],
        "settled": vars(form),
        "model": {"name": member.request.name, "pixels": vars(pixels), "classes": list(shop.classes), "license": license},
        "images": [asked.calibration_images, asked.compared_images],
        "packages": _versions(),
    }
    inputs = {"data": shop.data.fingerprint, "weights": member.created.weights.sha256}
    return shop.make(f"export-{role}-{name}", config, inputs, build).path / f"{STEMS[role]}{form.ending}"


def _versions() -> dict[str, str]:
    """What writes the files."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
