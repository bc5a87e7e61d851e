"""Images in folders: one sub-folder a class, with or without ready train, validation
and test folders above them.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from kd_app.config import RequestError
from kd_app.data.files import FileSource, require_two_classes, resolve_root
from kd_app.data.images import is_image_name
from kd_app.data.source import SPLITS, Listing

SPLIT_WORDS = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What people call the three sets."""

_LAYOUT = (
    "Expected: <root>/<class>/<image>, or <root>/train/<class>/<image> with test/ and val/ (or"
    " validation/) beside train/ where they are ready."
)


class Folder(FileSource):
    """``root/<class>/**/<image>``, or ``root/train/<class>/**/<image>`` with ``test``
    and ``val`` (or ``validation``) beside it, or one of them.

    Classes and files are ordered by code point, as torchvision's ImageFolder orders
    them, whatever the file system and the locale. Left out: names that begin with a
    dot, ``__MACOSX``, and files that don't end as an image does; `ignored` counts the
    last kind. Links are followed, no folder is entered twice within a class.
    """

    def __init__(self, *, root: Path | None, channels: Literal[1, 3]) -> None:
        self.root = root
        self.channels = channels
        self.ignored = 0

    def find(self) -> Listing:
        """Walk the folder. Raises `RequestError`: not there, a file, empty, another
        layout, one class, an empty class, splits of other classes.
        """
        self.base = _require_folder(self.root)
        parts = _find_ready_splits(self.base) or {"": self.base}
        rows: list[tuple[str, str, str]] = []
        classes: dict[str, list[str]] = {}
        for split, part in parts.items():
            classes[split] = _list_class_names(part)
            rows += [
                (file, name, split)
                for name in classes[split]
                for file in self._list_class_images(part, name)
            ]
        _check_same_classes(classes, parts)
        names = next(iter(classes.values()))
        require_two_classes(names, next(iter(parts.values())))
        files, labels, splits = zip(*sorted(rows), strict=True)
        return self.build_listing(names, files, labels, splits, ("",) * len(files))

    def _list_class_images(self, part: Path, name: str) -> list[str]:
        """Images of one class, relative to the root. Raises `RequestError` where there
        is none.
        """
        seen = {os.path.realpath(folder) for folder in (self.base, part)}
        below = list(walk(part / name, seen))
        images = [
            os.path.relpath(path, self.base).replace(os.sep, "/")
            for path in below
            if is_image_name(path)
        ]
        self.ignored += len(below) - len(images)
        if not images:
            others = f"{len(below)} file(s) of other kinds" if below else "no file"
            raise RequestError(
                f"The class {name!r} in {str(part)!r} has no image ({others}). Add images to it, or"
                " remove the folder."
            )
        return images


def list_images_below(folder: Path) -> list[str]:
    """Names of all images in a folder and below it, relative to it and '/'-separated;
    left out is what `Folder` leaves out.
    """
    return [
        os.path.relpath(path, folder).replace(os.sep, "/")
        for path in walk(folder, set())
        if is_image_name(path)
    ]


def _require_folder(root: Path | None) -> Path:
    path = resolve_root(root)
    if path.is_dir():
        return path
    fix = (
        f"Use `data=csv data.root={path}`."
        if path.suffix.lower() in (".csv", ".tsv")
        else "Unpack it if it is an archive, and set data.root to the folder."
    )
    raise RequestError(f"{str(path)!r} is a file. {_LAYOUT} {fix}")


def _list_visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(
                (
                    entry
                    for entry in entries
                    if not entry.name.startswith(".") and entry.name != "__MACOSX"
                ),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        raise RequestError(
            f"The folder {str(folder)!r} can't be listed: {error.strerror}. Give this user the"
            " right to read it, or move it away."
        ) from error


def _list_folders(folder: Path) -> list[str]:
    return [entry.name for entry in _list_visible(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def walk(folder: Path, seen: set[str]) -> Iterator[str]:
    """Paths of all files below, links followed; `seen` holds the real paths of folders
    that are not entered (again).
    """
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for entry in _list_visible(folder):
        if _is_folder(entry):
            yield from walk(Path(entry.path), seen)
        elif entry.is_symlink() or entry.is_file():  # a broken link is told by name when it is read
            yield entry.path


def _find_ready_splits(root: Path) -> dict[str, Path]:
    """The folders of ready splits, in the order train, validation, test; none where the
    sub-folders are classes.
    """
    folders = _list_folders(root)
    words = {name: SPLIT_WORDS[name.lower()] for name in folders if name.lower() in SPLIT_WORDS}
    others = [name for name in folders if name not in words]
    if not words or (others and not any(_list_folders(root / name) for name in words)):
        return {}  # 'train' among other names, with images and no folders in it, is a class: one that runs on rails
    if others:
        raise RequestError(
            f"{str(root)!r} holds {_list_some(list(words))} and beside them {_list_some(others)}: ready"
            f" splits, or classes? {_LAYOUT} Move the others away."
        )
    if len(set(words.values())) < len(words):
        raise RequestError(
            f"{str(root)!r} holds {_list_some(list(words))}: two folders for the same split. {_LAYOUT}"
            " Put them together."
        )
    if "train" not in words.values():
        raise RequestError(
            f"{str(root)!r} holds {_list_some(list(words))} and no train folder. {_LAYOUT}"
        )
    return {split: root / name for split in SPLITS for name in words if words[name] == split}


def _list_class_names(part: Path) -> list[str]:
    entries = _list_visible(part)
    names = [entry.name for entry in entries if _is_folder(entry)]
    if names:
        return names
    images = sum(is_image_name(entry.name) for entry in entries)
    found = (
        f"{images} image(s) and no class folder"
        if images
        else (
            f"{len(entries)} file(s), none of them an image, and no class folder"
            if entries
            else "nothing"
        )
    )
    raise RequestError(
        f"{str(part)!r} holds {found}. {_LAYOUT} Put the images of each class into a folder of its"
        " own."
    )


def _check_same_classes(classes: dict[str, list[str]], parts: dict[str, Path]) -> None:
    first, *others = classes
    for other in others:
        missing = [name for name in classes[first] if name not in classes[other]]
        extra = [name for name in classes[other] if name not in classes[first]]
        if missing or extra:
            wrong = [f"{_list_some(missing)} only in {parts[first].name!r}"] * bool(missing) + [
                f"{_list_some(extra)} only in {parts[other].name!r}"
            ] * bool(extra)
            raise RequestError(
                f"The ready splits have other classes: {', '.join(wrong)}. Expected: the same class"
                " folders in each. Rename, add or remove folders."
            )


def _list_some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:8]) + (
        f" and {len(names) - 8} more" if len(names) > 8 else ""
    )
