"""Names of a model's classes: found in what a checkpoint records, and matched to the
classes of the data.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_NAME_KEYS = (
    "label_names",
    "class_names",
    "classes",
    "CLASSES",
    "class_to_idx",
    "class_to_id",
    "classes_to_idx",
    "idx_to_class",
    "id2label",
    "label2id",
    "idx_to_label",
    "label_to_idx",
    "categories",
    "labels",
    "names",
    "vocab",
)
"""Keys under which training scripts record the names, the least ambiguous first."""
_MAX_DEPTH = 6
_SETS = {
    1000: "imagenet-1k",
    11221: "imagenet-21k-miil",
    11821: "imagenet-12k",
    21841: "imagenet-22k",
    21842: "imagenet-22k-ms",
    21843: "imagenet-21k-goog",
}
_WORDNET_ID = re.compile(r"n\d{8}")
_SHOWN = 3


@dataclass(frozen=True)
class ModelClasses:
    """How many classes a model predicts, None if unknown, and the class names, empty if
    unknown.
    """

    count: int | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassMatch:
    """Which outputs of a model belong to the classes of the data.

    fits: whether the model predicts these classes. rows: for each class of the data
    the number of the model's output, if that is not the class number itself. reason:
    why the model does not fit, as the predicate of a sentence about it. detail: which
    names differ, as a sentence. note: for the user, as a predicate, if the outputs are
    not used as they are.
    """

    fits: bool
    rows: tuple[int, ...] | None = None
    reason: str = ""
    detail: str = ""
    note: str = ""


def match_classes(classes: Sequence[str], model: ModelClasses) -> ClassMatch:
    """Match the classes of the data to a model's outputs by name.

    The model may predict more classes, in any order, and spell the names differently
    (case, spaces, underscores, leading zeros; WordNet ids or their words). Without
    names only the number is compared.
    """
    classes, count = tuple(classes), len(classes)
    if not model.names:
        if model.count in (None, count):
            return ClassMatch(fits=True)
        reason = f"has {model.count} classes" if model.count else "has no classifier"
        return ClassMatch(fits=False, reason=reason)
    if model.names == classes:
        return ClassMatch(fits=True)
    numbers = {name: number for number, name in enumerate(model.names)}
    rows = [numbers.get(name) for name in classes]
    spelling = ""
    if None in rows:
        rows = _match_spelling(classes, model.names)
        different = (
            (model.names[row], name)
            for name, row in zip(classes, rows, strict=True)
            if row is not None and model.names[row] != name
        )
        first = next(different, None)
        spelling = f"; {first[0]!r} is taken for {first[1]!r}" if first else ""
    matched = [row for row in rows if row is not None]
    if len(set(matched)) < count:
        return ClassMatch(
            fits=False,
            reason=f"has {len(model.names)} classes",
            detail=_explain_mismatch(classes, model.names, rows),
        )
    total = len(model.names)
    if total > count:
        note = f"predicts {total:,} classes; the outputs of the data's {count:,} are used"
    elif matched == list(range(count)):
        note = "names its classes differently"
    else:
        number = next(number for number, row in enumerate(matched) if row != number)
        note = (
            "has the data's classes in another order"
            f" (its class {number} is {model.names[number]!r}, the data's is {classes[number]!r});"
            " its outputs are reordered by name"
        )
    rows_or_none = None if matched == list(range(total)) else tuple(matched)
    return ClassMatch(fits=True, rows=rows_or_none, note=note + spelling)


def _explain_mismatch(
    classes: Sequence[str], names: Sequence[str], rows: Sequence[int | None]
) -> str:
    unknown = [name for name, row in zip(classes, rows, strict=True) if row is None]
    theirs = f"Its classes are {', '.join(map(repr, names[:_SHOWN]))} ..."
    if not unknown:
        return f"{theirs}; several of the data's classes differ from each other only in spelling."
    sample = ", ".join(map(repr, unknown[:_SHOWN]))
    more = " ..." if len(unknown) > _SHOWN else ""
    return f"{theirs}; {len(unknown)} of the data's are none of them ({sample}{more})."


def _match_spelling(classes: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """Return for each class the one name that is spelled alike; None if there is no
    such name, or several.
    """
    whole: dict[str, set[int]] = {}
    parts: dict[str, set[int]] = {}
    for number, name in enumerate(names):
        for text in _list_spellings(name):
            whole.setdefault(_normalize(text), set()).add(number)
            for part in text.split(","):
                parts.setdefault(_normalize(part), set()).add(number)
    candidates = (
        next(
            (
                index[_normalize(text)]
                for index in (whole, parts)
                for text in _list_spellings(name)
                if _normalize(text) in index
            ),
            set(),
        )
        for name in classes
    )
    return [next(iter(each)) if len(each) == 1 else None for each in candidates]


def _list_spellings(name: str) -> tuple[str, ...]:
    """Return a name, and the words of a WordNet id ('tench, Tinca tinca') or the id
    behind words ('crane (n02012849)').
    """
    if _WORDNET_ID.fullmatch(name):
        return name, _load_words().get(name, name)
    with_id = re.fullmatch(rf".*\(({_WORDNET_ID.pattern})\)", name)
    return (name, with_id[1]) if with_id else (name,)


def _normalize(name: str) -> str:
    text = unicodedata.normalize("NFKC", name).casefold()
    text = re.sub(r"[\s_\-]+", " ", text).strip()
    return str(int(text)) if text.isdecimal() else text


@lru_cache(maxsize=1)
def _load_words() -> Mapping[str, str]:
    """Return WordNet id -> words of the classes of all ImageNet sets."""
    from timm.data import ImageNetInfo

    sets = [ImageNetInfo(subset) for subset in ("imagenet-22k", "imagenet-21k-goog")]
    return {
        name: each.label_name_to_description(name) for each in sets for name in each.label_names()
    }


def name_imagenet_classes(count: int | None) -> tuple[str, ...]:
    """Return the WordNet ids (``n01440764``) of the ImageNet set with this number of
    classes, or nothing if there is none.
    """
    if count not in _SETS:
        return ()
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo(_SETS[count]).label_names())


def describe_classes(names: Sequence[str]) -> tuple[str, ...]:
    """Return the words of WordNet ids ('tench, Tinca tinca'), with the id where several
    have the same words ('crane (n02012849)').
    """
    words = [_load_words().get(name, name) for name in names]
    counts = Counter(words)
    return tuple(
        text if counts[text] == 1 else f"{text} ({name})"
        for text, name in zip(words, names, strict=True)
    )


def list_candidate_orders(classes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the orders in which other tools number these classes, without the order of
    `classes` itself: for each order the number of the output of every class.

    natural: 0, 1, 2, 10 (timm). string: 0, 1, 10, 2 (torchvision, kd_app's folders).
    caseless: string order that ignores case.
    """
    orders = {
        "natural": sorted(classes, key=_split_numbers),
        "string": sorted(classes),
        "caseless": sorted(classes, key=lambda name: (name.casefold(), name)),
    }
    rows: dict[str, tuple[int, ...]] = {}
    for title, order in orders.items():
        numbers = {name: number for number, name in enumerate(order)}
        row = tuple(numbers[name] for name in classes)
        if row != tuple(range(len(classes))) and row not in rows.values():
            rows[title] = row
    return rows


def _split_numbers(name: str) -> list[tuple[int, int, str]]:
    """Return the sort key of timm's natural order: digits compare as numbers."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name.lower())
        if part
    ]


def find_names(content: Any) -> tuple[str, ...]:
    """Return the class names that a checkpoint or a config.json records, in the order
    of the outputs, or nothing.
    """
    nodes, visited = [content], {id(content)}
    for _ in range(_MAX_DEPTH):
        mappings = [mapping for node in nodes if (mapping := _read_mapping(node)) is not None]
        for key in _NAME_KEYS:
            for mapping in mappings:
                if names := _parse_names(_unwrap(mapping.get(key))):
                    return names
        values = {id(value): value for mapping in mappings for value in mapping.values()}
        nodes = [value for number, value in values.items() if number not in visited]
        visited |= values.keys()
    return ()


def parse_labels(labels: Any) -> tuple[str, ...]:
    """Return the label_names of a config.json: a list, or a dict by class number, in
    whatever order its file has; nothing if they are neither.
    """
    return tuple(map(str, labels)) if isinstance(labels, list | tuple) else _parse_names(labels)


def _read_mapping(node: Any) -> Mapping[str, Any] | None:
    """Return a dict, or the attributes of an object, as a mapping by text."""
    node = _unwrap(node)
    if isinstance(node, Mapping):
        return {str(key): value for key, value in node.items()}
    is_plain = node is None or isinstance(node, str | int | float | bytes | list | tuple)
    return None if is_plain else getattr(node, "__dict__", None)


def _unwrap(node: Any) -> Any:
    """Return the plain value of a node of OmegaConf's configurations: names are no
    lists, so the items of a list are unwrapped, and not those of a list in it.
    """
    content = _unwrap_value(node)
    return [_unwrap_value(each) for each in content] if isinstance(content, list) else content


def _unwrap_value(node: Any) -> Any:
    attributes = getattr(node, "__dict__", None) or {}
    return attributes["_val"] if "_val" in attributes else attributes.get("_content", node)


def _parse_names(value: Any) -> tuple[str, ...]:
    """Return names from a list, from name -> number, or from number -> name."""
    if isinstance(value, list | tuple):
        names = [str(each) for each in value if isinstance(each, str | int)]
        return tuple(names) if len(set(names)) == len(value) > 1 else ()
    if not isinstance(value, Mapping) or len(value) < 2:
        return ()
    items = [(key, _unwrap(each)) for key, each in value.items()]
    by_number = {_read_number(number): name for name, number in items}
    if set(by_number) != set(range(len(value))):
        by_number = {_read_number(number): name for number, name in items}
    if set(by_number) != set(range(len(value))):
        return ()
    names = [str(by_number[number]) for number in range(len(value))]
    return tuple(names) if len(set(names)) == len(names) else ()


def _read_number(value: Any) -> int | None:
    if isinstance(value, int):
        return int(value)
    return int(value) if isinstance(value, str) and value.isdecimal() else None
