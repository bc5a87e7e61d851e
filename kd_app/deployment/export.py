"""One file and its entry in the manifest, compared with the model that it was written
from.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kd_app.config import InputSpec, RunError
from kd_app.deployment.artifact import Artifact, open_artifact
from kd_app.deployment.formats.base import Format, UInt8Model
from kd_app.deployment.manifest import VERSION, describe_input
from kd_app.run_files import MANIFEST
from kd_app.stages import hash_file, write_atomically


def export(
    model: nn.Module,
    form: Format,
    folder: Path,
    *,
    stem: str,
    pixels: InputSpec,
    classes: Sequence[str],
    license: str,
    calibration: Sequence[NDArray[np.uint8]],
    images: NDArray[np.uint8],
) -> Path:
    """Write ``<folder>/<stem><ending>`` with a manifest of this file alone, and compare
    its logits on real `images` ``[B, C, H, W]`` with torch's.

    Raises `RunError` where they are further apart than the format's tolerance, or the
    model can't be written or opened.
    """
    path = folder / f"{stem}{form.ending}"
    more = form.write(model, pixels, calibration, path)
    told = {
        "format": form.name,
        "input": describe_input(pixels),
        "output": "logits",
        "classes": list(classes),
        "license": license,
        "sha256": hash_file(path),
        "size_bytes": path.stat().st_size,
        "runtime": {"name": form.runtime, "version": version(form.runtime)},
        **more,
    }
    write_manifest(folder, {path.name: told})
    try:
        opened = open_artifact(path)
    except ValueError as error:
        raise RunError(f"What was written can't be opened: {error}") from error
    off = measure_difference(model, pixels, opened, images)
    write_manifest(folder, {path.name: {**told, "largest_difference": off}})
    if form.tolerance is not None and not off <= form.tolerance:
        raise RunError(
            f"{path.name} does not answer as the model does: on {len(images)} images its logits are"
            f" off by up to {off:.2g} of the largest one, more than"
            f" formats.{form.name}.tolerance={form.tolerance:g}. This model can't be trusted in"
            " this format; use another one."
        )
    return path


def measure_difference(
    model: nn.Module, pixels: InputSpec, opened: Artifact, images: NDArray[np.uint8]
) -> float:
    """``max |artifact - torch| / max(1, max |torch|)`` over the logits of `images`; not
    a number where one of them is none.
    """
    with torch.inference_mode():
        expected = UInt8Model(model, pixels)(torch.from_numpy(images)).numpy()
    return float(
        np.abs(opened.infer_logits(images) - expected).max()
        / max(1.0, float(np.abs(expected).max()))
    )


def write_manifest(folder: Path, files: Mapping[str, Mapping[str, Any]], **about: Any) -> None:
    """Write ``manifest.json`` whole or not at all: an entry for each of the `files`,
    and what else it is to say of all of them.
    """
    told = {"schema_version": VERSION, **about, "files": files}
    write_atomically(folder / MANIFEST, json.dumps(told, indent=1, allow_nan=False) + "\n")
