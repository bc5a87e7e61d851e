"""Images labeled by any model that ships, into one table."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt, StrictBool

from kd_app.config import RequestError, Typed
from kd_app.data.image_list import ImageList, image_list
from kd_app.data.images import BadImageError, open_image
from kd_app.data.scan import bound_size
from kd_app.deployment.cascade import prepare_batch
from kd_app.deployment.confidence import log_probabilities
from kd_app.reporting.console import Console
from kd_app.run.open_model import ImageClassifier, find_channels_and_size, open_cascade, open_model
from kd_app.run.spec import Config

CASCADE = "cascade.json"
_NAMED = 5
_WRITERS: dict[str, Callable[[Any, Path], None]] = {
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".parquet": lambda table, path: table.to_parquet(path, index=False),
}
Place = Annotated[str, Field(min_length=1)]
Answers = tuple[NDArray[np.float64], NDArray[np.int64] | None]
"""Log-probabilities ``[B, classes]``, and of a cascade the stage that answered each
image.
"""


class Prediction(Typed, called="kd-predict"):
    """The top level of ``conf/predict.yaml``."""

    def __init__(
        self,
        *,
        model: Place,
        images: Place,
        out: Place,
        top: PositiveInt,
        batch_size: PositiveInt,
        on_error: Literal["raise", "skip"],
        threads: PositiveInt | None,
        overwrite: StrictBool,
    ) -> None:
        self.model = model
        self.images = images
        self.out = Path(out)
        self.top = top
        self.batch_size = batch_size
        self.on_error = on_error
        self.threads = threads
        self.overwrite = overwrite


@dataclass(frozen=True)
class _Labeler:
    """What answers images. stages: names of a cascade's; empty for a single model."""

    classes: tuple[str, ...]
    answer: Callable[[Sequence[Image.Image]], Answers]
    channels: int
    side: int
    stages: tuple[str, ...] = ()


@dataclass
class _Table:
    """The answers so far, batch by batch: places of the images in the list, the best
    classes, their probabilities, the stages.
    """

    rows: list[int] = field(default_factory=list)
    labels: list[NDArray[np.int64]] = field(default_factory=list)
    probabilities: list[NDArray[np.float64]] = field(default_factory=list)
    stages: list[NDArray[np.int64]] = field(default_factory=list)
    bad: dict[str, BadImageError] = field(default_factory=dict)


def predict(config: Config, *, console: Console | None = None) -> Path:
    """Label the images ``config['images']`` with ``config['model']`` and write the
    table ``config['out']``, whole or not at all; its path.

    A command that was stopped starts again: nothing is written before all images are
    labeled. Files are opened as a run on a folder opens them: upright, what is
    transparent on white, more than 8 bits scaled, in the model's number of channels,
    and large ones reduced on the way.

    Raises `RequestError`: no such model or images, an image that can't be read
    (``on_error=raise``), an `out` that can't be written or is there.
    """
    asked, console = Prediction(**config), console or Console()
    _check_out(asked)
    images = image_list(asked.images)
    labeler = _open_labeler(asked)
    if asked.top > len(labeler.classes):
        raise RequestError(
            f"top={asked.top}, and the model knows {len(labeler.classes)} classes. Use that many at"
            " most."
        )
    table = _label_images(labeler, images, asked, console)
    _check_bad(table.bad, len(images.names), asked)
    _write(_build_frame(table, labeler, images), asked.out)
    console.print(_write_table(table, labeler, asked))
    return asked.out


def _check_out(asked: Prediction) -> None:
    """Raises `RequestError` where `out` can't be written, before anything long is
    begun.
    """
    out = asked.out
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
    if out.exists() and Path(asked.images).exists() and out.samefile(asked.images):
        raise RequestError(f"out={str(out)!r} is the list of images itself. Choose another out=.")
    if out.exists() and not asked.overwrite:
        raise RequestError(
            f"There is a file out={str(out)!r} already, and it was left as it is. Choose another"
            " out=, or say overwrite=true."
        )
    there = next(parent for parent in out.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise RequestError(
            f"out={str(out)!r} can't be written: {str(there)!r} is no folder that this user may"
            " write to. Choose another out=."
        )


def _open_labeler(asked: Prediction) -> _Labeler:
    path = Path(asked.model)
    path = path / CASCADE if (path / CASCADE).is_file() else path
    if path.suffix == ".json" and path.is_file():
        found = open_cascade(path, threads=asked.threads)
        names = tuple(file.name for file in found.files)
        return _Labeler(
            found.models[0].classes,
            found.cascade.infer,
            *find_channels_and_size(found.models),
            stages=names,
        )
    model = open_model(asked.model, threads=asked.threads).model
    return _Labeler(
        model.classes,
        lambda images: (_infer_single(model, images), None),
        *find_channels_and_size([model]),
    )


def _infer_single(model: ImageClassifier, images: Sequence[Image.Image]) -> NDArray[np.float64]:
    return log_probabilities(
        model.infer_logits(prepare_batch(images, np.arange(len(images)), model)), 1.0
    )


def _label_images(
    labeler: _Labeler, images: ImageList, asked: Prediction, console: Console
) -> _Table:
    """All answers. After an image that can't be read and may not be skipped the others
    are only looked at, so that all such are known.
    """
    table, of = _Table(), len(images.names)
    for done, batch in enumerate(_read(images, labeler, asked.batch_size)):
        start = done * asked.batch_size
        good = [
            (start + place, each)
            for place, each in enumerate(batch)
            if not isinstance(each, BadImageError)
        ]
        table.bad |= {
            images.names[start + place]: each
            for place, each in enumerate(batch)
            if isinstance(each, BadImageError)
        }
        if good and not (table.bad and asked.on_error == "raise"):
            _add(
                table,
                [place for place, _ in good],
                labeler.answer([image for _, image in good]),
                asked.top,
            )
        _print_progress(console, start, start + len(batch), of)
    return table


def _print_progress(console: Console, before: int, now: int, of: int) -> None:
    tenth = max(1, of // 10)
    if console.live or now == of or now // tenth > before // tenth:
        console.print_transient(f"  {now:,} of {of:,} images")


def _read(
    images: ImageList, labeler: _Labeler, batch_size: int
) -> Iterator[list[Image.Image | BadImageError]]:
    """Batches in order; the next one is opened while one is answered."""

    def look(name: str) -> Image.Image | BadImageError:
        try:
            return bound_size(
                open_image(images.base / name, labeler.channels, shorter_side=labeler.side),
                labeler.side,
            )
        except BadImageError as error:
            return error

    waiting: deque[list[Future[Image.Image | BadImageError]]] = deque()
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        try:
            for start in range(0, len(images.names), batch_size):
                waiting.append(
                    [pool.submit(look, name) for name in images.names[start : start + batch_size]]
                )
                if len(waiting) > 1:
                    yield [each.result() for each in waiting.popleft()]
            while waiting:
                yield [each.result() for each in waiting.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)


def _add(table: _Table, rows: list[int], answers: Answers, top: int) -> None:
    logs, stage = answers
    best = np.argsort(-logs, axis=1, kind="stable")[:, :top]
    table.rows += rows
    table.labels.append(best)
    table.probabilities.append(np.exp(np.take_along_axis(logs, best, axis=1)))
    if stage is not None:
        table.stages.append(stage)


def _check_bad(bad: dict[str, BadImageError], of: int, asked: Prediction) -> None:
    """Raises `RequestError` for images that can't be read, where they may not be left
    out or nothing else is there.
    """
    if not bad or (asked.on_error == "skip" and len(bad) < of):
        return
    first = next(iter(bad.values()))
    fix = (
        "Replace or remove the files."
        if asked.on_error == "skip"
        else (
            "Replace or remove the files, or say on_error=skip, which leaves them out and counts"
            " them."
        )
    )
    raise RequestError(
        f"{len(bad):,} of {of:,} images can't be read: {_list_bad(bad)}. The first: {first.reason}."
        f" Nothing was written. {fix}"
    )


def _list_bad(bad: dict[str, BadImageError]) -> str:
    more = f" and {len(bad) - _NAMED:,} more" if len(bad) > _NAMED else ""
    return f"{', '.join(list(bad)[:_NAMED])}{more}"


def _build_frame(table: _Table, labeler: _Labeler, images: ImageList) -> Any:
    import pandas as pd

    names = np.array(labeler.classes, dtype=object)
    labels, probabilities = np.concatenate(table.labels), np.concatenate(table.probabilities)
    columns: dict[str, Any] = {"file": [images.names[row] for row in table.rows]}
    for place in range(labels.shape[1]):
        end = f"_{place + 1}" if place else ""
        columns |= {
            f"label{end}": names[labels[:, place]],
            f"probability{end}": probabilities[:, place],
        }
    return pd.DataFrame(columns | ({"stage": np.concatenate(table.stages)} if table.stages else {}))


def _write(frame: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        _WRITERS[out.suffix.lower()](frame, partial)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def _write_table(table: _Table, labeler: _Labeler, asked: Prediction) -> str:
    skipped = (
        f"; {len(table.bad):,} can't be read and are left out: {_list_bad(table.bad)}"
        if table.bad
        else ""
    )
    said = (
        f"{len(table.rows):,} images labeled in {len(labeler.classes)} classes:"
        f" {asked.out}{skipped}"
    )
    if not table.stages:
        return said
    counts = np.bincount(np.concatenate(table.stages), minlength=len(labeler.stages))
    shares = ", ".join(
        f"stage {k} ({name}) {100 * counts[k] / counts.sum():.1f} %"
        for k, name in enumerate(labeler.stages)
    )
    return f"{said}\nAnswered by {shares}"
