"""Grouping of runs into methods (one configuration over several seeds), with a label
for each method: the settings in which it differs from the others.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kd_app.config.keys import NESTED_NON_IDENTITY_KEYS, NON_IDENTITY_KEYS
from kd_app.reporting.runs import Run, flatten
from kd_app.reporting.selection import find_measured

_NOT_THE_METHOD: Final = (
    *NON_IDENTITY_KEYS,
    *NESTED_NON_IDENTITY_KEYS,
    "seed",
    "test",
    "verdict",
    "neighbors.margin",
    "controls",
    "robustness",
    "data.root",
)
"""Keys that don't change how a student is trained: where the run is computed, by which
rule it is judged, and what it is compared with.
"""
_ABSENT: Final = object()


@dataclass(frozen=True)
class MethodGroup:
    """Runs by seed, with one configuration and one set of images.

    images: identifies data and split.
    """

    label: str
    images: tuple[str, str]
    runs: dict[int, Run]


def group_by_method(runs: Sequence[Run]) -> tuple[list[MethodGroup], int]:
    """Group runs into methods, in the order of their first runs.

    Also returns the number of runs that repeat a seed of their method. Of such runs the
    group keeps the first that read the test set, or else the first.
    """
    by_method: dict[str, dict[int, Run]] = {}
    num_repeated = 0
    for run in runs:
        key = [_extract_method(run.config), identify_images(run)]
        by_seed = by_method.setdefault(json.dumps(key, sort_keys=True, default=str), {})
        other = by_seed.get(run.results.seed)
        num_repeated += other is not None
        if other is None or (
            find_measured(other.results, "test") is None
            and find_measured(run.results, "test") is not None
        ):
            by_seed[run.results.seed] = run
    groups = [dict(sorted(by_seed.items())) for by_seed in by_method.values()]
    firsts = [next(iter(by_seed.values())) for by_seed in groups]
    images = [identify_images(run) for run in firsts]
    labels = _build_labels([run.config for run in firsts], images)
    return [MethodGroup(*parts) for parts in zip(labels, images, groups, strict=True)], num_repeated


def identify_images(run: Run) -> tuple[str, str]:
    """Identify the images of training and evaluation: the fingerprint of the data, and
    the hash of ``split.csv`` ('' if unknown).
    """
    data = run.results.data
    split = next((file.sha256 for file in run.results.files if file.name == "split.csv"), "")
    return data.fingerprint if data else "", split


def _extract_method(config: Mapping[str, Any]) -> dict[str, Any]:
    excluded = tuple(f"{key}." for key in _NOT_THE_METHOD)
    return {key: value for key, value in flatten(config) if not f"{key}.".startswith(excluded)}


def _build_labels(
    configs: Sequence[Mapping[str, Any]], images: Sequence[tuple[str, str]]
) -> list[str]:
    if len(configs) == 1:
        return [_describe_method(configs[0])]
    columns = _drop_redundant(_find_differences("", configs)).values()
    # Equal configurations have no column: their labels are empty.
    rows = list(zip(*columns, strict=True)) or [()] * len(configs)
    labels = [", ".join(filter(None, row)) for row in rows]
    if len(set(labels)) == len(labels) and all(labels):
        return labels
    return [
        f"{label or 'as configured'} (data {data[:6]}, split {split[:6]})"
        for label, (data, split) in zip(labels, images, strict=True)
    ]


def _describe_method(config: Mapping[str, Any]) -> str:
    """A single method, by student and loss terms: 'resnet8, cross_entropy +
    soft_target'.
    """
    parts = [_shorten(config.get("student")), " + ".join(config.get("loss") or {})]
    return ", ".join(filter(None, parts))


def _find_differences(path: str, nodes: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield ``(dotted key, one value per method)`` for each setting that differs.

    If some methods lack a component, the value is the list of component names.
    """
    if f"{path}.".startswith(tuple(f"{key}." for key in _NOT_THE_METHOD)):
        return
    present = [node for node in nodes if node is not _ABSENT]
    if all(node == present[0] for node in present):
        return
    if (
        not all(isinstance(node, Mapping) for node in present)
        or len({str(node.get("_target_")) for node in present}) > 1
    ):
        yield path, list(nodes)
        return
    keys = list(dict.fromkeys(key for node in present for key in node))
    components = [key for key in keys if any(_is_component(node.get(key)) for node in present)]
    if path and any(key not in node for key in components for node in present):
        yield path, [_ABSENT if node is _ABSENT else list(node) for node in nodes]
    for key in keys:
        below = [_ABSENT if node is _ABSENT else node.get(key, _ABSENT) for node in nodes]
        yield from _find_differences(f"{path}.{key}" if path else key, below)


def _is_component(node: Any) -> bool:
    return isinstance(node, Mapping) and "_target_" in node


def _drop_redundant(differences: Iterator[tuple[str, list[Any]]]) -> dict[str, list[str]]:
    """Texts per key, one per method, without keys that add no information.

    Dropped are keys with the same values as another key (trainer.max_epochs and
    teacher.max_epochs), and keys that follow from the name in their group
    (optimizer.scratch_lr from optimizer.name).
    """
    ordered = sorted(
        differences,
        key=lambda item: (not item[0].endswith(".name"), item[0].startswith("teacher.")),
    )
    columns: dict[str, list[Any]] = {}
    for key, values in ordered:
        name = columns.get(f"{key.split('.')[0]}.name")
        if values not in columns.values() and not (name is not None and _is_implied(values, name)):
            columns[key] = values
    return {
        key: ["" if value is _ABSENT else f"{key}={_shorten(value)}" for value in values]
        for key, values in columns.items()
    }


def _is_implied(values: Sequence[Any], name: Sequence[Any]) -> bool:
    """Whether equal names always come with equal values."""
    pairs = {(str(a), str(b)) for a, b in zip(name, values, strict=True)}
    return len(pairs) == len({str(a) for a in name})


def _shorten(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return str(value.get("name") or str(value.get("_target_", "")).split(".")[-1].lower())
    if isinstance(value, list):
        return f"[{','.join(map(_shorten, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
