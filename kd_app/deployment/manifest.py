"""Reading ``manifest.json``, which describes each exported file of a folder.

This module imports numpy and Pillow besides the standard library.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kd_app.config.errors import RequestError
from kd_app.config.pixels import Decoding, InputSpec, choose_decoding
from kd_app.config.records import load_record, parse_with
from kd_app.config.values import shorten
from kd_app.deployment.golden import GOLDEN, parse_golden
from kd_app.digest import hash_file
from kd_app.run_files import MANIFEST

VERSION: Final = 1
_ALWAYS: Final = {"orientation": "exif", "transparency": "white", "bits": 8}
"""How every run decodes image files: upright, on white ground, in 8 bits a channel."""
_EXPECTED: Final = (
    f"kd-export writes a {MANIFEST} next to its files, which describes their input and detects"
    " damage. No file is opened without it. Export the run again, or copy its whole export folder."
)
_FIX: Final = "Export the run again (kd-export), or copy its whole export folder."


@dataclass(frozen=True)
class ManifestEntry:
    """One file of a manifest.

    classes: of the logits; none for an embedding · width: of the output · pixels: the
    uint8 images that the file accepts; the file normalizes them · decoding: how the run
    decoded image files · record: the whole entry · golden: the embeddings of drawn
    pictures, see `compute_golden`; None for logits.
    """

    path: Path
    format: str
    classes: tuple[str, ...]
    width: int
    pixels: InputSpec
    decoding: Decoding
    license: str
    record: Mapping[str, Any]
    golden: NDArray[np.float64] | None = None


def read_entry(path: Path) -> ManifestEntry:
    """Read the manifest entry of a file and compare the file with it.

    Raises:
        RequestError: the file or its manifest is missing, the manifest has another
            schema or does not list the file, or the content differs from the manifest.
    """
    if not path.is_file():
        raise RequestError(
            f"There is no file {str(path)!r}. Expected one that kd-export wrote, such as"
            " runs/a/export/model.onnx."
        )
    files = read_manifest(path.parent)["files"]
    if path.name not in files:
        raise RequestError(
            f"{str(path)!r} is not in the {MANIFEST} of its folder, which lists"
            f" {', '.join(sorted(files)) or 'no file'}. Expected a file that kd-export wrote; files"
            f" from elsewhere are not opened. {_FIX}"
        )
    record = files[path.name]
    entry = parse_with(
        path.parent / MANIFEST,
        lambda: _parse_entry(path, record),
        expected=(
            f"It does not describe the file completely. Expected for {path.name}: format, input,"
            f" classes, license and sha256. {_FIX}"
        ),
    )
    expected = str(record["sha256"])
    if (sha256 := hash_file(path)) != expected:
        raise RequestError(
            f"{str(path)!r} is not the file that was exported: its sha256 is {sha256[:16]}..., but"
            f" the {MANIFEST} has {expected[:16]!r}. The file is truncated, damaged or swapped,"
            f" and is not opened. {_FIX}"
        )
    return entry


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder.

    Raises:
        RequestError: the manifest is missing, truncated, changed, or of another
            schema.
    """
    path = folder / MANIFEST
    manifest = load_record(path, expected=_EXPECTED, is_sealed=True)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != VERSION:
        raise RequestError(
            f"{str(path)!r} has schema_version {shorten(repr(version))}; this version of kd_app"
            f" reads version {VERSION}. {_FIX}"
        )
    if not isinstance(manifest.get("files"), dict):
        raise RequestError(
            f"{str(path)!r} lists no files: its 'files' is"
            f" {shorten(repr(manifest.get('files')))}. Expected an entry for each exported file."
            f" {_FIX}"
        )
    return dict(manifest)


def describe_decoding(decoding: Decoding) -> dict[str, Any]:
    """Build the entry ``decoding`` of a manifest or of a model's config.json."""
    return {**_ALWAYS, "channels": decoding.channels, "shorter_side": decoding.shorter_side}


def parse_decoding(node: Any) -> Decoding:
    """Read the output of `describe_decoding`.

    Raises:
        RequestError: the entry has another schema, or another way of decoding.
    """
    if not isinstance(node, Mapping) or any(node.get(key) != _ALWAYS[key] for key in _ALWAYS):
        raise RequestError(
            f"it does not say how to decode images as kd_app does: decoding={node!r}"
        )
    return Decoding(_check_size(node.get("channels")), _check_size(node.get("shorter_side")))


def describe_input(input_spec: InputSpec) -> dict[str, Any]:
    """Build the entry ``input`` of a manifest."""
    return {
        "dtype": "uint8",
        "shape": ["batch", input_spec.channels, input_spec.height, input_spec.width],
        "mean": list(input_spec.mean),
        "std": list(input_spec.std),
        "crop": input_spec.crop,
        "interpolation": input_spec.interpolation,
    }


def _parse_entry(path: Path, record: Mapping[str, Any]) -> ManifestEntry:
    node = record["input"]
    batch, *sizes = node["shape"]
    channels, height, width = (_check_size(size) for size in sizes)
    if node["dtype"] != "uint8" or batch != "batch":
        raise ValueError(f"input={node!r}")
    mean, std = (tuple(float(value) for value in node[key]) for key in ("mean", "std"))
    crop = float(node["crop"])
    if len(mean) != channels or len(std) != channels or not (math.isfinite(crop) and 0 < crop <= 1):
        raise ValueError(f"input={node!r}")
    classes = tuple(map(_check_text, record["classes"]))
    is_embedding = record.get("output") == "embedding"
    outputs = _check_size(record["width"]) if is_embedding else len(classes)
    if is_embedding == bool(classes) or outputs < 2:
        raise ValueError(f"classes={record['classes']!r}")
    input_spec = InputSpec(channels, height, width, mean, std, crop, str(node["interpolation"]))
    decoding = (
        parse_decoding(record["decoding"]) if "decoding" in record else choose_decoding(input_spec)
    )
    license = _check_text(record["license"])
    _check_text(record["sha256"])
    golden = parse_golden(record.get(GOLDEN), outputs) if is_embedding else None
    format = _check_text(record["format"])
    return ManifestEntry(
        path, format, classes, outputs, input_spec, decoding, license, record, golden
    )


def _check_text(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not a text")
    return text


def _check_size(size: Any) -> int:
    if not isinstance(size, int) or not 0 < size <= 2**15:
        raise ValueError(f"a size of {size!r}")
    return size
