"""The job of ``kd-predict``: labels images with an exported file, a run, a model's
folder or a cascade, and writes a table.
"""

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt, StrictBool

from kd_app.config import Decoding, RequestError, Typed
from kd_app.config.csv_cells import escape_undecodable, quote_cell
from kd_app.config.errors import list_some
from kd_app.data.image_list import ImageList, read_image_list
from kd_app.data.image_tree import write_reasons
from kd_app.data.images import BadImageError, open_image
from kd_app.deployment.cascade import prepare_batch
from kd_app.deployment.confidence import compute_log_probabilities
from kd_app.deployment.logits import name_images, number_images
from kd_app.files import replace_file
from kd_app.reporting.console import Console
from kd_app.reporting.embedding_file import (
    build_embedding_table,
    check_neighbors,
    write_arrays,
)
from kd_app.run.machine import choose_device, describe_unused
from kd_app.run.open_model import ImageClassifier, open_cascade, open_model
from kd_app.run_files import CASCADE
from kd_app.specs.spec import Config

_MAX_NAMES = 5


def quote_cells(table: Any) -> Any:
    """A table whose texts no spreadsheet takes for formulas."""
    return table.map(quote_cell)


_WRITERS: dict[str, Callable[[Any, IO[bytes]], None]] = {
    ".csv": lambda table, file: quote_cells(table).to_csv(file, index=False),
    ".parquet": lambda table, file: table.to_parquet(file, index=False),
    ".npz": write_arrays,
}
_OF_EMBEDDINGS, _OF_LABELS = (".parquet", ".npz"), (".csv", ".parquet")
"""Endings of tables of embeddings, and of labels."""
NonEmpty = Annotated[str, Field(min_length=1)]
StageOutputs = tuple[NDArray[np.float64], NDArray[np.int64] | None]
"""Log-probabilities ``[B, classes]`` or embeddings ``[B, width]``, and for a cascade
the last stage of each image.
"""


class Prediction(Typed, called="kd-predict"):
    """The top level of ``conf/predict.yaml``."""

    def __init__(
        self,
        *,
        model: NonEmpty,
        images: NonEmpty,
        out: NonEmpty,
        top: PositiveInt,
        neighbors: PositiveInt | None,
        batch_size: PositiveInt,
        on_error: Literal["raise", "skip"],
        threads: PositiveInt | None,
        overwrite: StrictBool,
        trainer: dict[str, Any],
    ) -> None:
        self.model = model
        self.images = images
        self.out = Path(out)
        self.top = top
        self.neighbors = neighbors
        self.batch_size = batch_size
        self.on_error = on_error
        self.threads = threads
        self.overwrite = overwrite
        self.device = choose_device({"trainer": trainer})


@dataclass(frozen=True)
class _Labeler:
    """A model or a cascade that labels images.

    classes: empty for a model that outputs embeddings. decoding: of the image files.
    stages: names of a cascade's stages; empty for a single model.
    """

    classes: tuple[str, ...]
    infer: Callable[[Sequence[Image.Image]], StageOutputs]
    decoding: Decoding
    stages: tuple[str, ...] = ()


@dataclass
class _LabeledImages:
    """Predictions by batch: positions of the images in the list, the most probable
    classes, their probabilities, and the stages; or the embeddings; bad: images that
    can't be read.
    """

    rows: list[int] = field(default_factory=list)
    labels: list[NDArray[np.int64]] = field(default_factory=list)
    probabilities: list[NDArray[np.float64]] = field(default_factory=list)
    stages: list[NDArray[np.int64]] = field(default_factory=list)
    embeddings: list[NDArray[np.float32]] = field(default_factory=list)
    bad: dict[str, BadImageError] = field(default_factory=dict)


def predict(config: Config, *, console: Console | None = None) -> Path:
    """Label the images ``config['images']`` with ``config['model']`` and write the
    table ``config['out']``; returns the path of the table.

    The table is written once, after all images, so an interrupted command starts again.
    Images are decoded like those of a run on a folder: upright, transparency on white,
    more than 8 bits scaled to 8, in the model's number of channels, and large images
    reduced on the way.

    Raises `RequestError` for a missing model or images, for an image that can't be read
    (with ``on_error=raise``), and for an `out` that exists or can't be written.
    """
    settings, console = Prediction(**config), console or Console()
    check_out(settings)
    for text in describe_unused(config):
        console.print(f"Note: {text}")
    images = read_image_list(settings.images)
    labeler = _open_labeler(settings)
    _check_output(settings, labeler)
    if labeler.classes and settings.top > len(labeler.classes):
        raise RequestError(
            f"top={settings.top}, but the model knows {len(labeler.classes)} classes. Set at most"
            f" top={len(labeler.classes)}."
        )
    check_neighbors(settings.neighbors, len(images.names))
    predictions = _label_images(labeler, images, settings, console)
    _check_bad(predictions.bad, len(images.names), settings)
    _write_table(_build_table(predictions, labeler, images, settings), settings.out)
    console.print(_summarize(predictions, labeler, settings))
    left_out = _write_left_out(predictions.bad, images, settings)
    for note in images.left_out.describe(images.base):
        console.print(f"Note: {note}")
    if left_out:
        console.print(f"Note: all files without a label are listed in {left_out}")
    return settings.out


def check_out(settings: Prediction) -> None:
    """Raises `RequestError` if `out` can't be written, before any image is labeled."""
    out = settings.out
    if out.suffix.lower() not in _WRITERS:
        raise RequestError(
            f"out={str(out)!r} ends in {out.suffix!r}. Expected: a file that ends in"
            f" {' or '.join(_WRITERS)}."
        )
    if out.is_dir():
        raise RequestError(
            f"out={str(out)!r} is a folder. Expected: the path of a file, for example"
            f" out={out / 'labels.csv'}."
        )
    if out.exists() and Path(settings.images).exists() and out.samefile(settings.images):
        raise RequestError(f"out={str(out)!r} is the list of images itself. Choose another out=.")
    if out.exists() and not settings.overwrite:
        raise RequestError(
            f"The file out={str(out)!r} exists and was not changed. Choose another out=, or set"
            " overwrite=true."
        )
    parent = next(parent for parent in out.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RequestError(
            f"out={str(out)!r} can't be written: {str(parent)!r} is not a folder that this user may"
            " write to. Choose another out=."
        )


def _check_output(settings: Prediction, labeler: _Labeler) -> None:
    """Raises `RequestError` if the table can't hold what the model outputs."""
    expected = _OF_LABELS if labeler.classes else _OF_EMBEDDINGS
    if settings.out.suffix.lower() not in expected:
        what = "classes" if labeler.classes else "an embedding"
        raise RequestError(
            f"out={str(settings.out)!r} ends in {settings.out.suffix!r}, and the model"
            f" {settings.model!r} outputs {what}. Expected: a file that ends in"
            f" {' or '.join(expected)}."
        )
    if labeler.classes and settings.neighbors is not None:
        raise RequestError(
            f"neighbors={settings.neighbors} compares embeddings, and the model"
            f" {settings.model!r} outputs classes. Remove neighbors, or name a model that learned"
            " an embedding (task=embedding)."
        )


def _open_labeler(settings: Prediction) -> _Labeler:
    path = Path(settings.model)
    path = path / CASCADE if (path / CASCADE).is_file() else path
    if path.suffix == ".json" and path.is_file():
        opened = open_cascade(path, threads=settings.threads, device=settings.device)
        names = tuple(file.name for file in opened.files)
        decoding = opened.cascade.decoding or _combine([each.decoding for each in opened.models])
        return _Labeler(opened.models[0].classes, opened.cascade.infer, decoding, names)
    model = open_model(settings.model, threads=settings.threads, device=settings.device).model
    return _Labeler(model.classes, lambda images: (_infer(model, images), None), model.decoding)


def _combine(decodings: Sequence[Decoding]) -> Decoding:
    """Enough pixels and channels for stages that decode in different ways."""
    return Decoding(
        max(each.channels for each in decodings), max(each.shorter_side for each in decodings)
    )


def _infer(model: ImageClassifier, images: Sequence[Image.Image]) -> NDArray[Any]:
    logits = model.infer_logits(prepare_batch(images, np.arange(len(images)), model))
    if not model.classes:
        return logits
    return compute_log_probabilities(logits, 1.0)


def _label_images(
    labeler: _Labeler, images: ImageList, settings: Prediction, console: Console
) -> _LabeledImages:
    """Label all images. After an unreadable image with ``on_error=raise``, the others
    are only opened, so that the error names all unreadable images.
    """
    predictions, total = _LabeledImages(), len(images.names)
    for number, batch in enumerate(_read_batches(images, labeler, settings.batch_size)):
        start = number * settings.batch_size
        rows, readable = [], []
        for row, image in enumerate(batch, start):
            if isinstance(image, BadImageError):
                predictions.bad[images.names[row]] = image
            else:
                rows.append(row)
                readable.append(image)
        if readable and not (predictions.bad and settings.on_error == "raise"):
            with name_images(images.names), number_images(rows):
                outputs = labeler.infer(readable)
            if labeler.classes:
                _add_batch(predictions, rows, outputs, settings.top)
            else:
                predictions.rows += rows
                predictions.embeddings.append(outputs[0].astype(np.float32))
        _print_progress(console, start, start + len(batch), total)
    return predictions


def _print_progress(console: Console, before: int, now: int, total: int) -> None:
    tenth = max(1, total // 10)
    if console.live or now == total or now // tenth > before // tenth:
        console.print_transient(f"  {now:,} of {total:,} images")


def _read_batches(
    images: ImageList, labeler: _Labeler, batch_size: int
) -> Iterator[list[Image.Image | BadImageError]]:
    """Batches in order. The next batch is opened while the caller labels one."""
    decoding = labeler.decoding

    def read(name: str) -> Image.Image | BadImageError:
        try:
            return open_image(
                images.base / name, decoding.channels, shorter_side=decoding.shorter_side
            )
        except BadImageError as error:
            return error

    waiting: deque[list[Future[Image.Image | BadImageError]]] = deque()
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        try:
            for start in range(0, len(images.names), batch_size):
                names = images.names[start : start + batch_size]
                waiting.append([pool.submit(read, name) for name in names])
                if len(waiting) > 1:
                    yield [each.result() for each in waiting.popleft()]
            while waiting:
                yield [each.result() for each in waiting.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)


def _add_batch(
    predictions: _LabeledImages, rows: list[int], outputs: StageOutputs, top: int
) -> None:
    log_p, stage = outputs
    # A slice would keep the order of all classes in memory.
    best = np.argsort(-log_p, axis=1, kind="stable")[:, :top].copy()
    predictions.rows += rows
    predictions.labels.append(best)
    predictions.probabilities.append(np.exp(np.take_along_axis(log_p, best, axis=1)))
    if stage is not None:
        predictions.stages.append(stage)


def _check_bad(bad: dict[str, BadImageError], total: int, settings: Prediction) -> None:
    """Raises `RequestError` for unreadable images, unless they may be skipped and other
    images are left. A long list of them is written to a temporary file.
    """
    may_skip = settings.on_error == "skip"
    if not bad or (may_skip and len(bad) < total):
        return
    first = next(iter(bad.values()))
    fix = "" if may_skip else ", or set on_error=skip to leave them out"
    table = ""
    if len(bad) > _MAX_NAMES:
        path = Path(tempfile.mkdtemp(prefix="kd-predict-")) / "unreadable.csv"
        write_reasons(path, [(name, error.reason) for name, error in bad.items()])
        table = f" All are listed in {str(path)!r}."
    raise RequestError(
        f"{len(bad):,} of {total:,} images can't be read: {list_some([*bad], _MAX_NAMES)}. The"
        f" first: {first.reason}.{table} Nothing was written to {str(settings.out)!r}. Replace"
        f" or remove the files{fix}."
    )


def _write_left_out(
    bad: dict[str, BadImageError], images: ImageList, settings: Prediction
) -> Path | None:
    """Write a table of the files without a label beside `out`, if there are any."""
    path = settings.out.with_suffix(".left_out.csv")
    rows = [(name, error.reason) for name, error in bad.items()]
    files = [*images.left_out.files, *images.left_out.special]
    rows += [(os.path.relpath(file, images.base), "no image") for file in files]
    if not rows:
        if settings.overwrite:
            path.unlink(missing_ok=True)
        return None
    write_reasons(path, sorted(rows))
    return path


def _build_table(
    predictions: _LabeledImages, labeler: _Labeler, images: ImageList, settings: Prediction
) -> Any:
    import pandas as pd

    if not labeler.classes:
        of_images = [escape_undecodable(images.names[row]) for row in predictions.rows]
        embeddings = np.concatenate(predictions.embeddings)
        return build_embedding_table(of_images, embeddings, settings.neighbors)
    names = np.array(labeler.classes, dtype=object)
    labels = np.concatenate(predictions.labels)
    probabilities = np.concatenate(predictions.probabilities)
    files = [escape_undecodable(images.names[row]) for row in predictions.rows]
    columns: dict[str, Any] = {"file": files}
    for rank in range(labels.shape[1]):
        end = f"_{rank + 1}" if rank else ""
        columns[f"label{end}"] = names[labels[:, rank]]
        columns[f"probability{end}"] = probabilities[:, rank]
    if predictions.stages:
        columns["stage"] = np.concatenate(predictions.stages)
    return pd.DataFrame(columns)


def _write_table(table: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(out) as file:
        _WRITERS[out.suffix.lower()](table, file)


def _summarize(predictions: _LabeledImages, labeler: _Labeler, settings: Prediction) -> str:
    """One line for the console, and for a cascade a second with the share of each
    stage.
    """
    bad = predictions.bad
    skipped = (
        f"; {len(bad):,} unreadable images are left out: {list_some([*bad], _MAX_NAMES)}"
        if bad
        else ""
    )
    if not labeler.classes:
        width = predictions.embeddings[0].shape[1]
        return f"{len(predictions.rows):,} embeddings of {width} numbers: {settings.out}{skipped}"
    summary = (
        f"{len(predictions.rows):,} images labeled in {len(labeler.classes)} classes:"
        f" {settings.out}{skipped}"
    )
    if not predictions.stages:
        return summary
    counts = np.bincount(np.concatenate(predictions.stages), minlength=len(labeler.stages))
    shares = ", ".join(
        f"stage {k} ({name}) {100 * counts[k] / counts.sum():.1f} %"
        for k, name in enumerate(labeler.stages)
    )
    return f"{summary}\nImages by stage: {shares}"
