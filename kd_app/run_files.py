"""Names of the files in a run's folder and in its export folder."""

from typing import Final

CONFIG: Final = "config.yaml"
RESULTS: Final = "results.json"
PREDICTIONS: Final = "predictions.parquet"
CURVES: Final = "metrics.csv"
STUDENT: Final = "student"
TEACHER: Final = "teacher"
REFERENCE: Final = "reference.json"
"""In the folder `TEACHER`: where the run's teacher is."""
MANIFEST: Final = "manifest.json"
"""In an export folder: what each file is."""
