"""Layout of a folder of labeled images: where its splits and its classes are."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kd_app.config import RequestError
from kd_app.config.errors import quote_some
from kd_app.data.image_tree import holds_image, is_folder, is_image, list_folders, list_visible
from kd_app.data.source import SPLITS
from kd_app.data.split_words import (
    EITHER,
    FILLER,
    SPLIT_WORDS,
    SplitMatch,
    is_unlabeled_name,
    match_split,
    match_splits,
)

LAYOUT = (
    "Expected: <root>/<class>/<image>, or <root>/train/<class>/<image> with test/ and val/ (or"
    " validation/) next to train/ for predefined splits."
)
ClassLevel = Literal[1, 2]

_PLAIN = re.compile(rf"(?:{FILLER}|archive|jpe?gs?|pngs?|classes)+")
_ANNOTATIONS = re.compile(
    r"(annotations?|labels?|masks?|trimaps?|segmentations?|bbox(es)?|groundtruth|gt)\d*",
    re.IGNORECASE,
)
ANNOTATED = (
    "Labels in other files (YOLO, COCO, VOC) and masks are not read: a class for each image is"
    " needed. Put the images of each class into a folder, or list them in a table (data=csv)."
)
_SIMILAR = 0.75
"""Mean share of all sub-folder names in each folder, from which folders are alike."""


@dataclass(frozen=True)
class Layout:
    """Where the images are.

    base: the folder to which file names are relative. parts: split ('' without splits)
    -> class -> its folders. notes: sentences for the user.
    """

    base: Path
    parts: dict[str, dict[str, list[Path]]]
    notes: tuple[str, ...]


def find_layout(root: Path, level: ClassLevel | None) -> Layout:
    """Find the splits and the classes below `root`.

    level: 1 if the folders in `root` (or in the folder of a split) are the classes, 2
    if those in them are; None: 1, unless that is doubtful. Raises `RequestError` for a
    doubtful layout.
    """
    if level is not None:
        splits, notes = ({}, []) if _find_splits_in_names(root) else find_splits(root)
        parts = splits or {"": root}
        return Layout(
            root, {split: _find_classes(part, level)[0] for split, part in parts.items()}, (*notes,)
        )
    base = _enter_wrapper(root)
    classes = _find_splits_in_names(base)
    if classes:
        note = (
            f"In {str(base)!r}, the names of the folders have split and class:"
            f" {_describe_names(classes)}. data.source.class_level=1 makes each folder a class."
        )
        return Layout(base, classes, (note,))
    splits, notes = find_splits(base)
    parts = splits or {"": base}
    inner = _enter_image_folders({split: _enter_wrapper(part) for split, part in parts.items()})
    moved = [str(inner[split]) for split in parts if inner[split] != parts[split]]
    if base != root or moved:
        places = ", ".join(map(repr, moved or [str(base)]))
        notes = [f"The images of {str(root)!r} are read from {places}.", *notes]
    classes = {} if splits else _find_splits_in_classes(base)
    if classes:
        notes.append(
            f"In {str(base)!r}, each class has folders of splits: {quote_some([*classes])}."
        )
        return Layout(base, classes, (*notes,))
    notes += [] if splits else _note_sibling_splits(base)
    for split, part in inner.items():
        classes[split], doubts = _find_classes(part, None)
        notes += doubts if part == next(iter(inner.values())) else []
    return Layout(base, classes, (*notes,))


def is_plain_name(name: str) -> bool:
    """Return whether a name says no more than that there are images: 'images'."""
    return _PLAIN.fullmatch(name.lower()) is not None


def _holds_images(folder: Path) -> bool:
    """Whether an image lies directly in the folder."""
    return any(not is_folder(entry) and is_image(entry.path) for entry in list_visible(folder))


def _enter_wrapper(folder: Path) -> Path:
    """The folder to read, one or more levels down if that can't be wrong.

    That is the case for a folder that holds only a folder of the same name, or only a
    folder with splits.
    """
    while True:
        names = list_folders(folder)
        if len(names) != 1 or _holds_images(folder):
            return folder
        inner = folder / names[0]
        below = list_folders(inner)
        same_name = names[0].lower() == folder.resolve().name.lower()
        doubled = len(below) == 1 and below[0].lower() == names[0].lower()
        if not below or not (
            same_name or (not match_split(names[0]) and (doubled or find_splits(inner)[0]))
        ):
            return folder
        folder = inner


def _enter_image_folders(parts: dict[str, Path]) -> dict[str, Path]:
    """Enter ``images/`` or the like where it is all that each split holds."""
    inner = {}
    for split, part in parts.items():
        names = list_folders(part)
        if not split or len(names) != 1 or not is_plain_name(names[0]):
            return parts
        if not list_folders(part / names[0]) or _holds_images(part):
            return parts
        inner[split] = part / names[0]
    return inner


def find_splits(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return split -> folder, ordered train, validation, test, and notes.

    Empty without splits. Raises `RequestError` if the folders may be splits or classes.
    """
    names = list_folders(folder)
    matches = match_splits(names)
    matched, others = _select_split_folders(folder, names, matches)
    if not matched:
        return {}, []
    splits = {name: matches[name].split for name in matched}
    splits = dict(sorted(splits.items(), key=lambda item: SPLITS.index(item[1])))
    place = f"{str(folder)!r} holds {quote_some(matched)}"
    if others:
        raise RequestError(
            f"{place} and also {quote_some(others)}: predefined splits or classes? If"
            f" {others[0]!r} is a split, rename it to val or test, or merge it into train. If its"
            f" images have no labels, rename it to unlabeled; data.unlabeled={folder / 'unlabeled'}"
            f" then trains on them. Else move it away. {LAYOUT}"
        )
    _check_distinct(splits, place)
    if "train" not in splits.values():
        raise RequestError(f"{place} but no train folder. {LAYOUT}")
    notes = _note_left_out(folder, [name for name in names if name not in matched])
    if not all(name.lower() in SPLIT_WORDS and name.lower() not in EITHER for name in matched):
        meanings = ", ".join(f"{name!r} is {split}" for name, split in splits.items())
        notes.insert(0, f"{place}: read as predefined splits ({meanings}).")
    return {split: folder / name for name, split in splits.items()}, notes


def _check_distinct(splits: Mapping[str, str], place: str) -> None:
    """Raise `RequestError` if two folders are the same split."""
    for split in splits.values():
        same = [name for name in splits if splits[name] == split]
        if len(same) > 1:
            raise RequestError(
                f"{place}: {quote_some(same)} are two folders for the same split, {split}. {LAYOUT}"
                " Merge the folders, or rename one to the split that is meant."
            )


def _note_left_out(folder: Path, names: Sequence[str]) -> list[str]:
    """Return notes about the folders beside splits that are left out."""
    unlabeled = [name for name in names if is_unlabeled_name(name) and holds_image(folder / name)]
    others = [name for name in names if name not in unlabeled]
    notes = [
        f"In {str(folder)!r}, {name!r} beside the splits has images without labels, which are"
        f" only used with data.unlabeled={folder / name}."
        for name in unlabeled
    ]
    if others:
        notes.append(f"In {str(folder)!r}, {quote_some(others)} beside the splits: left out.")
    return notes


def _select_split_folders(
    folder: Path, names: Sequence[str], matches: Mapping[str, SplitMatch]
) -> tuple[list[str], list[str]]:
    """The folders of splits, none if all are classes, and others with images.

    matches: the result of `match_splits` for `names`.
    """
    nested = [name for name in matches if list_folders(folder / name)]
    exact = [name for name in matches if name.lower() in SPLIT_WORDS]
    splits = {match.split for match in matches.values()}
    surely = _are_exact_splits(exact, nested, names)
    if not surely and not (
        "train" in splits and (len(splits) > 1 or len(names) == len(nested) == 1)
    ):
        return [], []
    others = [name for name in names if name not in matches]
    others = [name for name in others if not _is_ignorable(folder, name, list(matches))]
    if not surely and not _are_splits(folder, matches, nested, others):
        return [], []
    matched = [name for name in matches if name in (*exact, *nested) or holds_image(folder / name)]
    return matched, others


def _are_exact_splits(exact: Sequence[str], nested: Sequence[str], names: Sequence[str]) -> bool:
    """Whether folders called 'train', 'test' ... are splits (or must be asked about).

    A folder 'train' without sub-folders, next to other folders, is a class.
    """
    splits = {SPLIT_WORDS[name.lower()] for name in exact}
    return (
        len(exact) == len(names)
        or any(name in nested for name in exact)
        or ("train" in splits and len(splits) > 1)
    )


def _are_splits(
    folder: Path,
    matches: Mapping[str, SplitMatch],
    nested: Sequence[str],
    others: Sequence[str],
) -> bool:
    """Whether folders with a split word inside their names are splits, not classes.

    They hold the same sub-folders, or have names that are equal but for the split word:
    not 'freight_train' and 'crash_test'.
    """
    if len(nested) > 1 and _are_alike([list_folders(folder / name) for name in nested]):
        return True
    return not others and len({match.rest for match in matches.values()}) == 1


def _find_splits_in_classes(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Return split -> class -> folders for ``<class>/train``, ``<class>/test`` ...

    Raises `RequestError` if the splits have the same sub-folders, as in
    ``images/train/cat`` and ``masks/train/cat``.
    """
    parts: dict[str, dict[str, list[Path]]] = {}
    names = list_folders(folder)
    for name in names:
        inner = list_folders(folder / name)
        if not inner or not all(map(match_split, inner)) or _holds_images(folder / name):
            return {}
        for each, match in match_splits(inner).items():
            parts.setdefault(match.split, {}).setdefault(name, []).append(folder / name / each)
    if len(parts) < 2 or list(parts.get("train", {})) != names:
        return {}
    leaves = [leaf for classes in parts.values() for each in classes.values() for leaf in each]
    inner = list_folders(leaves[0])
    if not any(map(_is_leaf, leaves)) and _are_alike([list_folders(leaf) for leaf in leaves]):
        raise RequestError(
            f"The folders in {str(folder)!r} ({quote_some(names)}) all hold splits with the same"
            f" sub-folders ({quote_some(inner)}), which seem to be the classes. Set"
            f" data.root to one of the folders, for example data.root={folder / names[0]}. {LAYOUT}"
        )
    return {split: parts[split] for split in SPLITS if split in parts}


def _find_splits_in_names(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Return split -> class -> folders for ``train_cat``, ``train_dog``, ``test_cat``
    ...: every folder has a split in its name, and what is left of the names is the same
    in all splits. Nothing for another layout.
    """
    names = list_folders(folder)
    if any(list_folders(folder / name) for name in names):
        return {}
    matches = match_splits(names)
    parts: dict[str, dict[str, list[Path]]] = {}
    for name, match in matches.items():
        ends = re.split(match.word, name, maxsplit=1, flags=re.IGNORECASE)
        rest = "_".join(filter(None, (re.sub(r"^[\W_]+|[\W_]+$", "", end) for end in ends)))
        parts.setdefault(match.split, {}).setdefault(rest, []).append(folder / name)
    classes = list(parts.get("train", {}))
    is_product = len(names) == len(matches) == len(parts) * len(classes)
    if not is_product or len(parts) < 2 or len(classes) < 2 or not all(map(_has_letter, classes)):
        return {}
    if any(sorted(each) != sorted(classes) for each in parts.values()):
        return {}
    return {split: parts[split] for split in SPLITS if split in parts}


def _has_letter(name: str) -> bool:
    return re.search(r"[^\W\d_]", name) is not None


def _describe_names(parts: Mapping[str, Mapping[str, Sequence[Path]]]) -> str:
    """Return "'test_cat' is 'cat' in test" for the last folder of `parts`."""
    split, classes = list(parts.items())[-1]
    name, folders = next(iter(classes.items()))
    return f"{folders[0].name!r} is {name!r} in {split}"


def _note_sibling_splits(root: Path) -> list[str]:
    """Return a note if `root` is a split itself, beside other splits."""
    root = root.resolve()
    if not match_split(root.name):
        return []
    try:
        splits, _ = find_splits(root.parent)
    except RequestError:
        return []
    others = [path.name for path in splits.values() if path != root]
    if root not in splits.values() or not others:
        return []
    return [
        f"Beside {root.name!r} lie other splits, which are not read: {quote_some(others)}."
        f" data.root={root.parent} reads them."
    ]


def _is_ignorable(folder: Path, name: str, splits: Sequence[str]) -> bool:
    """Whether a folder beside splits has no image, images without labels, or a copy of
    the splits.
    """
    return (
        is_unlabeled_name(name)
        or set(splits) <= set(list_folders(folder / name))
        or not holds_image(folder / name)
    )


def _are_alike(names: Sequence[Iterable[str]]) -> bool:
    """Whether folders hold (nearly) the same sub-folders, at least two."""
    sets = [{name.lower() for name in each} for each in names]
    union = set().union(*sets)
    return len(union) > 1 and sum(map(len, sets)) >= _SIMILAR * len(union) * len(sets)


def _find_classes(part: Path, level: ClassLevel | None) -> tuple[dict[str, list[Path]], list[str]]:
    """Return class -> folders, and a note if sub-folders may be the classes.

    Raises `RequestError` without class folders, or if the sub-folders of all folders
    have the same names.
    """
    names = _list_class_names(part)
    annotated = [name for name in names if _ANNOTATIONS.fullmatch(name)]
    is_annotated = annotated and all(is_plain_name(each) or each in annotated for each in names)
    if level is None and is_annotated:
        raise RequestError(
            f"The folders in {str(part)!r} ({quote_some(names)}) seem to be images and their"
            f" annotations. {ANNOTATED} If the folders are the classes, set"
            " data.source.class_level=1."
        )
    top = {name: [part / name] for name in names}
    if level == 1 or (level is None and any(_is_leaf(part / name) for name in names)):
        return top, []
    below = {name: list_folders(part / name) for name in names}
    classes: dict[str, list[Path]] = {}
    for name, inner in sorted(below.items()):
        for each in inner:
            classes.setdefault(each, []).append(part / name / each)
    if level == 2:
        if not classes:
            raise RequestError(
                f"data.source.class_level=2, but the folders in {str(part)!r} have no sub-folders."
                " Set data.source.class_level=1."
            )
        return dict(sorted(classes.items())), []
    if len(names) > 1 and _are_alike(list(below.values())):
        raise RequestError(
            f"The folders in {str(part)!r} ({quote_some(names)}) all hold sub-folders of the same"
            f" names ({quote_some(sorted(classes))}). Which are the classes? If the sub-folders,"
            " set data.source.class_level=2, which reads those of the same name as one class, or"
            f" set data.root to one of the folders, for example data.root={part / names[0]}. If the"
            f" folders, set data.source.class_level=1. If they are splits, rename them. {LAYOUT}"
        )
    if len(names) > 1 and any(len(inner) > 1 for inner in below.values()):
        return top, [
            f"The classes are the {len(names)} folders in {str(part)!r}; their {len(classes)}"
            f" sub-folders ({quote_some(sorted(classes))}) are parts of them."
            " data.source.class_level=2 makes each sub-folder a class."
        ]
    return top, []


def _is_leaf(folder: Path) -> bool:
    """Whether the folder holds images directly, or no folder."""
    entries = list_visible(folder)
    return not any(map(is_folder, entries)) or any(
        not is_folder(entry) and is_image(entry.path) for entry in entries
    )


def _list_class_names(part: Path) -> list[str]:
    entries = list_visible(part)
    names = [entry.name for entry in entries if is_folder(entry)]
    if names:
        return names
    images = sum(is_image(entry.path) for entry in entries)
    if images:
        content = f"{images} image(s) and no class folder"
    elif entries:
        content = f"{len(entries)} file(s), none of them an image, and no class folder"
    else:
        content = "nothing"
    raise RequestError(
        f"{str(part)!r} holds {content}. {LAYOUT} Put the images of each class into a separate"
        " folder, or list them in a table (data=csv). If the images have no labels, move the"
        " folder out of data.root; kd-predict labels them, and data.unlabeled= trains on them."
    )
