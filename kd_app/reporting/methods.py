"""Which runs are seeds of one method, and what to call it: by what its configuration
says differently from the others'.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kd_app.config.keys import NESTED_NON_IDENTITY_KEYS, NON_IDENTITY_KEYS
from kd_app.reporting.runs import Run, flatten

_NOT_THE_METHOD: Final = (
    *NON_IDENTITY_KEYS,
    *NESTED_NON_IDENTITY_KEYS,
    "seed",
    "test",
    "verdict",
    "controls",
    "robustness",
    "data.root",
)
"""Keys that don't change how a student is trained: where and how it is done, by what
rule it is judged, and what it is compared with.
"""
_ABSENT: Final = object()


@dataclass(frozen=True)
class MethodGroup:
    """Runs of one configuration on one set of images, by seed: `images` identifies data
    and split.
    """

    label: str
    images: tuple[str, str]
    runs: dict[int, Run]


def group_by_method(runs: Sequence[Run]) -> tuple[list[MethodGroup], int]:
    """The methods in the order of their first run, and how many runs repeat a seed of
    one: of those the one that read the test set is kept.
    """
    found: dict[str, dict[int, Run]] = {}
    repeated = 0
    for run in runs:
        seeds = found.setdefault(
            json.dumps(
                [_extract_method(run.config), identify_images(run)], sort_keys=True, default=str
            ),
            {},
        )
        known = seeds.get(run.results.seed)
        repeated += known is not None
        if known is None or (known.results.test is None and run.results.test is not None):
            seeds[run.results.seed] = run
    members = [dict(sorted(seeds.items())) for seeds in found.values()]
    firsts = [next(iter(seeds.values())) for seeds in members]
    labels = _build_labels([run.config for run in firsts], [identify_images(run) for run in firsts])
    return [
        MethodGroup(label, identify_images(run), seeds)
        for label, run, seeds in zip(labels, firsts, members, strict=True)
    ], repeated


def identify_images(run: Run) -> tuple[str, str]:
    """What decides which images a run trained on and was measured on: the data's
    fingerprint, and the hash of its split.csv ('' where unknown).
    """
    data = run.results.data
    split = next((file.sha256 for file in run.results.files if file.name == "split.csv"), "")
    return data.fingerprint if data else "", split


def _extract_method(config: Mapping[str, Any]) -> dict[str, Any]:
    free = tuple(f"{key}." for key in _NOT_THE_METHOD)
    return {key: value for key, value in flatten(config) if not f"{key}.".startswith(free)}


def _build_labels(
    configs: Sequence[Mapping[str, Any]], measured_on: Sequence[tuple[str, str]]
) -> list[str]:
    if len(configs) == 1:
        return [_describe_method(configs[0])]
    texts = [
        ", ".join(said)
        for said in zip(*_drop_redundant(_find_differences("", configs)).values(), strict=True)
    ] or [""] * len(configs)
    named = [", ".join(filter(None, text.split(", "))) for text in texts]
    if len(set(named)) == len(named) and all(named):
        return named
    return [
        f"{name or 'as configured'} (data {data[:6]}, split {split[:6]})"
        for name, (data, split) in zip(named, measured_on, strict=True)
    ]


def _describe_method(config: Mapping[str, Any]) -> str:
    """A method that stands alone, by its student and loss terms: 'resnet8,
    cross_entropy + soft_target'.
    """
    return ", ".join(
        filter(None, [_shorten(config.get("student")), " + ".join(config.get("loss") or {})])
    )


def _find_differences(path: str, nodes: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """``(dotted key, a value for each method)`` of what differs; a part that some lack
    is told by the names of the parts that each has.
    """
    if f"{path}.".startswith(tuple(f"{key}." for key in _NOT_THE_METHOD)):
        return
    there = [node for node in nodes if node is not _ABSENT]
    if all(node == there[0] for node in there):
        return
    if (
        not all(isinstance(node, Mapping) for node in there)
        or len({str(node.get("_target_")) for node in there}) > 1
    ):
        yield path, list(nodes)
        return
    keys = list(dict.fromkeys(key for node in there for key in node))
    parts = [
        key
        for key in keys
        if any(isinstance(node.get(key), Mapping) and "_target_" in node[key] for node in there)
    ]
    if path and any(key not in node for key in parts for node in there):
        yield path, [_ABSENT if node is _ABSENT else list(node) for node in nodes]
    for key in keys:
        below = [_ABSENT if node is _ABSENT else node.get(key, _ABSENT) for node in nodes]
        yield from _find_differences(f"{path}.{key}" if path else key, below)


def _drop_redundant(differing: Iterator[tuple[str, list[Any]]]) -> dict[str, list[str]]:
    """What is said of each method: keys that say nothing new are left out, which are
    those with the values of another key (trainer.max_epochs and teacher.max_epochs),
    and those that follow from the name in their group (optimizer.scratch_lr from
    optimizer.name).
    """
    found = sorted(
        differing, key=lambda each: (not each[0].endswith(".name"), each[0].startswith("teacher."))
    )
    kept: dict[str, list[Any]] = {}
    for key, values in found:
        name = kept.get(f"{key.split('.')[0]}.name")
        if values not in kept.values() and not (name is not None and _is_implied(values, name)):
            kept[key] = values
    return {
        key: ["" if value is _ABSENT else f"{key}={_shorten(value)}" for value in values]
        for key, values in kept.items()
    }


def _is_implied(values: Sequence[Any], name: Sequence[Any]) -> bool:
    return len({(str(a), str(b)) for a, b in zip(name, values, strict=True)}) == len(
        {str(a) for a in name}
    )


def _shorten(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return str(value.get("name") or str(value.get("_target_", "")).split(".")[-1].lower())
    if isinstance(value, list):
        return f"[{','.join(map(_shorten, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
