"""Files that would leave a mark if what is in them was run."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.builders import accept_changes

Pickled = Callable[[Path, Path], Path]
"""``pickled(path, mark)`` writes `path`, which makes the file `mark` when it is
unpickled.
"""


class Touch:
    """Unpickled, it makes the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def write_zip(path: Path, mark: Path) -> Path:
    """As torch saves today."""
    torch.save({"state_dict": {"weight": torch.ones(2)}, "payload": Touch(mark)}, path)
    return path


def legacy(path: Path, mark: Path) -> Path:
    """As torch saved before 1.6."""
    torch.save(
        {"state_dict": {"weight": torch.ones(2)}, "payload": Touch(mark)},
        path,
        _use_new_zipfile_serialization=False,
    )
    return path


def plain(path: Path, mark: Path) -> Path:
    """A pickle that never was torch's."""
    path.write_bytes(pickle.dumps(Touch(mark)))
    return path


PICKLES: list[Pickled] = [write_zip, legacy, plain]


def touching(mark: Path) -> dict[str, Any]:
    """A part that makes the folder `mark` when it is instantiated, and that Hydra has
    no objection to.
    """
    return {"_target_": "os.mkdir", "path": str(mark)}


def change_record(file: Path, place: str, value: Any) -> None:
    """Put `value` at a dotted place of a YAML or JSON file of a run, whose results
    record the change.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    *above, last = place.split(".")
    node = content
    for key in above:
        node[key] = node.get(key) or {}
        node = node[key]
    node[last] = value
    file.write_text(
        json.dumps(content) if file.suffix == ".json" else yaml.safe_dump(content), encoding="utf-8"
    )
    for run in file.parents[:2]:
        if (run / "results.json").is_file():
            accept_changes(run)
