"""What kd-export measured, as tables for people."""

from rich import box
from rich.table import Table

from kd_app.reporting.exports import Answering, Exports, Figures
from kd_app.reporting.sentences import count, format_percent, format_points


def build_accuracy_table(told: Exports, split: str) -> Table:
    """Each file and the models in torch on one split: its accuracy, the verdict beside
    the teacher, what being written as a file changed.
    """
    table = Table(
        title=f"On {split}, each file in its own runtime",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for head in (
        "top-1",
        "beside the teacher",
        "negative flips",
        "lost beside torch",
        "agreement with torch",
    ):
        table.add_column(head, justify="right")
    for role, model in told.torch.items():
        table.add_row(f"{role} in torch", *_own(getattr(model, split), role == "teacher"), "", "")
    for name, file in told.files.items():
        found: Figures = getattr(file, split)
        changed = found.beside_torch
        assert changed is not None
        table.add_row(
            f"{name} ←" if name == told.ship else name,
            *_own(found, False),
            f"{format_points(changed.lost)} points",
            format_percent(changed.agreement),
        )
    return table


def _own(found: Figures, is_teacher: bool) -> tuple[str, str, str]:
    if is_teacher or found.verdict is None:
        return format_percent(found.top1), "", ""
    return format_percent(found.top1), found.verdict.outcome, format_percent(found.negative_flips)


def build_cost_table(told: Exports) -> Table:
    """Latency, throughput, cost, size, start and memory of each file and of the models
    in torch.
    """
    table = Table(
        title="One thread, in turns", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("", no_wrap=True)
    for head in ("ms p50", "p95", "p99", "images/s", "a million", "size", "start", "memory"):
        table.add_column(head, justify="right")
    for role, model in told.torch.items():
        table.add_row(f"{role} in torch", *_format_speed(model), "", "", "")
    for name, file in told.files.items():
        start = "" if file.start_seconds is None else f"{1000 * file.start_seconds:.0f} ms"
        memory = "" if file.peak_memory_bytes is None else f"{count(file.peak_memory_bytes)}B"
        table.add_row(
            f"{name} ←" if name == told.ship else name,
            *_format_speed(file),
            f"{count(file.size_bytes)}B",
            start,
            memory,
        )
    return table


def _format_speed(of: Answering) -> tuple[str, str, str, str, str]:
    latency, cost = of.latency_ms, of.cost_per_million
    times = (
        ("", "", "")
        if latency is None
        else (f"{latency.p50:.3g}", f"{latency.p95:.3g}", f"{latency.p99:.3g}")
    )
    speed = (
        ""
        if of.images_per_second is None
        else f"{of.images_per_second:,.0f} (batch {of.batch_size})"
    )
    return (*times, speed, "" if cost is None else f"{cost:.3g} {of.currency or ''}".strip())
