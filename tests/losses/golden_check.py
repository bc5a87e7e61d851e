"""``python -m tests.losses.golden_check FOLDER``: compare the terms with a folder of
reference values. Each case is reported as passed, off, or not built.

The exit code is 1 if a case is off, 2 if the folder has no reference values.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.losses.golden_cases import CASES, DEVIATIONS
from tests.losses.golden_result import Arrays, Case, GoldenResult
from tests.losses.samples import gradient, leaf

TOLERANCE = 1e-7
_SMALLEST = 1e-8
"""Values below count as rounding: TOLERANCE * _SMALLEST is 1e-15 in absolute terms."""


class Golden:
    """A folder of reference values: ``index.json``, ``inputs.npz`` and one file per
    case.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, dict[str, Any]] = {
            case["id"]: case
            for case in json.loads((folder / "index.json").read_text(encoding="utf-8"))["cases"]
        }

    def read_arrays(self, case: str) -> Arrays:
        """Return the arrays of the case's file; reals as float64."""
        return self._load(case)

    def inputs(self, case: str) -> Arrays:
        """Return the inputs of the case: shared inputs and the student's own inputs,
        reals with gradient, and the arrays of the case's file.
        """
        shared, own, entry = self._load("inputs"), self.read_arrays(case), self.index[case]
        names = entry.get("shared_inputs", ())
        student_inputs = {
            name: leaf(own[f"in/{name}"])
            for name in entry.get("grad_norm", {})
            if name not in names and f"in/{name}" in own
        }
        return (
            own
            | student_inputs
            | {
                name: leaf(shared[name]) if shared[name].is_floating_point() else shared[name]
                for name in names
            }
        )

    def deviations(self, case: str, compare: Case) -> dict[str, float]:
        """Return the relative deviations of value and gradients from the stored ones,
        by name.
        """
        x, expected, entry = self.inputs(case), self.read_arrays(case), self.index[case]
        result = compare(x)
        golden = result if isinstance(result, GoldenResult) else GoldenResult(result)
        off = {
            "loss": _relative(
                golden.value, expected["out/loss"] if "out/loss" in expected else expected["value"]
            )
        }  # a table has no loss
        for name, norm in entry.get("grad_norm", {}).items():
            ours = gradient(golden.value, x[name])
            off[f"norm of grad/{name}"] = _relative(
                ours.norm(), torch.tensor(norm, dtype=torch.float64)
            )
            if f"grad/{name}" in expected:
                off[f"grad/{name}"] = _relative(
                    ours[expected["rows"]] if "rows" in expected else ours, expected[f"grad/{name}"]
                )
        for name, parameter in golden.parameters.items():
            ours = gradient(golden.value, parameter)
            if name in entry.get("param_grad_norm", {}):
                norm = torch.tensor(entry["param_grad_norm"][name], dtype=torch.float64)
                off[f"norm of gradp/{name}"] = _relative(ours.norm(), norm)
            if f"gradp/{name}" in expected:
                off[f"gradp/{name}"] = _relative(ours, expected[f"gradp/{name}"])
        return off

    def _load(self, name: str) -> Arrays:
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files}
        return {key: x.double() if x.is_floating_point() else x for key, x in arrays.items()}


def _relative(ours: Tensor, stored: Tensor) -> float:
    """Return the largest relative difference of an element; infinite for NaN and for
    different shapes.
    """
    if ours.shape != stored.shape:
        return float("inf")
    off = ((ours.detach() - stored).abs() / (stored.abs() + _SMALLEST)).max().item()
    return float("inf") if math.isnan(off) else off


def _worst(folder: Golden, case: str, compare: Case) -> tuple[str, float]:
    """Return the name and size of the largest deviation, or the error and infinity if
    the case can't be compared.
    """
    try:
        off = folder.deviations(case, compare)
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}", float("inf")
    return max(off.items(), key=lambda item: item[1])


def report(folder: Golden) -> tuple[list[str], bool]:
    """Return one line per case, a line of counts, and whether a case is off."""
    built = CASES | DEVIATIONS
    lines, counts = [], dict.fromkeys(("passed", "off", "not built"), 0)
    for case in folder.index:
        verdict, detail = "not built", ""
        if case in built:
            name, worst = _worst(folder, case, built[case])
            verdict = "passed" if worst <= TOLERANCE else "off"
            detail = f"  {worst:.1e} ({name})" + (
                "  [the reference differs from the term, as listed]" if case in DEVIATIONS else ""
            )
        counts[verdict] += 1
        lines.append(f"{case:36} {verdict}{detail}")
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return lines, counts["off"] > 0


def main(arguments: list[str]) -> int:
    """Print the report on the folder in `arguments`."""
    if len(arguments) != 1 or not (Path(arguments[0]) / "index.json").is_file():
        print(
            f"Expected one folder with an index.json of reference values, got {arguments}. Run make"
            " golden GOLDEN=<folder>.",
            file=sys.stderr,
        )
        return 2
    lines, off = report(Golden(Path(arguments[0])))
    print("\n".join(lines))
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
