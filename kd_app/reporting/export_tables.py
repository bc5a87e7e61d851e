"""Console tables about exported files: accuracy, and speed and cost."""

from rich import box
from rich.table import Table

from kd_app.reporting.exports import Exports, FileMetrics, ModelMeasurement
from kd_app.reporting.sentences import format_count, format_percent, format_points


def build_accuracy_table(exports: Exports, split: str) -> Table:
    """Each file and each PyTorch model on one split: accuracy, verdict against the
    teacher, and what the export changed.
    """
    table = _build_table(
        f"On {split}, each file in its own runtime",
        (
            "top-1",
            "against the teacher",
            "negative flips",
            "lost by export",
            "agreement with torch",
        ),
    )
    for role, model in exports.torch.items():
        metrics: FileMetrics = getattr(model, split)
        table.add_row(f"{role} in torch", *_format_metrics(metrics, role == "teacher"), "", "")
    for name, file in exports.files.items():
        metrics = getattr(file, split)
        assert metrics.beside_torch is not None
        table.add_row(
            _mark_shipped(exports, name),
            *_format_metrics(metrics, False),
            f"{format_points(metrics.beside_torch.lost)} points",
            format_percent(metrics.beside_torch.agreement),
        )
    return table


def build_embedding_table(exports: Exports, split: str) -> Table:
    """Each file and each PyTorch model on one split: the share of the teacher's
    neighbors, and the metrics on labels, if there are any.
    """
    table = _build_table(
        f"On {split}, each file in its own runtime",
        ("teacher's neighbors", "torch's neighbors", "k-NN top-1", "purity", "linear probe"),
    )
    rows = {f"{role} in torch": getattr(model, split) for role, model in exports.torch.items()}
    rows |= {_mark_shipped(exports, name): getattr(f, split) for name, f in exports.files.items()}
    for name, metrics in rows.items():
        names = ("overlap", "own_overlap", "knn_top1", "purity", "probe_top1")
        values = [getattr(metrics, each) for each in names]
        table.add_row(name, *("" if each is None else format_percent(each) for each in values))
    return table


def build_cost_table(exports: Exports) -> Table:
    """Latency, throughput, cost, size, cold start and memory of each file; speed of
    each PyTorch model.
    """
    table = _build_table(
        "Speed on one thread, all timed in turns",
        ("ms p50", "p95", "p99", "images/s", "per million", "size", "cold start", "memory"),
    )
    for role, model in exports.torch.items():
        table.add_row(f"{role} in torch", *_format_speed(model), "", "", "")
    for name, file in exports.files.items():
        start, memory = file.start_seconds, file.peak_memory_bytes
        table.add_row(
            _mark_shipped(exports, name),
            *_format_speed(file),
            f"{format_count(file.size_bytes)}B",
            "" if start is None else f"{1000 * start:.0f} ms",
            "" if memory is None else f"{format_count(memory)}B",
        )
    return table


def _build_table(title: str, heads: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _mark_shipped(exports: Exports, name: str) -> str:
    """The file's name, with an arrow at the file to ship."""
    return f"{name} ←" if name == exports.ship else name


def _format_metrics(metrics: FileMetrics, is_teacher: bool) -> tuple[str, str, str]:
    top1 = format_percent(metrics.top1)
    if is_teacher or metrics.verdict is None:
        return top1, "", ""
    return top1, metrics.verdict.outcome, format_percent(metrics.negative_flips)


def _format_speed(model: ModelMeasurement) -> tuple[str, str, str, str, str]:
    latency, speed, cost = model.latency_ms, model.images_per_second, model.cost_per_million
    times = ("", "", "")
    if latency is not None:
        times = (f"{latency.p50:.3g}", f"{latency.p95:.3g}", f"{latency.p99:.3g}")
    return (
        *times,
        "" if speed is None else f"{speed:,.0f} (batch {model.batch_size})",
        "" if cost is None else f"{cost:.3g} {model.currency or ''}".strip(),
    )
