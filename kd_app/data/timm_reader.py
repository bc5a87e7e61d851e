"""Images from timm's readers: folders, tars, Hugging Face, TFDS and WebDataset."""

import hashlib
import io
import operator
import os
import threading
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from kd_app.config import RequestError, build_unknown_error
from kd_app.data.crop import Crop
from kd_app.data.crop_decoding import decode_crop
from kd_app.data.files import require_two_classes, resolve_root
from kd_app.data.fingerprint import WHOLE_LIMIT, add_fingerprint, hash_file
from kd_app.data.images import convert_image, decode_image
from kd_app.data.layout import find_splits
from kd_app.data.source import Listing, Source

_BY_NAME = ("hfds", "hfids", "tfds", "wds")
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
_ABSENT = (ValueError, KeyError, RuntimeError, AssertionError)
"""Exceptions of timm's readers for a split that the data set doesn't have."""
_HELD_LIMIT = 4 * 1024**3


class _Row(NamedTuple):
    """One image: predefined split, number in the split, name, class, content hash.

    png: the image as PNG if the reader is a stream, else empty.
    """

    split: str
    number: int
    file: str
    label: str
    content: bytes
    png: bytes


class _Readers(NamedTuple):
    """timm's readers by split, for one process.

    The open file of a tar can be shared neither by threads nor across a fork.
    """

    process: int
    lock: threading.Lock
    by_split: dict[str, Any]


class TimmReader(Source):
    """Images from ``timm.data.readers.create_reader``, with one class per image.

    reader: 'folder' for a folder or .tar of class folders at `root`, or for train,
    validation and test folders or .tars in `root`; or 'hfds/<name>', 'hfids/<name>',
    'tfds/<name>', 'wds/<name>'. For the latter, `root` is the folder of the reader's
    data; None: the reader's default. Streams (hfids, tfds, wds) are read once, and
    their images are held in memory as PNG, up to 4 GiB per split.
    """

    size = None

    def __init__(self, *, root: Path | None, reader: str, channels: Literal[1, 3]) -> None:
        self.root = root
        self.reader = reader
        self.channels = channels
        self._readers: _Readers | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": None}

    def list_images(self) -> Listing:
        """Return names, labels and predefined splits of the images.

        Raises `RequestError`: a missing folder, data set or package, several labels per
        image, or a single class.
        """
        return self._contents[0]

    def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
        file, name = self._open_file(index)
        return decode_image(file, name, self.channels, shorter_side=shorter_side)

    def read_crop(self, index: int, crop: Crop) -> Image.Image:
        file, name = self._open_file(index)
        return decode_crop(file, name, self.channels, crop)

    def _open_file(self, index: int) -> tuple[io.BytesIO, str]:
        """Return the content and the name of image `index`."""
        listing, places = self._contents
        split, number, png = places[index]
        if png:
            return io.BytesIO(png), listing.files[index]
        readers = self._open_readers()
        with readers.lock, readers.by_split[split][number][0] as file:
            return io.BytesIO(file.read()), listing.files[index]

    @cached_property
    def _contents(self) -> tuple[Listing, list[tuple[str, int, bytes]]]:
        by_split = self._open_readers().by_split
        rows = [
            row
            for split, reader in by_split.items()
            for row in _iterate_rows(split, reader, self.channels)
        ]
        classes = list(_read_class_names(next(iter(by_split.values()))).values()) or sorted(
            {row.label for row in rows}, key=lambda label: (len(label), label)
        )
        if not self.is_only_measured:
            require_two_classes(classes, Path(self.root or self.reader))
        number = {name: position for position, name in enumerate(classes)}
        unknown = sorted({row.label for row in rows} - set(number))
        if unknown:
            raise RequestError(
                f"{self.reader} has classes in validation or test that are missing in train:"
                f" {', '.join(unknown[:8])}. Expected: every class in train. Remove the images of"
                " these classes."
            )
        target = np.array([number[row.label] for row in rows], dtype=np.int64)
        files, split = [row.file for row in rows], [row.split for row in rows]
        group = ("",) * len(rows)
        listing = Listing(tuple(classes), tuple(files), target, tuple(split), group, fingerprint="")
        return add_fingerprint(listing, [row.content for row in rows]), [
            (row.split, row.number, row.png) for row in rows
        ]

    def _open_readers(self) -> _Readers:
        readers = self._readers
        if readers is None or readers.process != os.getpid():
            readers = _Readers(os.getpid(), threading.Lock(), _open(self.reader, self.root))
            self._readers = readers
        return readers


def _open(reader: str, root: Path | None) -> dict[str, Any]:
    """Open timm's readers by split ('' without predefined splits)."""
    prefix, _, name = reader.partition("/")
    if reader == "folder":
        return _open_folders(resolve_root(root))
    if prefix.lower() not in _BY_NAME or not name:
        raise build_unknown_error(
            "timm reader", reader, ("folder", *(f"{each}/<name>" for each in _BY_NAME))
        )
    return _open_by_name(reader, None if root is None else str(root.expanduser()))


def _open_folders(root: Path) -> dict[str, Any]:
    from timm.data.readers.reader_factory import create_reader

    parts: dict[str, Path] = {}
    for split, names in _SPLIT_NAMES.items():
        candidates = [path for name in names for path in (root / name, root / f"{name}.tar")]
        part = next((path for path in candidates if path.exists()), None)
        if part is not None:
            parts[split] = part
    if "train" not in parts:
        # timm takes the innermost folder for the class, and would mix the splits.
        splits = find_splits(root)[0] if root.is_dir() else {}
        parts = splits or {"": root}
    for part in parts.values():
        _check_index(part)
    try:
        readers = {split: create_reader("", root=str(path)) for split, path in parts.items()}
    except (*_ABSENT, OSError) as error:
        raise RequestError(
            f"timm's reader can't read {str(root)!r}: {error}. Expected: a folder or .tar of class"
            " folders."
        ) from error
    for split, part in parts.items():
        if part.is_dir():
            _check_files(name for name, _ in readers[split].samples)
    return readers


def _check_files(names: Iterable[str]) -> None:
    """Raise `RequestError` for a pipe or a device, which timm would open as an image,
    and wait.
    """
    for name in names:
        if not os.path.isfile(name):
            raise RequestError(
                f"{name!r} is not a regular file: a pipe or a device, or a link to nowhere."
                " Expected: images. Remove it."
            )


def _check_index(part: Path) -> None:
    """Raise `RequestError` if timm would write its index of a large .tar through a link
    that came with the .tar.
    """
    index = part.parent / f"_{part.stem}_tarinfos.pickle"
    if part.suffix == ".tar" and index.is_symlink():
        raise RequestError(
            f"{str(index)!r}, where timm keeps the index of {str(part)!r}, is a link, and is not"
            " followed. Remove it."
        )


def _open_by_name(reader: str, root: str | None) -> dict[str, Any]:
    readers: dict[str, Any] = {}
    problems: list[str] = []
    for split, names in _SPLIT_NAMES.items():
        attempts = (_try_open(reader, root, name, problems) for name in names)
        split_reader = next((attempt for attempt in attempts if attempt is not None), None)
        if split_reader is not None:
            readers[split] = split_reader
        elif split == "train":
            raise RequestError(
                f"timm's reader {reader!r} has no train split (data.root={root}): {problems[0]}."
                " Correct data.reader or data.root."
            )
    return readers


def _try_open(reader: str, root: str | None, split: str, problems: list[str]) -> Any:
    """Open the reader of a split; None if that fails, with the reason in `problems`."""
    from timm.data.readers.reader_factory import create_reader

    try:
        return create_reader(reader, root=root, split=split)
    except ImportError as error:
        raise RequestError(
            f"timm's reader {reader!r} needs a package that is not installed: {error}. Install the"
            " package."
        ) from error
    except (*_ABSENT, OSError) as error:
        problems.append(" ".join(f"{type(error).__name__}: {error}".split()))
        return None


def _read_class_names(reader: Any) -> dict[int, str]:
    """Return class number -> name, sorted by number; empty if there are no names."""
    numbers = (
        getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    )
    return {number: str(name) for name, number in sorted(numbers.items(), key=lambda item: item[1])}


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
                f"The image {row.file!r} has the label {target!r}. Expected: one class number per"
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
        if os.path.isabs(name):
            # The path of a cache differs between machines; names must not.
            name = f"{number:08d}-{os.path.basename(name)}"
        file_name = f"{split}/{name}".lstrip("/").replace(os.sep, "/")
        yield _Row(split, number, file_name, "", content, b""), target


def _stream(split: str, reader: Any, channels: int) -> Iterator[tuple[_Row, Any]]:
    # Every process reads the whole set; the loaders divide the images among processes.
    reader.dist_rank, reader.dist_num_replicas = 0, 1
    total = 0
    for number, (image, target) in enumerate(reader):
        plain = convert_image(image, channels)
        buffer = io.BytesIO()
        plain.save(buffer, "png", compress_level=1)
        total += buffer.tell()
        if total > _HELD_LIMIT:
            raise RequestError(
                f"The {split} split of this stream needs more than {_HELD_LIMIT >> 30} GiB of"
                " memory. Write the images to a folder and use data=folder."
            )
        content = hashlib.sha256(repr((plain.mode, plain.size)).encode() + plain.tobytes()).digest()
        yield _Row(split, number, f"{split}/{number:08d}", "", content, buffer.getvalue()), target
