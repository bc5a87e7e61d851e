"""Which of timm's modules can be exported to ONNX, tested with one small model each.
``python -m benchmarks.exports``, or ``make exports``, writes docs/exports.md
"""

import json
import multiprocessing
import resource
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.models import build_noised_model, parse_table
from benchmarks.variants import CLASSES, Variant
from kd_app.config import InputSpec, RunError, choose_decoding
from kd_app.deployment.export import export
from kd_app.deployment.formats.onnx import Onnx
from kd_app.deployment.manifest import read_manifest
from kd_app.stages import write_atomically

TABLE = Path(__file__).parents[1] / "docs" / "exports.md"
JOURNAL = TABLE.with_name(".exports.jsonl")
"""One line per result. If the command is run again, it resumes from this file."""
OPSET, TOLERANCE = 18, 0.001
"""Values of conf/formats/onnx.yaml."""
SECONDS = 300
"""Limit of processor time per model, which other work on the machine does not
affect.
"""
_TIMEOUT = 3600
"""Limit of wall time in seconds, for a process that waits without computing."""
_HEAD = ("module", "variant", "parameters", "pixels", "ONNX")
_LENGTH = 300


@dataclass(frozen=True)
class Row:
    """The result for a variant: either the largest `difference` of the logits from
    torch, or the `reason` why there is no equal file.
    """

    variant: Variant
    difference: float | None
    reason: str | None


def try_export(variant: Variant) -> Row:
    """Export a variant's model with the format `onnx`, open the file, and compare the
    logits of four noise images.
    """
    pixels = InputSpec(3, variant.side, variant.side, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    images = np.random.default_rng(0).integers(
        0, 256, (4, 3, variant.side, variant.side), dtype=np.uint8
    )
    classes = [str(number) for number in range(CLASSES)]
    form = Onnx(opset=OPSET, tolerance=TOLERANCE)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = export(
                build_noised_model(variant),
                form,
                Path(folder),
                stem="model",
                input_spec=pixels,
                decoding=choose_decoding(pixels),
                classes=classes,
                license="none",
                calibration=[],
                images=images,
            )
        except RunError as error:
            return Row(
                variant, None, " ".join(str(error).replace(f"{folder}/", "").split())[:_LENGTH]
            )
        entry = read_manifest(path.parent)["files"][path.name]
        return Row(variant, entry["largest_difference"], None)


def _send_row(variant: Variant, seconds: int, connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 10))
    connection.send(try_export(variant))


def try_export_in_process(variant: Variant, seconds: int) -> Row:
    """Run `try_export` in a separate process. A process that exceeds `seconds` of
    processor time, or dies, counts as a 'no'.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["benchmarks.models", "kd_app.deployment.formats.onnx", "onnx", "onnxscript", "onnxruntime"]
    )
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_send_row, args=(variant, seconds, there))
    child.start()
    there.close()
    try:
        if not here.poll(_TIMEOUT):
            return Row(variant, None, f"The export did not finish within {_TIMEOUT} s.")
        row: Row = here.recv()
        return row
    except EOFError:
        child.join()
        slow = child.exitcode == -signal.SIGXCPU
        return Row(
            variant,
            None,
            (
                f"The export did not finish within {seconds} s of processor time."
                if slow
                else f"The process died ({child.exitcode})."
            ),
        )
    finally:
        child.kill()
        child.join()


def iterate_rows(journal: Path) -> Iterator[Row]:
    """Yield the row of every module on docs/models.md: rows of the journal first, then
    new ones, which are appended to the journal; small models first.
    """
    journal.touch()
    known: dict[Variant, Row] = {}
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        variant = Variant(**entry["variant"])
        known[variant] = Row(variant, entry["difference"], entry["reason"])
    for variant in sorted(
        (variant for variant, _ in parse_table().values()),
        key=lambda each: (each not in known, each.params),
    ):
        row = known.get(variant)
        if row is None:
            row = try_export_in_process(variant, SECONDS)
            with journal.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(asdict(row)))
        yield row


def render_page(rows: dict[str, Row]) -> str:
    """Return the page with the results of each module."""
    equal = [row.difference for row in rows.values() if row.difference is not None]
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "timm", "onnxscript", "onnxruntime")
    )
    title = f"""# Which model can be an ONNX file

One small model of each of timm's modules (those of docs/models.md, with noise on the parameters)
is exported with the format `onnx`, opened, and compared with torch on four images. 'yes': no
logit differs by more than {TOLERANCE:g} of the largest one. The reason of each 'no' is below.
Of {len(rows)} tested models {len(equal)} are equal; the largest difference is
{max(equal, default=0.0):.1g}. Written by `make exports` with {packages}.
"""
    table, reasons, untried = [f"| {' | '.join(_HEAD)} |", "|" + "---|" * len(_HEAD)], [], []
    for module, (variant, _) in parse_table().items():
        row = rows.get(module)
        table.append(
            render_row(variant, "not tried" if row is None else "no" if row.reason else "yes")
        )
        untried += [] if row else [module]
        reasons += [f"- {module}: {row.reason}"] if row and row.reason else []
    more = (
        ["", "## Not tried", "", f"The command stopped before: {', '.join(untried)}."]
        if untried
        else []
    )
    return "\n".join(
        [
            title,
            *table,
            "",
            "## Why not",
            "",
            *(reasons or ["All tested models are equal."]),
            *more,
            "",
        ]
    )


def render_row(variant: Variant, result: str) -> str:
    """Return a row of the table."""
    return (
        f"| {variant.module} | `{variant.name}` | {variant.params:,} | {variant.side} | {result} |"
    )


def main() -> None:
    """Write the page, and print each result."""
    rows: dict[str, Row] = {}
    for row in iterate_rows(JOURNAL):
        rows[row.variant.module] = row
        print(
            render_row(row.variant, "no" if row.reason else "yes"),
            row.reason or f"{row.difference:.1g}",
            flush=True,
        )
        write_atomically(TABLE, render_page(rows))
    JOURNAL.unlink()


if __name__ == "__main__":
    main()
