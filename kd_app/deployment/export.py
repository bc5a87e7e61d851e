"""Writing one exported file with its manifest, and comparing it with the model."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kd_app.config import Decoding, InputSpec, RunError
from kd_app.deployment.artifact import Artifact, open_artifact
from kd_app.deployment.formats.base import Format, UInt8Model, make_blank_images
from kd_app.deployment.golden import GOLDEN, compute_golden
from kd_app.deployment.manifest import VERSION, describe_decoding, describe_input
from kd_app.deployment.own_files import mark_written
from kd_app.digest import hash_file, seal
from kd_app.run_files import MANIFEST
from kd_app.stages import write_atomically


def export(
    model: nn.Module,
    form: Format,
    folder: Path,
    *,
    stem: str,
    input_spec: InputSpec,
    decoding: Decoding,
    classes: Sequence[str],
    output: Literal["logits", "embedding"] = "logits",
    license: str,
    calibration: Sequence[NDArray[np.uint8]],
    images: NDArray[np.uint8],
) -> Path:
    """Write ``<folder>/<stem><ending>`` and a manifest of this file.

    The outputs on `images` ``[B, C, H, W]`` are compared with those of torch. output:
    what the model returns; an embedding has no classes.

    Raises `RunError` if the model can't be written or opened, or if the logits differ
    by more than the tolerance of the format.
    """
    path = folder / f"{stem}{form.ending}"
    format_facts = form.write(model, input_spec, calibration, path)
    record = {
        "format": form.name,
        "input": describe_input(input_spec),
        "decoding": describe_decoding(decoding),
        **_describe_output(model, input_spec, classes, output),
        "license": license,
        "sha256": hash_file(path),
        "size_bytes": path.stat().st_size,
        "runtime": {"name": form.runtime, "version": version(form.runtime)},
        **format_facts,
    }
    write_manifest(folder, {path.name: record})
    try:
        mark_written(path)
        artifact = open_artifact(path)
        difference = measure_difference(model, input_spec, artifact, images)
    except ValueError as error:
        raise RunError(f"The exported file can't be used: {error}") from error
    record |= {"largest_difference": difference}
    if output == "embedding":
        record |= {GOLDEN: compute_golden(artifact)}
    write_manifest(folder, {path.name: record})
    # `not <=` rather than `>`: the difference is NaN if a logit is.
    if form.tolerance is not None and not difference <= form.tolerance:
        raise RunError(
            f"{path.name} does not reproduce the model: on {len(images)} images the logits are"
            f" off by up to {difference:.2g} of the largest one, more than"
            f" formats.{form.name}.tolerance={form.tolerance:g}. Use another format for this model."
        )
    return path


def _describe_output(
    model: nn.Module, input_spec: InputSpec, classes: Sequence[str], output: str
) -> dict[str, Any]:
    if output == "logits":
        return {"output": output, "classes": list(classes)}
    with torch.inference_mode():
        embedding = UInt8Model(model, input_spec)(make_blank_images(input_spec, 1))
    lengths = embedding.norm(dim=1)
    is_normalized = bool(torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3))
    return {
        "output": output,
        "classes": [],
        "width": embedding.shape[1],
        "normalized": is_normalized,
    }


def measure_difference(
    model: nn.Module, input_spec: InputSpec, artifact: Artifact, images: NDArray[np.uint8]
) -> float:
    """``max |artifact - torch| / max(1, max |torch|)`` over the logits of `images`.

    NaN if a logit is NaN.
    """
    with torch.inference_mode():
        expected = UInt8Model(model, input_spec)(torch.from_numpy(images)).numpy()
    difference = np.abs(artifact.infer_logits(images) - expected).max()
    return float(difference / max(1.0, float(np.abs(expected).max())))


def write_manifest(folder: Path, files: Mapping[str, Mapping[str, Any]], **facts: Any) -> None:
    """Write ``manifest.json`` atomically, with its own hash.

    files: an entry for each file · facts: entries about all files.
    """
    manifest = seal({"schema_version": VERSION, **facts, "files": files})
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, allow_nan=False) + "\n")
