"""Seeded mutations of records: single leaves, structures, and the bytes of the file."""

import copy
import json
import pickle
import random
from collections.abc import Iterator
from typing import Any

import yaml

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2,
    7,
    10**29,
    -(10**29),
    1e308,
    -1e308,
    1e-308,
    1.5,
    -0.5,
    float("nan"),
    float("inf"),
    "",
    "\ud800",
    "\x00",
    "x\ny",
    "../../x",
    "9" * 40,
    "nan",
    "x" * 300,
    [],
    [[]],
    [None],
    ["a", "b"],
    [1e308, 1e308],
    [-1, -1, -1],
    {},
    {"": 1},
    {"a": None},
    {"_target_": "os.getcwd"},
)
TAGS = (
    *(f"!!{name}" for name in ("int", "float", "bool", "null", "timestamp", "binary", "set")),
    *(f"!!{name}" for name in ("omap", "pairs", "map", "seq", "str", "python/name:os.getcwd")),
    *("!!int ''", "!", "!x", "&a", "*a", "<<:", "? ", "- ", "|\n", "59:59.5", "0b", "---\n"),
)
"""For YAML: what may stand before a value."""
TEXTS = ("[" * 100_000, "{}", "[]", "null", "1", '""', "\x00", '{"a": ' * 5_000)


def list_places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every node below the root."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from list_places(value, (*path, key))


def mutate(record: Any, seed: int, *, is_yaml: bool = False, part: str | None = None) -> bytes:
    """The file of a record with one or two mutations; the same for the same seed.

    part: the key of the record that the mutations are in; None: anywhere.
    """
    draw = random.Random(seed)
    kind = draw.random()
    if kind < 0.02:
        return draw.choice(TEXTS).encode("utf-8", "surrogatepass")
    changed = pickle.loads(pickle.dumps(record))  # faster than a deep copy
    places = [place for place in list_places(changed) if part in (None, place[0])]
    for _ in range(1 if draw.random() < 0.8 else 2):
        _change(changed, draw.choice(places), draw)
    text = _dump(changed, is_yaml)
    if is_yaml and kind > 0.9:
        text = _tag(text, draw)
    content = text.encode("utf-8", "surrogatepass")
    if kind < 0.06:
        return content[: draw.randrange(len(content))]
    if kind < 0.1:
        at = draw.randrange(len(content))
        return content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
    return content


def _dump(value: Any, is_yaml: bool) -> str:
    if not is_yaml:
        return json.dumps(value)
    # JSON is YAML; the other style is what kd_app writes
    return yaml.safe_dump(value) if _is_clean(value) else json.dumps(value)


def _tag(text: str, draw: random.Random) -> str:
    """The YAML with a tag before one of its values, or with another word of YAML."""
    places = [place for place, letter in enumerate(text) if letter == " "] or [0]
    place = draw.choice(places)
    return f"{text[:place]} {draw.choice(TAGS)}{text[place:]}"


def _is_clean(value: Any) -> bool:
    return "\\ud800" not in json.dumps(value)


def _change(record: Any, place: tuple[Any, ...], draw: random.Random) -> None:
    *path, key = place
    node = record
    for part in path:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return  # an earlier mutation removed the place
    if isinstance(node, list):
        if not isinstance(key, int) or key >= len(node):
            return
    elif not isinstance(node, dict) or key not in node:
        return
    kind = draw.random()
    if kind < 0.7:
        node[key] = copy.deepcopy(draw.choice(VALUES))
    elif kind < 0.8:
        del node[key]
    elif kind < 0.85 and isinstance(node, dict):
        node[draw.choice(["", "x", "\ud800", "9"])] = node.pop(key)
    elif kind < 0.9:
        node[key] = [node[key]]
    elif kind < 0.95 and isinstance(node, list):
        node.append(copy.deepcopy(node[key]))
    else:
        value = node[key]
        node[key] = str(value) if not isinstance(value, str) else len(value)
