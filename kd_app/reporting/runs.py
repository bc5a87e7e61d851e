"""Finished runs, read back."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kd_app.config import RequestError, build_unknown_error
from kd_app.config.errors import take_first_line
from kd_app.models.weights_metadata import hash_weights
from kd_app.reporting.examples import EXAMPLES
from kd_app.reporting.predictions import write_predictions
from kd_app.reporting.results import Results, read
from kd_app.reporting.teacher_reference import read_teacher_reference
from kd_app.run_files import CURVES, PREDICTIONS, REFERENCE, RESULTS, STUDENT, TEACHER
from kd_app.stages import write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import nn

__all__ = ["Run", "find_runs", "load_run", "load_runs", "write_curves", "write_predictions"]


@dataclass(frozen=True)
class Run:
    """One run's folder: its results, and what else is there, read when it is asked for."""

    path: Path
    results: Results

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, every default spelled out."""
        return self.results.config

    @cached_property
    def predictions(self) -> "DataFrame":
        """One row an image: index, file, target, group where the data have some, and
        per model <model>_top1, <model>_top1_probability, <model>_target_probability.
        """
        import pandas as pd

        return pd.read_parquet(self._require_file(PREDICTIONS))

    def read_confusion(self, model: str = "student") -> "DataFrame":
        """How often images of each class (row) were taken for each class (column) by
        `model`, in numbers of images.

        Raises `RequestError` for a model that the run has not.
        """
        import pandas as pd

        from kd_app.metrics.per_class import count_confusions

        column, classes = f"{model}_top1", self.results.data.classes if self.results.data else []
        if column not in self.predictions:
            raise build_unknown_error(
                "model of this run",
                model,
                [
                    str(name).removesuffix("_top1")
                    for name in self.predictions
                    if str(name).endswith("_top1")
                ],
            )
        predicted, target = (
            self.predictions[name].to_numpy(np.int64) for name in (column, "target")
        )
        return pd.DataFrame(
            count_confusions(predicted, target, len(classes)),
            index=pd.Index(classes, name="label"),
            columns=pd.Index(classes, name=column),
        )

    @cached_property
    def examples(self) -> "DataFrame":
        """Images to look at, a list for each `why` (an image may be in several):
        negative_flip, positive_flip, most_different, similar_pair, typical.

        Columns: index, file, target, why, classes (up to 5 numbers: the label's first,
        of a similar pair the other one second), png (bytes of at most 96 pixels a side,
        None where the data can't give them), divergence (KL(teacher || student), nats),
        and per model <model>_top1 and <model>_probabilities (of `classes`). Raises
        `RequestError` where there are none: the run was made with ``examples=0``.
        """
        import pandas as pd

        if self.results.status == "finished" and not (self.path / EXAMPLES).exists():
            raise RequestError(
                f"The run {str(self.path)!r} has no {EXAMPLES}: it was made with examples=0."
            )
        return pd.read_parquet(self._require_file(EXAMPLES))

    @cached_property
    def curves(self) -> "DataFrame":
        """One row a logged point: stage (teacher, labels_only, student ...), epoch,
        step, and a column a metric, NaN where it was not logged.
        """
        import pandas as pd

        return pd.read_csv(self._require_file(CURVES))

    def load_student(self) -> "nn.Module":
        """The student that ships, with its weights, in eval mode, as timm loads it."""
        return _load_model(self._require_file(STUDENT))

    def load_teacher(self) -> "nn.Module":
        """The teacher that this run learned from, with its weights, in eval mode, as
        timm loads it from the folder that it was kept in.

        Raises `RequestError`: the run has no teacher, or one that came by name or from
        a file; its folder is gone, or holds other weights by now.
        """
        if self.results.status == "finished" and "teacher" not in self.results.models:
            raise RequestError(
                f"The run {str(self.path)!r} has no teacher: it was trained on the labels alone."
            )
        reference = read_teacher_reference(self._require_file(f"{TEACHER}/{REFERENCE}").parent)
        folder = reference.path
        if folder is None or folder.is_file():
            raise RequestError(
                f"The run {str(self.path)!r} did not keep its teacher in a folder:"
                f" {reference.name} came from {reference.source}. Make it as the run did, with"
                " timm.create_model or your own factory."
            )
        weights = folder / "model.safetensors"
        if not weights.is_file() or hash_weights(weights) != reference.sha256:
            what = (
                "holds other weights now"
                if weights.is_file()
                else f"is not there, seen from {str(Path.cwd())!r}"
            )
            raise RequestError(
                f"The teacher {reference.name} of the run {str(self.path)!r} was in {str(folder)!r}, which"
                f" {what}. Read the run from the folder it was made in; if the teacher was removed,"
                " run the same command again with overwrite=true."
            )
        return _load_model(folder)

    def _require_file(self, name: str) -> Path:
        path = self.path / name
        if not path.exists():
            raise RequestError(
                f"The run {str(self.path)!r} has no {name}: its status is {self.results.status!r}."
                " Run the same command again to let it go on."
            )
        return path


def _load_model(folder: Path) -> "nn.Module":
    import timm
    from safetensors import SafetensorError

    import kd_app.models.small  # noqa: F401

    try:
        model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        reason = take_first_line(error)[:200]
        raise RequestError(
            f"The model in {str(folder)!r} can't be loaded: {reason} Expected the folder as"
            " kd-distill left it."
        ) from None
    return model


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read the run in the folder `path`. Raises `RequestError` where there is none, or
    its ``results.json`` can't be read.
    """
    folder = Path(path)
    return Run(folder, read(folder / RESULTS))


def load_runs(folder: str | os.PathLike[str]) -> "DataFrame":
    """All runs in and below `folder`, sorted by path: one row a run, dotted columns as
    in ``results.json`` ('test.student.top1', 'config.seed').

    Stages, and all else in hidden folders, are no runs. A run whose ``results.json``
    can't be read has status 'unreadable' and the `reason`. Raises `RequestError` where
    `folder` is none.
    """
    import pandas as pd

    root = Path(folder)
    if not root.is_dir():
        raise RequestError(f"There is no folder {str(root)!r} to look for runs in.")
    rows = [_read_row(path) for path in sorted(_run_folders(root))]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["path", "status"])


def find_runs(places: Sequence[str]) -> list[Path]:
    """The folders of the runs at, or below, these places, each once; ``*`` and ``?`` in
    a place stand for any signs.

    Raises `RequestError`: a place is not there, or holds no run.
    """
    found: dict[Path, Path] = {}
    for place in places:
        folders = (
            [Path(place)] if Path(place).exists() else [Path(each) for each in sorted(glob(place))]
        )
        if not folders:
            raise RequestError(
                f"There is no {place!r} to look for runs in, seen from {str(Path.cwd())!r}. Name"
                " the folder of a run or of a sweep."
            )
        runs = [run for folder in folders for run in sorted(_run_folders(folder))]
        if not runs:
            raise RequestError(
                f"There is no run in {place!r}: no folder there holds a {RESULTS}. Name the folder"
                " of a run or of a sweep."
            )
        found |= {run.resolve(): run for run in runs if run.resolve() not in found}
    return list(found.values())


def _run_folders(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        if RESULTS in files:
            yield Path(folder)


def _read_row(path: Path) -> dict[str, Any]:
    try:
        results = read(path / RESULTS)
    except RequestError as error:
        return {"path": str(path), "status": "unreadable", "reason": str(error)}
    return {"path": str(path), **dict(flatten(results.model_dump(mode="json")))}


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``(dotted key, value)`` of every leaf of nested mappings; an empty mapping is a
    leaf.
    """
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def write_curves(path: Path, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Write ``metrics.csv`` from the points that each stage logged: columns stage,
    epoch, step, then the metrics, empty where not logged.
    """
    metrics = {name for points in curves.values() for point in points for name in point} - {
        "epoch",
        "step",
    }
    text = io.StringIO()
    writer = csv.DictWriter(text, ["stage", "epoch", "step", *sorted(metrics)], lineterminator="\n")
    writer.writeheader()
    for stage, points in curves.items():
        writer.writerows({"stage": stage, **point} for point in points)
    write_atomically(path, text.getvalue())
