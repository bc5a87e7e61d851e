"""``manifest.json``: what each exported file beside it is. Read and checked with the
standard library alone.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kd_app.config.pixels import InputSpec
from kd_app.run_files import MANIFEST

VERSION: Final = 1
_AGAIN: Final = "Export the run again (kd-export), or copy its whole export folder."


@dataclass(frozen=True)
class ManifestEntry:
    """One file of a manifest: where it is, what it is fed (uint8 images of `pixels`; it
    normalizes them itself), and all that is `told` of it.
    """

    path: Path
    format: str
    classes: tuple[str, ...]
    pixels: InputSpec
    license: str
    told: Mapping[str, Any]


def read_entry(path: Path) -> ManifestEntry:
    """What the manifest beside `path` says of that file, after comparing the file with
    it.

    Raises:
        ValueError: no such file, no manifest, one of another schema, a file that it
        does not name, or one of other contents.
    """
    if not path.is_file():
        raise ValueError(
            f"There is no file {str(path)!r}. Expected one that kd-export wrote, such as"
            " runs/a/export/model.onnx."
        )
    files = read_manifest(path.parent)["files"]
    if path.name not in files:
        raise ValueError(
            f"{str(path)!r} is not in the {MANIFEST} beside it, which names"
            f" {', '.join(sorted(files)) or 'no file'}. Expected a file that kd-export wrote: what"
            f" others made is not run. {_AGAIN}"
        )
    told = files[path.name]
    try:
        found = _parse_entry(path, told)
        sha256 = str(told["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The {MANIFEST} beside {str(path)!r} does not say what that file is"
            f" ({type(error).__name__}: {error}). Expected format, input, classes, license and"
            f" sha256. {_AGAIN}"
        ) from None
    if (got := hash_file(path)) != sha256:
        raise ValueError(
            f"{str(path)!r} is not the file that was exported: its sha256 is {got[:16]}..., the"
            f" {MANIFEST} beside it says {sha256[:16]}.... It was cut off, damaged or exchanged,"
            f" and is not run. {_AGAIN}"
        )
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises `ValueError`: there is none, it is cut off, or
    of another schema.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"There is no {MANIFEST} in {str(folder)!r}. Expected the one that kd-export writes"
            " beside its files: it says what they are fed and whether they are whole; without it"
            f" none is run. {_AGAIN}"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} can't be read ({type(error).__name__}: {error}). Expected JSON that"
            f" kd-export wrote. {_AGAIN}"
        ) from None
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != VERSION:
        raise ValueError(
            f"{str(path)!r} has schema_version {version!r}, and this kd_app reads version"
            f" {VERSION}. {_AGAIN}"
        )
    if not isinstance(found.get("files"), dict):
        raise ValueError(
            f"{str(path)!r} names no files: its 'files' is {found.get('files')!r}. Expected an"
            f" entry for each exported file. {_AGAIN}"
        )
    return dict(found)


def describe_input(pixels: InputSpec) -> dict[str, Any]:
    """The entry ``input`` of a manifest."""
    shape = ["batch", pixels.channels, pixels.height, pixels.width]
    about = {
        "mean": list(pixels.mean),
        "std": list(pixels.std),
        "crop": pixels.crop,
        "interpolation": pixels.interpolation,
    }
    return {"dtype": "uint8", "shape": shape, **about}


def _parse_entry(path: Path, told: Mapping[str, Any]) -> ManifestEntry:
    expected = told["input"]
    batch, *sizes = expected["shape"]
    channels, height, width = (_check_positive(size) for size in sizes)
    if expected["dtype"] != "uint8" or batch != "batch":
        raise ValueError(f"input={expected!r}")
    mean, std = (tuple(float(value) for value in expected[key]) for key in ("mean", "std"))
    crop = float(expected["crop"])
    if len(mean) != channels or len(std) != channels or not (math.isfinite(crop) and 0 < crop <= 1):
        raise ValueError(f"input={expected!r}")
    classes = tuple(str(name) for name in told["classes"])
    if len(classes) < 2:
        raise ValueError(f"classes={told['classes']!r}")
    pixels = InputSpec(channels, height, width, mean, std, crop, str(expected["interpolation"]))
    return ManifestEntry(path, str(told["format"]), classes, pixels, str(told["license"]), told)


def _check_positive(size: Any) -> int:
    if not isinstance(size, int) or not 0 < size <= 2**15:
        raise ValueError(f"a size of {size!r}")
    return size


def hash_file(path: Path) -> str:
    """Of a file's contents; `kd_app.stages.hash_file` for where the standard library
    is all there is.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
