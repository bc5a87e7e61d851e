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
    check_neighbors(neighbors, len(files))
    if neighbors is not None:
        near = find_neighbors(embeddings, embeddings, neighbors, is_same=True)
        names = np.array(files, dtype=object)
        for place in range(neighbors):
            columns[f"neighbor_{place + 1}"] = names[near.rows[:, place]]
            columns[f"similarity_{place + 1}"] = near.similarity[:, place]
    return pd.DataFrame(columns)


def check_neighbors(neighbors: int | None, num_images: int) -> None:
    """Raise `RequestError` for too few images to have that many neighbors."""
    if neighbors is None or neighbors < num_images:
        return
    fix = f"set at most neighbors={num_images - 1}" if num_images > 1 else "remove neighbors"
    raise RequestError(
        f"neighbors={neighbors}, and there are {num_images} image(s), of which none is its own"
        f" neighbor. Name more images, or {fix}."
    )


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
