"""Loss terms for ``task=embedding`` on a folder with classes, which only judge: overlap
with the teacher's neighbors, k-NN purity, and the gap that is closed.

``python -m benchmarks.label_free <folder> --teacher <model folder> --folder <outputs>``
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.headline import run_command
from kd_app.reporting.embedding_results import Bounded
from kd_app.reporting.results import read
from kd_app.run_files import RESULTS

CANDIDATES: Final[Mapping[str, Sequence[str]]] = {
    "embedding_cosine": ("loss=[embedding_cosine]",),
    "embedding_mse": ("loss=[embedding_mse]",),
    "simple_recipe": ("loss=[simple_recipe]",),
    "pkt": ("loss=[pkt]", "loss.pkt.weight=1000"),
    "rkd": ("loss=[rkd]",),
    "sp": ("loss=[sp]",),
    "seed_queue": ("loss=[seed_queue]", "loss.seed_queue.size=512"),
    "embedding_cosine + pkt": ("loss=[embedding_cosine,pkt]", "loss.pkt.weight=1000"),
}
"""Name -> overrides."""
_METRICS: Final = ("overlap", "purity")


def main() -> None:
    """Run the candidates and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=Path, help="a folder with a folder per class")
    parser.add_argument("--teacher", type=Path, required=True, help="a model folder of timm")
    parser.add_argument("--folder", type=Path, default=Path("runs/label-free"))
    parser.add_argument("--only", default=",".join(CANDIDATES), help="names, by comma")
    parser.add_argument("overrides", nargs="*", help="further settings of kd-distill")
    arguments = parser.parse_intermixed_args()
    heads = [f"{name}{end}" for name in _METRICS for end in ("", " gap closed")]
    print("| loss | ships | " + " | ".join(heads) + " |")
    print("|---" * (2 + len(heads)) + "|")
    for name in arguments.only.split(","):
        out = arguments.folder / name.replace(" + ", "-")
        settings = (
            "data=folder",
            "task=embedding",
            f"data.root={arguments.images}",
            f"teacher.checkpoint={arguments.teacher}",
            f"out={out}",
            f"stages={arguments.folder / 'stages'}",
        )
        run_command("distill", [*settings, *CANDIDATES[name], *arguments.overrides])
        print(write_row(name, out), flush=True)


def write_row(name: str, out: Path) -> str:
    """One row of the table, from the results of a run."""
    record = read(out / RESULTS).embedding
    last = record.last if record else None
    assert record is not None
    assert last is not None
    split = last[1]
    cells = []
    for metric in _METRICS:
        cells.append(_format(getattr(split.models["student"], metric)))
        cells.append(_format(split.gap_closed.get(metric)))
    return "| " + " | ".join([name, record.ships, *cells]) + " |"


def _format(value: Bounded | None) -> str:
    if value is None or value.value is None:
        return ""
    bounds = ""
    if value.low is not None and value.high is not None:
        bounds = f" ({100 * value.low:.1f} to {100 * value.high:.1f})"
    return f"{100 * value.value:.1f}{bounds}"


if __name__ == "__main__":
    main()
