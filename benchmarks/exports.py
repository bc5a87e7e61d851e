"""Which of timm's modules can be ONNX files, one small model each. ``python -m
benchmarks.exports``, or ``make exports``, writes docs/exports.md
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

from benchmarks.models import listed, noised
from benchmarks.variants import CLASSES, Variant
from kd_app.config import InputSpec, RunError
from kd_app.deployment.export import export
from kd_app.deployment.formats.onnx import Onnx
from kd_app.deployment.manifest import read_manifest
from kd_app.stages import write_atomically

TABLE = Path(__file__).parents[1] / "docs" / "exports.md"
JOURNAL = TABLE.with_name(".exports.jsonl")
"""What is found, a line each: said again, the command goes on from here."""
OPSET, TOLERANCE = 18, 0.001
"""As conf/formats/onnx.yaml has them."""
SECONDS = 300
"""So long may a model take, of one core's time: other work on the machine takes nothing
of it.
"""
_WAITS = 3600
"""Seconds by the clock, for one that waits and computes nothing."""
_HEAD = ("module", "variant", "parameters", "pixels", "ONNX")
_LENGTH = 300


@dataclass(frozen=True)
class Row:
    """What was found of a variant; `off` is how far its file is from torch, `why` why
    there is none that equals it: one of the two is there.
    """

    variant: Variant
    off: float | None
    why: str | None


def prove(variant: Variant) -> Row:
    """Write a variant's model as `Onnx` does for anyone, open the file as anyone does,
    and compare its logits of four images of noise.
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
                noised(variant),
                form,
                Path(folder),
                stem="model",
                pixels=pixels,
                classes=classes,
                license="none",
                calibration=[],
                images=images,
            )
        except RunError as error:
            return Row(
                variant, None, " ".join(str(error).replace(f"{folder}/", "").split())[:_LENGTH]
            )
        return Row(
            variant, read_manifest(path.parent)["files"][path.name]["largest_difference"], None
        )


def _prove_there(variant: Variant, seconds: int, answer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 10))
    answer.send(prove(variant))


def limited(variant: Variant, seconds: int) -> Row:
    """`prove` in a process of its own: one that does not come to an end in so many
    seconds of a core, or dies, is a 'no', too.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["benchmarks.models", "kd_app.deployment.formats.onnx", "onnx", "onnxscript", "onnxruntime"]
    )
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_prove_there, args=(variant, seconds, there))
    child.start()
    there.close()
    try:
        if not here.poll(_WAITS):
            return Row(variant, None, f"It is not written and compared after {_WAITS} s.")
        found: Row = here.recv()
        return found
    except EOFError:
        child.join()
        slow = child.exitcode == -signal.SIGXCPU
        return Row(
            variant,
            None,
            (
                f"It is not written and compared after {seconds} s of a core."
                if slow
                else f"Its process died ({child.exitcode})."
            ),
        )
    finally:
        child.kill()
        child.join()


def rows(journal: Path) -> Iterator[Row]:
    """Of every module of docs/models.md: those in the journal, then the others, found
    now and written there; small models first.
    """
    journal.touch()
    known: dict[Variant, Row] = {}
    for told in journal.read_text(encoding="utf-8").splitlines():
        try:
            said = json.loads(told)
        except ValueError:
            continue
        variant = Variant(**said["variant"])
        known[variant] = Row(variant, said["off"], said["why"])
    for variant in sorted(
        (variant for variant, _ in listed().values()),
        key=lambda each: (each not in known, each.params),
    ):
        row = known.get(variant)
        if row is None:
            row = limited(variant, SECONDS)
            with journal.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(asdict(row)))
        yield row


def written(found: dict[str, Row]) -> str:
    """The page, of what is found of each module."""
    equal = [row.off for row in found.values() if row.off is not None]
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "timm", "onnxscript", "onnxruntime")
    )
    title = f"""# Which model can be an ONNX file

One small model of each of timm's modules (those of docs/models.md, with noise on their parameters) written as the format `onnx` does, opened, and
compared with torch on four images: 'yes' means that no logit is off by more than {TOLERANCE:g} of the largest one. Of {len(found)} that were tried
{len(equal)} are; the furthest is off by {max(equal, default=0.0):.1g}. 'no' has its reason below. `make exports` writes this page.
It was written with {packages}.
"""
    table, why, left = [f"| {' | '.join(_HEAD)} |", "|" + "---|" * len(_HEAD)], [], []
    for module, (variant, _) in listed().items():
        row = found.get(module)
        table.append(line(variant, "not tried" if row is None else "no" if row.why else "yes"))
        left += [] if row else [module]
        why += [f"- {module}: {row.why}"] if row and row.why else []
    more = (
        ["", "## Not tried", "", f"The command was stopped before: {', '.join(left)}."]
        if left
        else []
    )
    return "\n".join(
        [
            title,
            *table,
            "",
            "## Why not",
            "",
            *(why or ["Every one that was tried is equal."]),
            *more,
            "",
        ]
    )


def line(variant: Variant, answer: str) -> str:
    """Of the table."""
    return (
        f"| {variant.module} | `{variant.name}` | {variant.params:,} | {variant.side} | {answer} |"
    )


def main() -> None:
    """Write the page, and say what is found as it is."""
    found: dict[str, Row] = {}
    for row in rows(JOURNAL):
        found[row.variant.module] = row
        print(
            line(row.variant, "no" if row.why else "yes"), row.why or f"{row.off:.1g}", flush=True
        )
        write_atomically(TABLE, written(found))
    JOURNAL.unlink()


if __name__ == "__main__":
    main()
