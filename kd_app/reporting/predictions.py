"""``predictions.parquet``: the predictions of every model for every image."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from kd_app.files import replace_file
from kd_app.metrics.blocks import slice_rows


def write_predictions(
    path: Path,
    *,
    index: Int64[np.ndarray, " images"],
    file: Sequence[str],
    target: Int64[np.ndarray, " images"],
    logits: Mapping[str, Float[np.ndarray, "images classes"]],
    group: Sequence[str] | None = None,
    stage: Int64[np.ndarray, " images"] | None = None,
) -> None:
    """Write ``predictions.parquet``, one row per image.

    Columns: index, file, target, group (if the data have groups), stage (of a cascade:
    the stage that classified the image), and per model <model>_top1,
    <model>_top1_probability, <model>_target_probability.
    """
    import pandas as pd

    columns = {"index": index, "file": list(file), "target": target}
    if group is not None:
        columns["group"] = list(group)
    if stage is not None:
        columns["stage"] = stage
    for model, each in logits.items():
        for name, column in _build_columns(each, target).items():
            columns[f"{model}_{name}"] = column
    with replace_file(path) as table:
        pd.DataFrame(columns).to_parquet(table, index=False)


def _build_columns(
    logits: Float[np.ndarray, "images classes"], target: Int64[np.ndarray, " images"]
) -> dict[str, np.ndarray]:
    top1 = logits.argmax(axis=1)
    of_top1, of_target = np.empty(len(top1), np.float32), np.empty(len(top1), np.float32)
    for rows in slice_rows(logits):
        z = logits[rows].astype(np.float32)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        row = np.arange(len(p))
        of_top1[rows], of_target[rows] = p[row, top1[rows]], p[row, target[rows]]
    return {"top1": top1, "top1_probability": of_top1, "target_probability": of_target}
