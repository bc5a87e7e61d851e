"""Tables of embeddings, and of the nearest images."""

from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from jaxtyping import Float

from kd_app.config import RequestError
from kd_app.metrics.neighbors import find_neighbors


def build_embedding_table(
    files: Sequence[str], embeddings: Float[np.ndarray, "images width"], neighbors: int | None
) -> Any:
    """Return a table with a row for each image: file, embedding (of length 1), and for
    each of the nearest `neighbors` other images neighbor_1, similarity_1 (cosine) ...

    Raises `RequestError` if there are too few images.
    """
    import pandas as pd

    columns: dict[str, Any] = {"file": list(files), "embedding": list(embeddings)}
    if neighbors is not None:
        if neighbors >= len(files):
            raise RequestError(
                f"neighbors={neighbors}, and there are {len(files)} images, of which none is its"
                f" own neighbor. Expected: at most neighbors={len(files) - 1}. Name more images, or"
                " lower neighbors."
            )
        near = find_neighbors(embeddings, embeddings, neighbors, is_same=True)
        names = np.array(files, dtype=object)
        for place in range(neighbors):
            columns[f"neighbor_{place + 1}"] = names[near.rows[:, place]]
            columns[f"similarity_{place + 1}"] = near.similarity[:, place]
    return pd.DataFrame(columns)


def write_arrays(table: Any, file: IO[bytes]) -> None:
    """Write a table of embeddings as numpy arrays: files, embeddings ``[N, D]``, and
    with neighbors their files ``neighbors [N, k]`` and cosines ``similarities [N, k]``.
    """
    arrays = {
        "files": table["file"].to_numpy(dtype=str),
        "embeddings": np.stack(table["embedding"].to_list()),
    }
    parts = {"neighbor": ("neighbors", str), "similarity": ("similarities", np.float32)}
    for name, (key, kind) in parts.items():
        columns = [column for column in table.columns if column.startswith(f"{name}_")]
        if columns:
            arrays[key] = table[columns].to_numpy(dtype=kind)
    np.savez(file, **arrays)
