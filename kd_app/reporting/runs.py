"""Reading of run folders: one run, or a table of many."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kd_app.config import RequestError, build_unknown_error
from kd_app.config.errors import take_first_line
from kd_app.config.links import check_links
from kd_app.config.recorded_files import check_recorded
from kd_app.config.records import parse_with
from kd_app.models.weights_metadata import hash_weights
from kd_app.reporting.predictions import write_predictions
from kd_app.reporting.refusals import FOLDER as REFUSED
from kd_app.reporting.refusals import TrialRefusedError, list_refusals, read_refusal
from kd_app.reporting.results import Results, read
from kd_app.reporting.teacher_reference import read_teacher_reference
from kd_app.run_files import CURVES, EXAMPLES, PREDICTIONS, REFERENCE, RESULTS, STUDENT, TEACHER
from kd_app.stages import write_atomically

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import nn

__all__ = ["Run", "find_runs", "load_run", "load_runs", "write_curves", "write_predictions"]


_REWRITE = "Run the same command again to rewrite the file."


@dataclass(frozen=True)
class Run:
    """A run's folder: its results, and further files that are read on first use."""

    path: Path
    results: Results

    @property
    def config(self) -> dict[str, Any]:
        """The complete configuration, including defaults."""
        return self.results.config

    @cached_property
    def predictions(self) -> "DataFrame":
        """One row per image: index, file, target, group (if the data have groups), and
        per model <model>_top1, <model>_top1_probability, <model>_target_probability.
        """
        import pandas as pd

        path = self.find_file(PREDICTIONS)
        return parse_with(path, lambda: pd.read_parquet(path), expected=_REWRITE)

    def read_confusion(self, model: str = "student") -> "DataFrame":
        """The confusion matrix of `model`: number of images by label (rows) and top-1
        class (columns); sparse, which makes many classes possible.

        Raises `RequestError` if the run has no such model.
        """
        import pandas as pd

        from kd_app.metrics.per_class import count_confusions

        column, classes = f"{model}_top1", self.results.data.classes if self.results.data else []
        images = self.predictions
        if column not in images:
            columns = [str(name) for name in images if str(name).endswith("_top1")]
            models = [name.removesuffix("_top1") for name in columns]
            raise build_unknown_error("model of this run", model, models)
        predicted, target = (images[name].to_numpy(np.int64) for name in (column, "target"))
        confusions = count_confusions(predicted, target, len(classes))
        table: DataFrame = pd.DataFrame.sparse.from_spmatrix(  # type: ignore[attr-defined]
            confusions, pd.Index(classes, name="label"), pd.Index(classes, name=column)
        )
        return table

    @cached_property
    def examples(self) -> "DataFrame":
        """Informative images, grouped by `why` (an image may be in several groups):
        negative_flip, positive_flip, most_different, similar_pair, typical.

        Columns: index, file, target, why, classes (up to 5 numbers: the label first,
        the other class of a similar pair second), png (bytes, at most 96 pixels a side;
        None if the data provide no thumbnail), divergence (KL(teacher || student),
        nats), and per model <model>_top1 and <model>_probabilities (of `classes`).

        Raises `RequestError` if the run has none, because of ``examples=0``.
        """
        import pandas as pd

        if self.results.status == "finished" and not (self.path / EXAMPLES).exists():
            raise RequestError(
                f"The run {str(self.path)!r} has no {EXAMPLES}: its configuration sets examples=0."
            )
        path = self.find_file(EXAMPLES)
        return parse_with(path, lambda: pd.read_parquet(path), expected=_REWRITE)

    @cached_property
    def curves(self) -> "DataFrame":
        """One row per logged point: stage (teacher, labels_only, student ...), epoch,
        step, and one column per metric, NaN if not logged.
        """
        import pandas as pd

        path = self.find_file(CURVES)
        return parse_with(path, lambda: pd.read_csv(path), expected=_REWRITE)

    def load_student(self) -> "nn.Module":
        """Load the shipped student with timm, in eval mode."""
        return _load_model(self.find_file(STUDENT))

    def load_teacher(self) -> "nn.Module":
        """Load the teacher of this run with timm, in eval mode.

        Raises `RequestError` if the run has no teacher, if the teacher is not stored in
        a folder (a timm name, a file), or if the folder is missing or has changed.
        """
        if self.results.status == "finished" and "teacher" not in self.results.models:
            raise RequestError(
                f"The run {str(self.path)!r} has no teacher: its student learned from labels only."
            )
        reference = read_teacher_reference(self.find_file(f"{TEACHER}/{REFERENCE}").parent)
        folder = reference.path
        if folder is None or folder.is_file():
            raise RequestError(
                f"The run {str(self.path)!r} has no folder with its teacher: {reference.name} came"
                f" from {reference.source}. Build the teacher as the run did, with"
                " timm.create_model or your own factory."
            )
        weights = folder / "model.safetensors"
        if not weights.is_file() or hash_weights(weights) != reference.sha256:
            problem = f"does not exist relative to {str(Path.cwd())!r}"
            if weights.is_file():
                problem = "holds other weights now"
            raise RequestError(
                f"The teacher {reference.name} of the run {str(self.path)!r} was in"
                f" {str(folder)!r}, which {problem}. Read the run from the working directory of its"
                " command. If the teacher was removed, run the same command again with"
                " overwrite=true."
            )
        return _load_model(folder)

    def find_file(self, name: str) -> Path:
        """The path of a file or folder that the run wrote.

        Raises `RequestError` if it is missing or has changed.
        """
        path = self.path / name
        if not path.exists():
            raise RequestError(
                f"The run {str(self.path)!r} has no {name}: its status is {self.results.status!r}."
                " Run the same command again to resume the run."
            )
        if not path.is_file() and not path.is_dir():
            raise RequestError(
                f"{str(path)!r} is not a regular file, as of a run: reading a pipe or a device may"
                f" never end. {_REWRITE}"
            )
        check_recorded(path)
        return path


def _load_model(folder: Path) -> "nn.Module":
    import timm

    import_module("kd_app.models.small")  # registers the small networks with timm
    try:
        model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:  # the constructor of a network may fail in any way
        reason = take_first_line(error)[:200]
        raise RequestError(
            f"The model in {str(folder)!r} can't be loaded: {reason} Expected an unchanged folder"
            " of kd-distill."
        ) from None
    return model


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read the run in the folder `path`.

    Raises `RequestError` if the folder has no valid ``results.json``, and
    `TrialRefusedError` for a trial that its sweep refused.
    """
    folder = Path(path)
    check_links(folder)
    if refusal := read_refusal(folder):
        raise TrialRefusedError(refusal.reason)
    return Run(folder, read(folder / RESULTS))


def load_runs(folder: str | os.PathLike[str]) -> "DataFrame":
    """Read all runs in and below `folder`: one row per run, sorted by path, with the
    dotted keys of ``results.json`` as columns ('test.student.top1', 'config.seed').

    Hidden folders, such as stages, are skipped. A run whose ``results.json`` can't be
    read has the status 'unreadable' and a `reason`, a trial that its sweep refused has
    the status 'refused' and a `reason`. Raises `RequestError` if `folder`
    does not exist.
    """
    import pandas as pd

    root = Path(folder)
    if not root.is_dir():
        raise RequestError(f"There is no folder {str(root)!r}. Expected a folder with runs.")
    rows = [_read_row(path) for path in sorted(_walk_runs(root))]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["path", "status"])


def find_runs(places: Sequence[str]) -> list[Path]:
    """The folders of all runs in and below `places`, each once. A place is a folder or
    a pattern with ``*`` and ``?``.

    Raises `RequestError` if a place does not exist or holds no run.
    """
    by_target: dict[Path, Path] = {}
    for place in places:
        folders = [Path(place)]
        if not folders[0].exists():
            folders = [Path(path) for path in sorted(glob(place))]
        if not folders:
            raise RequestError(
                f"There is no {place!r} relative to {str(Path.cwd())!r}. Expected the folder of a"
                " run or of a sweep."
            )
        runs = [run for folder in folders for run in sorted(_walk_runs(folder))]
        if not runs:
            raise RequestError(
                f"There is no run in {place!r}: no folder there holds a {RESULTS}. Expected the"
                " folder of a run or of a sweep."
            )
        by_target |= {run.resolve(): run for run in runs if run.resolve() not in by_target}
    return list(by_target.values())


def _walk_runs(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if RESULTS in files:
            yield Path(folder)
        if REFUSED in subfolders:
            yield from (Path(folder, str(each.number)) for each in list_refusals(Path(folder)))


def _read_row(path: Path) -> dict[str, Any]:
    try:
        results = load_run(path).results
    except RequestError as error:
        status = "refused" if isinstance(error, TrialRefusedError) else "unreadable"
        return {"path": str(path), "status": status, "reason": str(error)}
    return {"path": str(path), **dict(flatten(results.model_dump(mode="json")))}


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(dotted key, value)`` for every leaf of nested mappings; an empty mapping
    is a leaf.
    """
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def write_curves(path: Path, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Write ``metrics.csv`` from the logged points of each stage: columns stage, epoch,
    step, then the metrics, empty if not logged.
    """
    names = {name for points in curves.values() for point in points for name in point}
    metrics = names - {"epoch", "step"}
    text = io.StringIO()
    writer = csv.DictWriter(text, ["stage", "epoch", "step", *sorted(metrics)], lineterminator="\n")
    writer.writeheader()
    for stage, points in curves.items():
        writer.writerows({"stage": stage, **point} for point in points)
    write_atomically(path, text.getvalue())
