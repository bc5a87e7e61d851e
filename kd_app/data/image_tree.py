"""Images in and below a folder, and a count of what is left out."""

import csv
import io
import mimetypes
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from kd_app.config import RequestError
from kd_app.config.csv_cells import write_rows
from kd_app.config.errors import quote_some
from kd_app.data.images import find_image_signature, is_image_name
from kd_app.run_files import CONFIG, INPUTS, RESULTS
from kd_app.stages import write_atomically

_SYSTEM_FOLDERS = frozenset(
    [
        "__macosx",
        "__pycache__",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
    ]
)
"""Folders that operating systems, archivers and network drives add, in lower case."""
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_COPY = re.compile(r"(~|[._-](bak|old|orig|original|tmp|temp|part|partial|download|crdownload))$")
"""Endings of backups and of incomplete downloads."""
_HEIC = frozenset({".heic", ".heif", ".hif"})
_TYPES = mimetypes.MimeTypes(filenames=())
_STAGES = ".stages"
_RUN_FILES = (RESULTS, INPUTS, ".lock")
_SWEEP_DEPTH = 3
"""Levels of folders above a run: that of all runs, that of a sweep."""
_LISTED = 6
_LONGEST_ENDING = 12


@dataclass
class LeftOut:
    """What was left out of a folder, for notes to the user.

    files: files that are no images. special: pipes, sockets and devices. beside: images
    that lie beside the class folders. system: names of system folders, and images with
    a hidden name. outputs: folders that kd_app wrote.
    """

    files: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    system: Counter[str] = field(default_factory=Counter)

    def describe(self, folder: Path) -> tuple[str, ...]:
        """Return a note for each kind of files that were left out of `folder`."""
        notes = []
        if self.files:
            verb = "is" if len(self.files) == 1 else "are"
            notes.append(
                f"In {str(folder)!r}, {describe_others(self.files)} {verb} left out, because Pillow"
                f" reads no such images.{suggest_conversion(self.files)}"
            )
        if self.special:
            notes.append(
                f"In {str(folder)!r}, {len(self.special):,} pipe(s), socket(s) or device(s) are"
                f" left out, for example {os.path.relpath(self.special[0], folder)!r}."
            )
        if self.beside:
            notes.append(
                f"In {str(folder)!r}, {len(self.beside):,} image(s) beside the class folders have"
                " no class and are left out, for example"
                f" {os.path.relpath(self.beside[0], folder)!r}."
            )
        if self.outputs:
            paths = sorted({os.path.relpath(path, folder) for path in self.outputs})
            notes.append(f"In {str(folder)!r}, runs of kd_app are left out: {quote_some(paths)}.")
        if self.system:
            names = [
                f"{name!r}" + (f" ({count:,} times)" if count > 1 else "")
                for name, count in self.system.most_common(_LISTED)
            ]
            notes.append(
                f"In {str(folder)!r}, these names of system files are left out: {', '.join(names)}."
            )
        return tuple(notes)


def describe_others(files: list[str]) -> str:
    """Return '97 files (94 .heic, 3 without an ending)'."""
    counts = Counter(map(_read_ending, files))
    kinds = [f"{count:,} {ending}" for ending, count in counts.most_common(_LISTED)]
    rest = len(files) - sum(count for _, count in counts.most_common(_LISTED))
    if rest:
        kinds.append(f"{rest:,} others")
    return f"{len(files):,} file{'s' if len(files) > 1 else ''} ({', '.join(kinds)})"


def suggest_conversion(files: list[str]) -> str:
    """Return how HEIC files among `files` can be read, with a leading space, or ''."""
    if not any(_read_ending(file) in _HEIC for file in files):
        return ""
    return (
        " To read HEIC, install pi-heif (pip install 'kd_app[heic]'), or convert the files to JPEG"
        " (macOS: sips -s format jpeg *.HEIC --out jpeg; Linux: heif-convert)."
    )


def walk_images(folder: Path, visited: set[str], left_out: LeftOut) -> Iterator[str]:
    """Yield the paths of the images in and below `folder`; links are followed.

    Files without an image extension are recognized by their content. visited: real
    paths of folders to skip; visited folders are added.
    """
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
    for entry in list_visible(folder, left_out):
        if is_folder(entry):
            yield from walk_images(Path(entry.path), visited, left_out)
        elif entry.is_symlink() or entry.is_file():
            # Broken links are included: reading them raises an error with their name.
            if is_image(entry.path):
                yield entry.path
            elif entry.name.lower() not in _SYSTEM_FILES:
                left_out.files.append(entry.path)
        else:
            left_out.special.append(entry.path)


def holds_image(folder: Path) -> bool:
    """Whether an image is in or below `folder`."""
    return next(walk_images(folder, set(), LeftOut()), None) is not None


def is_image(path: str) -> bool:
    """Whether the file is an image by its name, or else by its first bytes.

    Endings that mean something else ('.txt', '.xml', '.zip', '.bak' ...) are not
    opened.
    """
    if is_image_name(path):
        return True
    ending = os.path.splitext(path)[1].lower()
    if _means_other(ending) or _COPY.search(path.lower()) or not os.path.isfile(path):
        return False
    # Raw photos are TIFF files whose first image is a thumbnail.
    formats = {None, "TIFF"} if ending[:4] not in ("", ".tif") else {None}
    return find_image_signature(path) not in formats


@cache
def _means_other(ending: str) -> bool:
    kind = _TYPES.types_map[True].get(ending)
    return kind is not None and not kind.startswith("image/")


def _read_ending(file: str) -> str:
    ending = os.path.splitext(file)[1].lower()
    if not ending:
        return "without an ending"
    return ending if len(ending) <= _LONGEST_ENDING else f"{ending[:_LONGEST_ENDING]}..."


def write_reasons(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write a CSV of the files that were not read: file, reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    write_rows(writer, [("file", "reason"), *rows])
    write_atomically(path, text.getvalue())


def list_visible(folder: Path, left_out: LeftOut | None = None) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name.

    Hidden names, and names of system folders, are left out. Raises `RequestError` for a
    folder that can't be listed.
    """
    try:
        with os.scandir(folder) as entries:
            everything = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise RequestError(
            f"The folder {str(folder)!r} can't be listed: {error.strerror}. Allow this"
            " user to read the folder, or move the folder away."
        ) from error
    visible = []
    for entry in everything:
        hidden = entry.name.startswith(".")
        if not hidden and entry.name.lower() not in _SYSTEM_FOLDERS:
            if not is_folder(entry) or not _is_output(entry.path):
                visible.append(entry)
            elif left_out is not None:
                left_out.outputs.append(entry.path)
        elif left_out is not None and (not hidden or is_image_name(entry.name)):
            left_out.system[".* (hidden images)" if hidden else entry.name] += 1
    return visible


def _is_output(folder: str, depth: int = 0) -> bool:
    """Whether kd_app wrote the folder: a run, or a folder that holds runs only."""
    has_config = os.path.isfile(os.path.join(folder, CONFIG))
    if has_config and any(os.path.isfile(os.path.join(folder, name)) for name in _RUN_FILES):
        return True
    if os.path.isdir(os.path.join(folder, _STAGES)):
        return True
    inner = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if depth == _SWEEP_DEPTH or not entry.is_dir(follow_symlinks=False):
                return False
            inner.append(entry.path)
    return len(inner) > 0 and all(_is_output(each, depth + 1) for each in inner)


def list_folders(folder: Path) -> list[str]:
    """Return the names of the visible folders in `folder`, sorted."""
    return [entry.name for entry in list_visible(folder) if is_folder(entry)]


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself is no folder.
        return False
