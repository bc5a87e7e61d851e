"""The exported files of a run, as ``export/manifest.json`` records them."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from kd_app.config.records import read_record
from kd_app.reporting.constraints import Count, Finite, NonNegative, Number, Rate
from kd_app.reporting.metrics import Verdict
from kd_app.run_files import EXPORT, MANIFEST


class _Open(BaseModel):
    """Allows further keys, which a manifest has and a report does not read."""

    model_config = ConfigDict(extra="allow")


class TorchComparison(_Open):
    """A file against the PyTorch model of which it is an export, on the same images.

    lost: accuracy of the model minus accuracy of the file, in 0..1 · lost_high: its
    upper bound, one-sided at the confidence of the verdict rule · margin: of that rule
    · agreement: share of images with equal top-1 classes.
    """

    lost: Finite
    lost_high: Finite
    margin: Finite
    agreement: Finite


class FileMetrics(_Open):
    """Metrics of one file on one split, under the keys of ``results.json``.

    verdict: of the file against the teacher · overlap, knn_top1, purity, probe_top1: of
    a file that outputs an embedding, see `EmbeddingMetrics` · own_overlap: share of the
    neighbors of the model in torch that the file finds.
    """

    top1: Number = None
    top1_low: Number = None
    top1_high: Number = None
    retention: Number = None
    retention_low: Number = None
    retention_high: Number = None
    negative_flips: Number = None
    overlap: Number = None
    overlap_low: Number = None
    overlap_high: Number = None
    own_overlap: Number = None
    knn_top1: Number = None
    purity: Number = None
    probe_top1: Number = None
    verdict: Verdict | None = None
    beside_torch: TorchComparison | None = None


class LatencyPercentiles(_Open):
    """Milliseconds for one image on one thread: percentiles over `calls`."""

    p50: NonNegative
    p95: NonNegative
    p99: NonNegative
    calls: Count | None = None


class ModelMeasurement(_Open):
    """Accuracy, speed and cost of a file or of a PyTorch model; null if not measured.

    cost_per_million: of a million images, in `currency`.
    """

    license: str = "unknown"
    device: str | None = None
    validation: FileMetrics | None = None
    test: FileMetrics | None = None
    latency_ms: LatencyPercentiles | None = None
    images_per_second: Rate = None
    batch_size: Count | None = None
    cost_per_million: Rate = None
    cost_formula: str | None = None
    currency: str | None = None
    start_seconds: Rate = None
    peak_memory_bytes: Count | None = None


class RatioEstimate(BaseModel):
    """A ratio and the ends of its 95 % interval."""

    model_config = ConfigDict(frozen=True)

    value: NonNegative
    low: NonNegative
    high: NonNegative

    def __str__(self) -> str:
        return f"{self.value:.1f}x ({self.low:.1f} to {self.high:.1f})"


class TorchMeasurement(ModelMeasurement):
    """A PyTorch model that was measured together with the files."""

    name: str


class File(ModelMeasurement):
    """One exported file.

    runtime: name and version · times_faster, times_cheaper: compared with each model
    and file that was timed in turns with this one, by name.
    """

    format: str
    size_bytes: Count
    role: str = "student"
    runtime: dict[str, Any] = {}
    times_faster: dict[str, RatioEstimate] = {}
    times_cheaper: dict[str, RatioEstimate] = {}


class Exports(_Open):
    """The keys of a manifest that a report reads.

    torch: PyTorch models by role · ship: the name of the recommended file.
    """

    schema_version: Literal[1]
    files: dict[str, File]
    torch: dict[str, TorchMeasurement] = {}
    ship: str | None = None


def read_exports(run: Path) -> Exports | None:
    """Read the manifest in the run's folder `run`; None if the run was not exported.

    Raises `RequestError` if the manifest is truncated or does not fit the schema.
    """
    path = run / EXPORT / MANIFEST
    if not path.is_file():
        return None
    return read_record(
        path, Exports, expected="Export the run again with kd-export.", is_sealed=True
    )
