"""File names in a run's folder and in an export folder."""

from typing import Final

CONFIG: Final = "config.yaml"
RESULTS: Final = "results.json"
PREDICTIONS: Final = "predictions.parquet"
INPUTS: Final = "inputs.json"
SPLIT: Final = "split.csv"
CURVES: Final = "metrics.csv"
EXAMPLES: Final = "examples.parquet"
NEIGHBORS: Final = "neighbors.parquet"
EMBEDDING_MAP: Final = "embedding_map.parquet"
EXPORT: Final = "export"
STUDENT: Final = "student"
TEACHER: Final = "teacher"
REFERENCE: Final = "reference.json"
"""In the folder `TEACHER`: the location of the run's teacher."""
MOMENTS: Final = "moments.json"
"""In the folder `TEACHER`: what the embeddings of several teachers are scaled by."""
FILES: Final = (
    *(CONFIG, RESULTS, PREDICTIONS, INPUTS, SPLIT, CURVES),
    *(EXAMPLES, NEIGHBORS, EMBEDDING_MAP),
)
"""The files in a run's folder."""
READ: Final = (*FILES, STUDENT, TEACHER, EXPORT)
"""The files and folders that are read from a run's folder."""
MANIFEST: Final = "manifest.json"
"""In an export folder: a description of each file."""
CASCADE: Final = "cascade.json"
"""A cascade of models that kd-evaluate chose."""
