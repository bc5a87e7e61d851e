"""The images to look at, with what each model said of them, as a table."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int64

if TYPE_CHECKING:
    from kd_app.metrics.examples import Example

EXAMPLES = "examples.parquet"


def write_examples(
    path: Path,
    examples: "Sequence[Example]",
    *,
    index: Int64[np.ndarray, " images"],
    file: Sequence[str],
    target: Int64[np.ndarray, " images"],
    logits: Mapping[str, Float[np.ndarray, "images classes"]],
    png: Sequence[bytes | None],
) -> None:
    """Write ``examples.parquet``; `file` and `png` belong to the examples, the arrays
    to all images.

    Columns: index, file, target, why, classes (numbers, the label's first), png (bytes,
    null where the data can't give it), divergence (KL(teacher || student), nats; null
    without a teacher), and for each model <model>_top1 and <model>_probabilities (of
    `classes`, in their order).
    """
    import pyarrow as pa
    from pyarrow import parquet

    rows, classes = [each.row for each in examples], [each.classes for each in examples]
    columns = {
        "index": pa.array(index[rows], pa.int64()),
        "file": pa.array(file, pa.string()),
        "target": pa.array(target[rows], pa.int64()),
        "why": pa.array([each.why for each in examples], pa.string()),
        "classes": pa.array(classes, pa.list_(pa.int64())),
        "png": pa.array(png, pa.binary()),
        "divergence": pa.array([each.divergence for each in examples], pa.float64()),
    }
    for model, each in logits.items():
        columns[f"{model}_top1"] = pa.array(each[rows].argmax(axis=1), pa.int64())
        columns[f"{model}_probabilities"] = pa.array(
            list(map(_compute_probabilities, each[rows], classes)), pa.list_(pa.float32())
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    parquet.write_table(pa.table(columns), partial)
    os.replace(partial, path)


def _compute_probabilities(
    logits: Float[np.ndarray, " classes"], classes: Sequence[int]
) -> list[float]:
    p = np.exp(logits.astype(np.float64) - logits.max())
    found: list[float] = (p / p.sum())[list(classes)].tolist()
    return found
