"""``python -m tests.losses.golden_check FOLDER``: each case of a folder of reference
values passed, off by how much, or not built.

The exit code is 1 when a case is off, 2 when the folder is none.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.losses.golden_answers import Answer, Arrays, Case
from tests.losses.golden_cases import CASES, DEVIATIONS
from tests.losses.samples import gradient, leaf

TOLERANCE = 1e-7
_SMALLEST = (
    1e-8  # what is below it counts as rounding: TOLERANCE * _SMALLEST = 1e-15 in absolute terms
)


class Golden:
    """A folder of reference values: ``index.json``, ``inputs.npz`` and one file a case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, dict[str, Any]] = {
            case["id"]: case
            for case in json.loads((folder / "index.json").read_text(encoding="utf-8"))["cases"]
        }

    def stored(self, case: str) -> Arrays:
        """The arrays of the case's file; reals as float64."""
        return self._load(case)

    def inputs(self, case: str) -> Arrays:
        """What the case is given: shared inputs and those of its own that the student
        gives, reals with gradient, and its own arrays.
        """
        shared, own, entry = self._load("inputs"), self.stored(case), self.index[case]
        names = entry.get("shared_inputs", ())
        taught = {
            name: leaf(own[f"in/{name}"])
            for name in entry.get("grad_norm", {})
            if name not in names and f"in/{name}" in own
        }
        return (
            own
            | taught
            | {
                name: leaf(shared[name]) if shared[name].is_floating_point() else shared[name]
                for name in names
            }
        )

    def deviations(self, case: str, compare: Case) -> dict[str, float]:
        """How far value and gradients are from the stored ones, relative to these, by
        name.
        """
        x, stored, entry = self.inputs(case), self.stored(case), self.index[case]
        found = compare(x)
        answer = found if isinstance(found, Answer) else Answer(found)
        off = {
            "loss": _relative(
                answer.value, stored["out/loss"] if "out/loss" in stored else stored["value"]
            )
        }  # a table has no loss
        for name, norm in entry.get("grad_norm", {}).items():
            ours = gradient(answer.value, x[name])
            off[f"norm of grad/{name}"] = _relative(
                ours.norm(), torch.tensor(norm, dtype=torch.float64)
            )
            if f"grad/{name}" in stored:
                off[f"grad/{name}"] = _relative(
                    ours[stored["rows"]] if "rows" in stored else ours, stored[f"grad/{name}"]
                )
        for name, parameter in answer.parameters.items():
            ours = gradient(answer.value, parameter)
            if name in entry.get("param_grad_norm", {}):
                norm = torch.tensor(entry["param_grad_norm"][name], dtype=torch.float64)
                off[f"norm of gradp/{name}"] = _relative(ours.norm(), norm)
            if f"gradp/{name}" in stored:
                off[f"gradp/{name}"] = _relative(ours, stored[f"gradp/{name}"])
        return off

    def _load(self, name: str) -> Arrays:
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files}
        return {key: x.double() if x.is_floating_point() else x for key, x in arrays.items()}


def _relative(ours: Tensor, stored: Tensor) -> float:
    """The largest relative difference of an element; infinite where it is no number or
    the shapes differ.
    """
    if ours.shape != stored.shape:
        return float("inf")
    off = ((ours.detach() - stored).abs() / (stored.abs() + _SMALLEST)).max().item()
    return float("inf") if math.isnan(off) else off


def _worst(golden: Golden, case: str, compare: Case) -> tuple[str, float]:
    """The name and the size of the largest deviation; infinite where the case cannot be
    compared, by what is wrong.
    """
    try:
        off = golden.deviations(case, compare)
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}", float("inf")
    return max(off.items(), key=lambda item: item[1])


def report(golden: Golden) -> tuple[list[str], bool]:
    """One line a case, a line of counts, and whether one is off."""
    built = CASES | DEVIATIONS
    lines, counts = [], dict.fromkeys(("passed", "off", "not built"), 0)
    for case in golden.index:
        verdict, detail = "not built", ""
        if case in built:
            name, worst = _worst(golden, case, built[case])
            verdict = "passed" if worst <= TOLERANCE else "off"
            detail = f"  {worst:.1e} ({name})" + (
                "  [the reference differs from the term, as named]" if case in DEVIATIONS else ""
            )
        counts[verdict] += 1
        lines.append(f"{case:36} {verdict}{detail}")
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return lines, counts["off"] > 0


def main(arguments: list[str]) -> int:
    """Print the report on the folder that is the one argument."""
    if len(arguments) != 1 or not (Path(arguments[0]) / "index.json").is_file():
        print(
            f"Expected one folder with an index.json of reference values, got {arguments}: make"
            " golden GOLDEN=<folder>",
            file=sys.stderr,
        )
        return 2
    lines, off = report(Golden(Path(arguments[0])))
    print("\n".join(lines))
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
