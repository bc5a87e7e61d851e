"""The files that a run was exported to, as ``export/manifest.json`` tells of them."""

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kd_app.config import RequestError
from kd_app.reporting.results import Number, Verdict
from kd_app.run_files import MANIFEST

FOLDER: Final = "export"


class _Open(BaseModel):
    """Holds the keys below, and whatever else the manifest says."""

    model_config = ConfigDict(extra="allow")


class BesideTorch(_Open):
    """A file and the model in torch that it was written from, on the same images; lost:
    accuracy of the model minus that of the file, in 0..1.
    """

    lost: float
    margin: float
    agreement: float


class Figures(_Open):
    """Of one file on one split, under the names of ``results.json``; the verdict
    compares the file with the teacher.
    """

    top1: Number = None
    top1_low: Number = None
    top1_high: Number = None
    retention: Number = None
    retention_low: Number = None
    retention_high: Number = None
    negative_flips: Number = None
    verdict: Verdict | None = None
    beside_torch: BesideTorch | None = None


class Latency(_Open):
    """Milliseconds for one image with one thread: percentiles over `calls`."""

    p50: float
    p95: float
    p99: float
    calls: int | None = None


class Answering(_Open):
    """How good, how quick and how dear something is that answers; what was not measured
    is null. cost_per_million: images, in `currency`.
    """

    license: str = "unknown"
    device: str | None = None
    validation: Figures | None = None
    test: Figures | None = None
    latency_ms: Latency | None = None
    images_per_second: Number = None
    batch_size: int | None = None
    cost_per_million: Number = None
    cost_formula: str | None = None
    currency: str | None = None
    start_seconds: Number = None
    peak_memory_bytes: int | None = None


class Ratio(BaseModel):
    """How many times, with the ends of its interval at 95 %."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f}x ({self.low:.1f} to {self.high:.1f})"


class InTorch(Answering):
    """A model in torch that was measured beside the files."""

    name: str


class File(Answering):
    """One file. runtime: its name and version · times_faster, times_cheaper: than each
    model and file that was timed in turns with it, by name.
    """

    format: str
    size_bytes: int
    role: str = "student"
    runtime: dict[str, Any] = {}
    times_faster: dict[str, Ratio] = {}
    times_cheaper: dict[str, Ratio] = {}


class Exports(_Open):
    """A manifest, as far as a report reads it. ship: the name of the file to ship ·
    torch: by role.
    """

    schema_version: Literal[1]
    files: dict[str, File]
    torch: dict[str, InTorch] = {}
    ship: str | None = None


def read_exports(run: Path) -> Exports | None:
    """What the run in the folder `run` was exported to; None where it was not.

    Raises `RequestError`: the manifest is cut off, of another schema, or not of this
    schema.
    """
    path = run / FOLDER / MANIFEST
    if not path.is_file():
        return None
    again = "Export the run again with kd-export."
    try:
        return Exports.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(
            f"{str(path)!r} is no manifest: {where}: {first['msg']} (got"
            f" {str(first['input'])[:60]!r}). {again}"
        ) from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{str(path)!r} can't be read: {error}. {again}") from None
