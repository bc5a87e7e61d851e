"""``examples.parquet``: informative images with the predictions of each model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int64

from kd_app.files import replace_file

if TYPE_CHECKING:
    from kd_app.metrics.examples import ExampleRow


def write_examples(
    path: Path,
    examples: "Sequence[ExampleRow]",
    *,
    index: Int64[np.ndarray, " images"],
    file: Sequence[str],
    target: Int64[np.ndarray, " images"],
    logits: Mapping[str, Float[np.ndarray, "images classes"]],
    png: Sequence[bytes | None],
) -> None:
    """Write ``examples.parquet``, one row per example.

    `file` and `png` have one entry per example; `index`, `target` and `logits` cover
    all images. Columns: index, file, target, why, classes (numbers, the label first),
    png (bytes, null if the data provide no thumbnail), divergence
    (KL(teacher || student), nats; null without a teacher), and per model <model>_top1
    and <model>_probabilities (of `classes`, in the same order).
    """
    import pyarrow as pa
    from pyarrow import parquet

    rows = [example.row for example in examples]
    classes = [example.classes for example in examples]
    columns = {
        "index": pa.array(index[rows], pa.int64()),
        "file": pa.array(file, pa.string()),
        "target": pa.array(target[rows], pa.int64()),
        "why": pa.array([example.why for example in examples], pa.string()),
        "classes": pa.array(classes, pa.list_(pa.int64())),
        "png": pa.array(png, pa.binary()),
        "divergence": pa.array([example.divergence for example in examples], pa.float64()),
    }
    for model, each in logits.items():
        columns[f"{model}_top1"] = pa.array(each[rows].argmax(axis=1), pa.int64())
        columns[f"{model}_probabilities"] = pa.array(
            list(map(_compute_probabilities, each[rows], classes)), pa.list_(pa.float32())
        )
    with replace_file(path) as table:
        parquet.write_table(pa.table(columns), table)


def _compute_probabilities(
    logits: Float[np.ndarray, " classes"], classes: Sequence[int]
) -> list[float]:
    p = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: list[float] = (p / p.sum())[list(classes)].tolist()
    return probabilities
