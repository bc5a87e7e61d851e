"""Which of timm's modules can be ONNX files, one small model each. ``python -m benchmarks.exports``, or ``make exports``, writes docs/exports.md"""

import json
import multiprocessing
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.models import listed, noised
from benchmarks.variants import CLASSES, Variant
from kd_app.config import Pixels, RunError
from kd_app.deployment.export import export
from kd_app.deployment.formats.onnx import Onnx
from kd_app.deployment.manifest import read_manifest

TABLE = Path(__file__).parents[1] / "docs" / "exports.md"
JOURNAL = TABLE.with_name(".exports.jsonl")
"""What is found, a line each: said again, the command goes on from here."""
OPSET, TOLERANCE = 18, 0.001
"""As conf/formats/onnx.yaml has them."""
SECONDS = 300
"""So long may a model take."""
_HEAD = ("module", "variant", "parameters", "pixels", "ONNX")
_LENGTH = 160


@dataclass(frozen=True)
class Row:
    """A line of the table; `off` is how far its file is from torch, `why` why there is none that equals it: one of the two is there."""

    variant: Variant
    off: float | None
    why: str | None

    def line(self) -> str:
        """In Markdown."""
        known = self.variant
        cells = (known.module, f"`{known.name}`", f"{known.params:,}", str(known.side), "no" if self.why else "yes")
        return f"| {' | '.join(cells)} |"


def prove(variant: Variant) -> Row:
    """Write a variant's model as `Onnx` does for anyone, open the file as anyone does, and compare its logits of four images of noise."""
    pixels = Pixels(3, variant.side, variant.side, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    images = np.random.default_rng(0).integers(0, 256, (4, 3, variant.side, variant.side), dtype=np.uint8)
    classes = [str(number) for number in range(CLASSES)]
    form = Onnx(opset=OPSET, tolerance=TOLERANCE)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = export(
                noised(variant), form, Path(folder), stem="model", pixels=pixels, classes=classes, license="none", calibration=[], images=images
            )
        except RunError as error:
            return Row(variant, None, " ".join(str(error).split())[:_LENGTH])
        return Row(variant, read_manifest(path.parent)["files"][path.name]["largest_difference"], None)


def _prove_there(variant: Variant, answer: Connection) -> None:
    answer.send(prove(variant))


def limited(variant: Variant, seconds: float) -> Row:
    """`prove` in a process of its own: one that does not come to an end, or dies, is a 'no', too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.models", "kd_app.deployment.formats.onnx", "onnx", "onnxscript", "onnxruntime"])
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_prove_there, args=(variant, there))
    child.start()
    there.close()
    try:
        if not here.poll(seconds):
            return Row(variant, None, f"It is not written and compared after {seconds:g} s.")
        found: Row = here.recv()
        return found
    except EOFError:
        child.join()
        return Row(variant, None, f"Its process died ({child.exitcode}).")
    finally:
        child.kill()
        child.join()


def rows(journal: Path) -> Iterator[Row]:
    """Of every module of docs/models.md, in its order: from the journal, or found now and written there. A line that is cut off is found anew."""
    journal.touch()
    known: dict[str, Row] = {}
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue
        row = Row(Variant(**told["variant"]), told["off"], told["why"])
        known[row.variant.module] = row
    for module, (variant, _) in listed().items():
        if module not in known or known[module].variant != variant:
            known[module] = limited(variant, SECONDS)
            with journal.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(asdict(known[module])))
        yield known[module]


def written(found: list[Row]) -> str:
    """The page."""
    equal = [row.off for row in found if row.off is not None]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "onnxscript", "onnxruntime"))
    title = f"""# Which model can be an ONNX file

One small model of each of timm's modules (those of docs/models.md, with noise on their parameters) written as the format `onnx` does, opened, and
compared with torch on four images: 'yes' means that no logit is off by more than {TOLERANCE:g} of the largest one. {len(equal)} of {len(found)} are;
the furthest is off by {max(equal, default=0.0):.1g}. 'no' has its reason below. `make exports` writes this page; it was written with {packages}.
"""
    table = [f"| {' | '.join(_HEAD)} |", "|" + "---|" * len(_HEAD), *(row.line() for row in found)]
    why = [f"- {row.variant.module}: {row.why}" for row in found if row.why] or ["Every one is equal."]
    return "\n".join([title, *table, "", "## Why not", "", *why, ""])


def main() -> None:
    """Write the page, and say what is found as it is."""
    found = []
    for row in rows(JOURNAL):
        print(row.line(), row.why or f"{row.off:.1g}", flush=True)
        found.append(row)
    TABLE.write_text(written(found), encoding="utf-8")
    JOURNAL.unlink()


if __name__ == "__main__":
    main()
