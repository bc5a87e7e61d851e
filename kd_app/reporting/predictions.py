"""What every model answered to every image, as a table."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

_VALUES = 2**22


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
    """Write ``predictions.parquet``: index, file, target, group where the data have
    some, of a cascade the stage that answered, and for each model <model>_top1,
    <model>_top1_probability, <model>_target_probability.
    """
    import pandas as pd

    columns = {"index": index, "file": list(file), "target": target} | (
        {} if group is None else {"group": list(group)}
    )
    columns |= {} if stage is None else {"stage": stage}
    for model, each in logits.items():
        columns |= {
            f"{model}_{name}": column for name, column in _build_columns(each, target).items()
        }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    pd.DataFrame(columns).to_parquet(partial, index=False)
    os.replace(partial, path)


def _build_columns(
    logits: Float[np.ndarray, "images classes"], target: Int64[np.ndarray, " images"]
) -> dict[str, np.ndarray]:
    top1 = logits.argmax(axis=1)
    best, label = np.empty(len(top1), np.float32), np.empty(len(top1), np.float32)
    block = max(1, _VALUES // max(1, logits.shape[1]))
    for start in range(0, len(top1), block):
        rows = slice(start, start + block)
        z = logits[rows].astype(np.float32)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        number = np.arange(len(p))
        best[rows], label[rows] = p[number, top1[rows]], p[number, target[rows]]
    return {"top1": top1, "top1_probability": best, "target_probability": label}
