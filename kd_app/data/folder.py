"""Images in one folder per class, optionally in train, validation and test folders."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from kd_app.config import RequestError
from kd_app.config.errors import quote_some
from kd_app.data.files import FileSource, resolve_root
from kd_app.data.image_tree import (
    LeftOut,
    describe_others,
    is_folder,
    is_image,
    list_folders,
    list_visible,
    suggest_conversion,
    walk_images,
)
from kd_app.data.layout import ANNOTATED, LAYOUT, ClassLevel, find_layout, is_plain_name
from kd_app.data.source import Listing
from kd_app.data.spelling import normalize_spelling, note_spellings
from kd_app.data.split_words import is_unlabeled_name


class Folder(FileSource):
    """The images of a folder ``root/<class>/**/<image>``.

    For predefined splits: ``root/train/<class>/**/<image>``, and ``test``, ``val`` (or
    ``validation``) or both next to ``train``; names that contain these words are read,
    too. Classes and files are sorted by code point, as in torchvision's ImageFolder,
    independent of file system and locale. Names that begin with a dot, system folders
    and files that are no images are left out, with a note. Links are followed; no
    folder is visited twice within a class.

    class_level: 1 if the folders in root (or in the folder of a split) are the classes;
    2 if the folders in those are, where folders of the same name are one class; None:
    1, unless the layout is doubtful.
    """

    def __init__(
        self,
        *,
        root: Path | None,
        channels: Literal[1, 3],
        class_level: ClassLevel | None,
    ) -> None:
        self.root = root
        self.channels = channels
        self.class_level = class_level

    def find(self) -> Listing:
        """List the folder.

        Raises `RequestError`: the folder is missing, a file, empty or of another
        layout; fewer than two classes; a class without an image in train.
        """
        root = _require_folder(self.root)
        layout = find_layout(root, self.class_level)
        self.base = layout.base
        left_out = LeftOut()
        rows: list[tuple[str, str, str]] = []
        for split, classes in layout.parts.items():
            for name, folders in classes.items():
                images = self._list_class_images(folders, left_out)
                rows += [(file, name, split) for file in images]
        names = list(next(iter(layout.parts.values())))
        if self.is_only_measured and rows:
            names = sorted({name for _, name, _ in rows})
        else:
            _check_classes(names, layout.parts, rows, left_out)
        _find_beside(root, layout.parts, left_out)
        files, labels, splits = zip(*sorted(rows), strict=True)
        notes = (
            *layout.notes,
            *note_spellings(names),
            *_note_unlabeled(names),
            *left_out.describe(root),
        )
        return self.build_listing(names, files, labels, splits, ("",) * len(files), notes=notes)

    def _list_class_images(self, folders: Sequence[Path], left_out: LeftOut) -> list[str]:
        """Return the images of one class, relative to the base."""
        visited = {os.path.realpath(folder) for folder in (self.base, *(f.parent for f in folders))}
        return [
            name
            for folder in folders
            for name in _name_images(walk_images(folder, visited, left_out), self.base)
        ]


def list_images_below(folder: Path, left_out: LeftOut) -> list[str]:
    """Return all images in and below a folder, relative to the folder, '/'-separated.

    The same names as in `Folder` are left out.
    """
    return list(_name_images(walk_images(folder, set(), left_out), folder))


def _name_images(paths: Iterable[str], base: Path) -> Iterator[str]:
    """Yield the paths relative to `base`, '/'-separated."""
    start = os.path.join(base, "")
    for path in paths:
        # `relpath` takes longer than the rest of the listing.
        inner = path.startswith(start)
        name = path[len(start) :] if inner else os.path.relpath(path, base)
        yield name.replace(os.sep, "/")


def _require_folder(root: Path | None) -> Path:
    path = resolve_root(root)
    if path.is_dir():
        return path
    fix = (
        f"Use `data=csv data.root={path}`."
        if path.suffix.lower() in (".csv", ".tsv")
        else "If this is an archive, unpack the archive. Set data.root to the folder."
    )
    raise RequestError(f"{str(path)!r} is a file. {LAYOUT} {fix}")


def _check_classes(
    names: Sequence[str],
    parts: Mapping[str, Mapping[str, Sequence[Path]]],
    rows: Sequence[tuple[str, str, str]],
    left_out: LeftOut,
) -> None:
    """Check that train has images of at least two classes, and of all classes.

    names: the classes of train.
    """
    train = next(iter(parts))
    readable = {name for _, name, split in rows if split == train}
    more = sorted({name for _, name, _ in rows} - readable)
    if more:
        raise RequestError(
            f"Validation or test have images of {quote_some(more)}, but train has none."
            f"{_compare_case(more, names)} Expected: every class in train. Rename the folders, add"
            " images to train, or remove the classes."
        )
    empty = [name for name in names if name not in readable]
    if len(names) - len(empty) < 2:
        with_images = [name for name in names if name not in empty]
        raise RequestError(_explain_single_class(parts[train], with_images, left_out))
    if empty:
        folders = [folder for name in empty for folder in parts[train][name]]
        count = "A class has" if len(empty) == 1 else f"{len(empty)} classes have"
        raise RequestError(
            f"{count} no image in {str(folders[0].parent)!r}: {quote_some(empty)}"
            f" ({_describe_files(folders, left_out)})."
            f"{suggest_conversion(left_out.files)} Add images, or remove the folders."
        )


def _compare_case(names: Sequence[str], others: Sequence[str]) -> str:
    known = {normalize_spelling(name): name for name in others}
    pairs = [
        f"{name!r} and {known[key]!r}"
        for name in names
        if (key := normalize_spelling(name)) in known
    ]
    return f" The names differ only in spelling: {', '.join(pairs[:3])}." if pairs else ""


def _note_unlabeled(names: Sequence[str]) -> list[str]:
    return [
        f"The folder {name!r} is read as a class. If its images have no label, move it out of"
        " data.root; data.unlabeled= then trains on them."
        for name in names
        if is_unlabeled_name(name)
    ]


def _describe_files(folders: Sequence[Path], left_out: LeftOut) -> str:
    inside = tuple(os.path.join(folder, "") for folder in folders)
    files = [file for file in left_out.files if file.startswith(inside)]
    return f"{describe_others(files)} of other kinds" if files else "no file"


def _explain_single_class(
    classes: Mapping[str, Sequence[Path]], readable: Sequence[str], left_out: LeftOut
) -> str:
    """Return the error for fewer than two classes; names the folder to use instead."""
    name = (readable or list(classes))[0]
    folder = classes[name][0]
    if not readable:
        return (
            f"The folders in {str(folder.parent)!r} ({quote_some(list(classes))}) have no image"
            f" ({_describe_files([folder.parent], left_out)}).{suggest_conversion(left_out.files)}"
            f" {LAYOUT} Set data.root to the folder of the images."
        )
    start = f"{str(folder.parent)!r} holds a single class, {name!r}. Expected: at least two."
    below = list_folders(folder)
    while len(below) == 1:
        folder /= below[0]
        below = list_folders(folder)
    if below:
        return (
            f"{start} If the folders in it ({quote_some(below)}) are the classes, set"
            f" data.root={folder}. Else add the images of another class."
        )
    hint = f" {ANNOTATED}" if is_plain_name(name) else ""
    return f"{start}{hint} Add the images of another class."


def _find_beside(
    root: Path, parts: Mapping[str, Mapping[str, Sequence[Path]]], left_out: LeftOut
) -> None:
    """Add the images that lie in `root`, but in no class folder."""
    above: set[Path] = set()
    for classes in parts.values():
        for folder in (folder for folders in classes.values() for folder in folders):
            parent = folder.parent
            while parent not in above and parent.is_relative_to(root):
                above.add(parent)
                parent = parent.parent
    for folder in sorted(above):
        for entry in list_visible(folder, left_out):
            if not is_folder(entry) and is_image(entry.path):
                left_out.beside.append(entry.path)
