"""Images through timm's readers: folders and tars as timm reads them, Hugging Face
datasets, TFDS, WebDataset.
"""

import hashlib
import io
import operator
import os
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from kd_app.config import RequestError, build_unknown_error
from kd_app.data.files import require_two_classes, resolve_root
from kd_app.data.fingerprint import WHOLE_LIMIT, add_fingerprint, hash_file
from kd_app.data.images import convert_mode, decode_image
from kd_app.data.source import Listing, Source

_BY_NAME = ("hfds", "hfids", "tfds", "wds")
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
_ABSENT = (ValueError, KeyError, RuntimeError, AssertionError)
"""What timm's readers raise for a split that the data set doesn't have."""
_HELD_LIMIT = 4 * 1024**3


class _Row(NamedTuple):
    """One image: its ready split and number there, name, class name, hash of its
    content, and, from a stream, itself as PNG.
    """

    split: str
    number: int
    file: str
    label: str
    content: bytes
    png: bytes


class _Readers(NamedTuple):
    """timm's readers by split, for one process: a tar's open file must be shared
    neither by threads nor across a fork.
    """

    process: int
    lock: threading.Lock
    by_split: dict[str, Any]


class TimmReader(Source):
    """What ``timm.data.readers.create_reader`` reads, with one class an image.

    `reader`: 'folder' for a folder or .tar of class folders at `root` (with train,
    validation, test beside each other where they are ready), or 'hfds/<name>',
    'hfids/<name>', 'tfds/<name>', 'wds/<name>', where `root` is the folder that they
    keep their data in, or None for their default. Readers of streams (hfids, tfds, wds)
    are read through once, and their images held in memory as PNG, up to 4 GiB.
    """

    size = None

    def __init__(self, *, root: Path | None, reader: str, channels: Literal[1, 3]) -> None:
        self.root = root
        self.reader = reader
        self.channels = channels
        self._opened: _Readers | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def list_images(self) -> Listing:
        """Names, labels and ready splits. Raises `RequestError`: no such folder, data
        set or package, several labels an image, one class.
        """
        return self._found[0]

    def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
        """Image `index`; see `Source.read`."""
        listing, places = self._found
        split, number, png = places[index]
        if png:
            return decode_image(
                io.BytesIO(png), listing.files[index], self.channels, shorter_side=shorter_side
            )
        opened = self._open_readers()
        with opened.lock, opened.by_split[split][number][0] as file:
            data = file.read()
        return decode_image(
            io.BytesIO(data), listing.files[index], self.channels, shorter_side=shorter_side
        )

    @cached_property
    def _found(self) -> tuple[Listing, list[tuple[str, int, bytes]]]:
        by_split = self._open_readers().by_split
        rows = [
            row
            for split, reader in by_split.items()
            for row in _iterate_rows(split, reader, self.channels)
        ]
        classes = list(_read_class_names(next(iter(by_split.values()))).values()) or sorted(
            {row.label for row in rows}, key=lambda label: (len(label), label)
        )
        require_two_classes(classes, Path(self.root or self.reader))
        number = {name: position for position, name in enumerate(classes)}
        unknown = sorted({row.label for row in rows} - set(number))
        if unknown:
            raise RequestError(
                f"{self.reader} has classes in validation or test that its train split lacks:"
                f" {', '.join(unknown[:8])}. Remove them there."
            )
        target = np.array([number[row.label] for row in rows], dtype=np.int64)
        files, split = [row.file for row in rows], [row.split for row in rows]
        group = ("",) * len(rows)
        listing = Listing(tuple(classes), tuple(files), target, tuple(split), group, fingerprint="")
        return add_fingerprint(listing, [row.content for row in rows]), [
            (row.split, row.number, row.png) for row in rows
        ]

    def _open_readers(self) -> _Readers:
        opened = self._opened
        if opened is None or opened.process != os.getpid():
            opened = _Readers(os.getpid(), threading.Lock(), _open(self.reader, self.root))
            self._opened = opened
        return opened


def _open(reader: str, root: Path | None) -> dict[str, Any]:
    """timm's readers by split ('' where there are no ready splits)."""
    prefix, _, name = reader.partition("/")
    if reader == "folder":
        return _open_folders(resolve_root(root))
    if prefix.lower() not in _BY_NAME or not name:
        raise build_unknown_error(
            "timm reader", reader, ("folder", *(f"{known}/<name>" for known in _BY_NAME))
        )
    return _open_by_name(reader, None if root is None else str(root.expanduser()))


def _open_folders(root: Path) -> dict[str, Any]:
    from timm.data.readers.reader_factory import create_reader

    parts: dict[str, Path] = {}
    for split, names in _SPLIT_NAMES.items():
        found = next(
            (
                path
                for name in names
                for path in (root / name, root / f"{name}.tar")
                if path.exists()
            ),
            None,
        )
        if found is not None:
            parts[split] = found
    try:
        return {
            split: create_reader("", root=str(path))
            for split, path in (parts if "train" in parts else {"": root}).items()
        }
    except (*_ABSENT, OSError) as error:
        raise RequestError(
            f"timm's reader can't read {str(root)!r}: {error}. Expected: a folder or .tar of class"
            " folders."
        ) from error


def _open_by_name(reader: str, root: str | None) -> dict[str, Any]:
    readers: dict[str, Any] = {}
    problems: list[str] = []
    for split, names in _SPLIT_NAMES.items():
        found = next(
            (
                opened
                for name in names
                if (opened := _try(reader, root, name, problems)) is not None
            ),
            None,
        )
        if found is not None:
            readers[split] = found
        elif split == "train":
            raise RequestError(
                f"timm's reader {reader!r} gives no train split (data.root={root}): {problems[0]}."
                " Correct data.reader or data.root."
            )
    return readers


def _try(reader: str, root: str | None, split: str, problems: list[str]) -> Any:
    """A reader of this split, or None where there is no such split; why is added to
    `problems`.
    """
    from timm.data.readers.reader_factory import create_reader

    try:
        return create_reader(reader, root=root, split=split)
    except ImportError as error:
        raise RequestError(
            f"timm's reader {reader!r} needs a package that is not installed: {error}. Install it."
        ) from error
    except (*_ABSENT, OSError) as error:
        problems.append(" ".join(f"{type(error).__name__}: {error}".split()))
        return None


def _read_class_names(reader: Any) -> dict[int, str]:
    """Class number -> name, in order; empty where the reader knows none."""
    known = (
        getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    )
    return {number: str(name) for name, number in sorted(known.items(), key=lambda item: item[1])}


def _iterate_rows(split: str, reader: Any, channels: int) -> Iterator[_Row]:
    names = _read_class_names(reader)
    one_by_one = (
        _iterate_by_number(split, reader)
        if hasattr(reader, "__getitem__")
        else _stream(split, reader, channels)
    )
    for row, target in one_by_one:
        try:
            number = operator.index(target)
        except TypeError:
            raise RequestError(
                f"The image {row.file!r} has the label {target!r}. Expected: one class number an"
                " image."
            ) from None
        yield row._replace(label=names.get(number, str(number)))


def _iterate_by_number(split: str, reader: Any) -> Iterator[tuple[_Row, Any]]:
    total = 0
    for number in range(len(reader)):
        file, target = reader[number][:2]
        with file:
            total += file.seek(0, os.SEEK_END)
            content = hash_file(file, whole=total <= WHOLE_LIMIT)
        name = reader.filename(number) or f"{number:08d}"
        if os.path.isabs(name):  # a cache of this machine
            name = f"{number:08d}-{os.path.basename(name)}"
        yield (
            _Row(
                split, number, f"{split}/{name}".lstrip("/").replace(os.sep, "/"), "", content, b""
            ),
            target,
        )


def _stream(split: str, reader: Any, channels: int) -> Iterator[tuple[_Row, Any]]:
    reader.dist_rank, reader.dist_num_replicas = (
        0,
        1,
    )  # every rank reads the whole set; who sees what is decided behind the source
    total = 0
    for number, (image, target) in enumerate(reader):
        plain = convert_mode(image, channels)
        buffer = io.BytesIO()
        plain.save(buffer, "png", compress_level=1)
        total += buffer.tell()
        if total > _HELD_LIMIT:
            raise RequestError(
                f"The {split} split of this stream needs more than {_HELD_LIMIT >> 30} GiB. Write"
                " it to a folder and use data=folder."
            )
        content = hashlib.sha256(repr((plain.mode, plain.size)).encode() + plain.tobytes()).digest()
        yield _Row(split, number, f"{split}/{number:08d}", "", content, buffer.getvalue()), target
