"""Images in one folder per class, optionally in train, validation and test folders."""

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
"""Accepted folder name -> split."""

_LAYOUT = (
    "Expected: <root>/<class>/<image>, or <root>/train/<class>/<image> with test/ and val/ (or"
    " validation/) next to train/ for predefined splits."
)


class Folder(FileSource):
    """The images of a folder ``root/<class>/**/<image>``.

    For predefined splits: ``root/train/<class>/**/<image>``, and ``test``, ``val`` (or
    ``validation``) or both next to ``train``. Classes and files are sorted by code
    point, as in torchvision's ImageFolder, independent of file system and locale. Names
    that begin with a dot, ``__MACOSX`` and files without an image extension are left
    out; `ignored` counts the last kind. Links are followed; no folder is visited twice
    within a class.
    """

    def __init__(self, *, root: Path | None, channels: Literal[1, 3]) -> None:
        self.root = root
        self.channels = channels
        self.ignored = 0

    def find(self) -> Listing:
        """List the folder.

        Raises `RequestError`: the folder is missing, a file, empty or of another
        layout; fewer than two classes, an empty class, splits with different classes.
        """
        self.base = _require_folder(self.root)
        parts = _find_splits(self.base) or {"": self.base}
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
        """Return the images of one class, relative to the root.

        Raises `RequestError` for a class without images.
        """
        visited = {os.path.realpath(folder) for folder in (self.base, part)}
        files = list(walk(part / name, visited))
        images = [
            os.path.relpath(path, self.base).replace(os.sep, "/")
            for path in files
            if is_image_name(path)
        ]
        self.ignored += len(files) - len(images)
        if not images:
            others = f"{len(files)} file(s) of other kinds" if files else "no file"
            raise RequestError(
                f"The class {name!r} in {str(part)!r} has no image ({others}). Add images to it, or"
                " remove the folder."
            )
        return images


def list_images_below(folder: Path) -> list[str]:
    """Return all images in and below a folder, relative to the folder, '/'-separated.

    The same names as in `Folder` are left out.
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
        else "If this is an archive, unpack the archive. Set data.root to the folder."
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
            f"The folder {str(folder)!r} can't be listed: {error.strerror}. Allow this"
            " user to read the folder, or move the folder away."
        ) from error


def _list_folders(folder: Path) -> list[str]:
    return [entry.name for entry in _list_visible(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself is no folder.
        return False


def walk(folder: Path, visited: set[str]) -> Iterator[str]:
    """Yield the paths of all files in and below `folder`; links are followed.

    visited: real paths of folders to skip; visited folders are added.
    """
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
    for entry in _list_visible(folder):
        if _is_folder(entry):
            yield from walk(Path(entry.path), visited)
        elif entry.is_symlink() or entry.is_file():
            # Broken links are included: reading them raises an error with their name.
            yield entry.path


def _find_splits(root: Path) -> dict[str, Path]:
    """Return split -> folder, ordered train, validation, test; empty without splits."""
    folders = _list_folders(root)
    splits = {name: SPLIT_WORDS[name.lower()] for name in folders if name.lower() in SPLIT_WORDS}
    others = [name for name in folders if name not in splits]
    # A folder 'train' without sub-folders, next to other folders, is a class.
    if not splits or (others and not any(_list_folders(root / name) for name in splits)):
        return {}
    place = f"{str(root)!r} holds {_list_some(list(splits))}"
    if others:
        raise RequestError(
            f"{place} and also {_list_some(others)}: predefined splits or classes? {_LAYOUT} Move"
            " the other folders away."
        )
    if len(set(splits.values())) < len(splits):
        raise RequestError(f"{place}: two folders for the same split. {_LAYOUT} Merge the folders.")
    if "train" not in splits.values():
        raise RequestError(f"{place} but no train folder. {_LAYOUT}")
    return {split: root / name for split in SPLITS for name in splits if splits[name] == split}


def _list_class_names(part: Path) -> list[str]:
    entries = _list_visible(part)
    names = [entry.name for entry in entries if _is_folder(entry)]
    if names:
        return names
    images = sum(is_image_name(entry.name) for entry in entries)
    if images:
        content = f"{images} image(s) and no class folder"
    elif entries:
        content = f"{len(entries)} file(s), none of them an image, and no class folder"
    else:
        content = "nothing"
    raise RequestError(
        f"{str(part)!r} holds {content}. {_LAYOUT} Put the images of each class into a separate"
        " folder."
    )


def _check_same_classes(classes: dict[str, list[str]], parts: dict[str, Path]) -> None:
    first, *others = classes
    for other in others:
        missing = [name for name in classes[first] if name not in classes[other]]
        extra = [name for name in classes[other] if name not in classes[first]]
        if missing or extra:
            wrong = [
                f"{_list_some(names)} only in {parts[part].name!r}"
                for names, part in ((missing, first), (extra, other))
                if names
            ]
            raise RequestError(
                f"The predefined splits have different classes: {', '.join(wrong)}. Expected:"
                " the same class folders in each. Rename, add or remove folders."
            )


def _list_some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:8]) + (
        f" and {len(names) - 8} more" if len(names) > 8 else ""
    )
