"""The inputs of a run: its images, and the files and folders that its configuration
names. A run's folder records them, and a repeated command compares them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kd_app.config import RequestError
from kd_app.config.csv_cells import escape_undecodable
from kd_app.config.errors import list_some
from kd_app.config.records import load_record, parse_record
from kd_app.data.base import RunData
from kd_app.data.fingerprint import use_digests
from kd_app.data.source import Listing
from kd_app.data.splits import (
    SplitRow,
    list_labels,
    read_split,
    shorten_digest,
)
from kd_app.digest import SELF, is_sealed, seal
from kd_app.reporting.console import Console
from kd_app.reporting.results import Results
from kd_app.run.input_files import find_paths, hash_inputs, open_digests
from kd_app.run_files import INPUTS, SPLIT
from kd_app.stages import write_atomically

_SHOWN: Final = 3
_ENDED: Final = ("finished", "pruned")
_OTHER: Final = "images, labels, splits or groups are other ones"


@dataclass(frozen=True)
class InputRecord:
    """Content of inputs.json.

    listing: fingerprint of the listed images; None for data without a listing. whole:
    see `Listing`. files: hashes of the files that the configuration names, see
    `hash_inputs`.
    """

    listing: str | None
    whole: bool
    files: dict[str, dict[str, str]]

    def write(self, folder: Path) -> None:
        """Write inputs.json into the folder of a run."""
        write_atomically(folder / INPUTS, json.dumps(seal(vars(self)), indent=1))

    @staticmethod
    def read(folder: Path) -> "InputRecord | None":
        """Read the record of a run; None if it is missing or damaged."""
        try:
            content = load_record(folder / INPUTS, expected="")
            is_whole = is_sealed(content)
            del content[SELF]
            record = parse_record(folder / INPUTS, content, InputRecord, expected="")
        except (RequestError, AttributeError, KeyError, TypeError):
            return None
        return record if is_whole else None


class RunInputs:
    """The inputs of a run now, and their record in the run's folder `out`.

    Files that have not changed are not hashed again, see `open_digests`.
    """

    def __init__(self, out: Path, config: Mapping[str, Any], data: RunData) -> None:
        self.out = out
        self._config = config
        self.data = data
        self._book = open_digests(Path(config["stages"]), config["data"])

    def record(self) -> None:
        """Write the record of the inputs as they are now. The data must be listed."""
        self._measure().write(self.out)

    def keep_digests(self) -> None:
        """Write the digests of the files, which spare the next command the reading."""
        self._book.save()

    def list_images(self) -> None:
        """List the images of the data.

        Raises `RequestError` for data that can't be listed. If a signal stops the
        listing, the digests of the files that were read are kept.
        """
        try:
            with use_digests(self._book):
                _ = self.data.listing
        except (KeyboardInterrupt, SystemExit):
            self.keep_digests()
            raise

    def check(self, results: Results | None, console: Console) -> None:
        """Compare the inputs with those of an earlier attempt at the run, which ended
        with these `results`. None: they are damaged, and the run may be finished.

        Raises `RequestError` if inputs of a finished run have changed. For an
        unfinished run, a note names the changes.
        """
        has_ended = results is None or results.status in _ENDED
        try:
            self.list_images()
        except RequestError as error:
            if not has_ended:
                raise
            raise RequestError(
                f"{str(self.out)!r} holds a finished run, whose data can't be compared with the"
                f" data now: {error} {self._explain_kept()}"
            ) from None
        changes = self._find_changes(results)
        if not changes:
            return
        if has_ended:
            raise RequestError(
                f"{str(self.out)!r} holds a finished run, but what it read has changed since:"
                f" {'; '.join(changes)}. {self._explain_kept()}"
            )
        console.print(
            f"Note: what this run reads has changed since it began: {'; '.join(changes)}. What was"
            " computed from it before is not used."
        )

    def _explain_kept(self) -> str:
        return (
            f"Its results were kept; kd-report 'runs=[{self.out}]' reports them. To train on the"
            " inputs as they are now, choose another folder with out=, or replace the results with"
            f" overwrite=true. To measure the trained models on other images, use kd-evaluate"
            f" run={self.out} data=folder data.root=<images> out=<folder>. With the original"
            " inputs, the command shows the results again."
        )

    def _find_changes(self, results: Results | None) -> list[str]:
        """What is not as it was recorded, as clauses; empty if nothing has changed."""
        before = InputRecord.read(self.out)
        if before is None:
            phrase = self._describe_images(same_hash=True)
            return [f"{self._name_data()}: {phrase}"] if phrase else []
        now = self._measure()
        changes = []
        if before.listing != now.listing:
            phrase = self._describe_images(same_hash=before.whole == now.whole)
            changes.append(f"{self._name_data()}: {phrase or _OTHER}")
        elif now.listing is None and not any(key.startswith("data.") for key in now.files):
            changes += self._compare_loaded(results)
        for key in {**before.files, **now.files}:
            path = find_paths(self._config, is_listed=False).get(key)
            old, new = before.files.get(key, {}), now.files.get(key, {})
            if old != new:
                changes.append(f"{key}={path}: {_describe_files(old, new)}")
        return changes

    def _measure(self) -> InputRecord:
        listing = self.data.listing
        with use_digests(self._book):
            files = hash_inputs(find_paths(self._config, is_listed=listing is not None))
        return InputRecord(
            listing.fingerprint if listing else None, listing.whole if listing else True, files
        )

    def _name_data(self) -> str:
        root = self._config["data"].get("root")
        return f"data.root={root}" if root else "the data"

    def _compare_loaded(self, results: Results | None) -> list[str]:
        """Compare data without a listing, which must be loaded to be compared."""
        self.data.load(None)
        known = results.data.fingerprint if results and results.data else ""
        return [] if known in ("", self.data.fingerprint) else [f"the data: {_OTHER}"]

    def _describe_images(self, *, same_hash: bool) -> str:
        rows, listing = read_split(self.out / SPLIT), self.data.listing
        if rows is None or listing is None:
            return ""
        return describe_image_changes(rows, listing, same_hash=same_hash)


def describe_image_changes(
    before: Mapping[str, SplitRow], listing: Listing, *, same_hash: bool
) -> str:
    """How a listing differs from the images of an earlier split file; empty if files,
    labels and digests are the same. same_hash: digests of both are comparable.
    """
    files = [escape_undecodable(file) for file in listing.files]
    labels = dict(zip(files, list_labels(listing), strict=True))
    digests = dict(zip(files, map(shorten_digest, listing.digests), strict=True))
    old_classes = {row.label for row in before.values() if row.label}
    common = [name for name in labels if name in before]
    groups = {
        "image added|images added": [name for name in labels if name not in before],
        "image removed|images removed": [name for name in before if name not in labels],
        "image with other content|images with other content": [
            name for name in common if same_hash and before[name].digest not in ("", digests[name])
        ],
        "image with another label|images with another label": [
            name for name in common if labels[name] != before[name].label
        ],
        "new class|new classes": sorted(set(listing.classes) - old_classes),
        "class removed|classes removed": sorted(old_classes - set(listing.classes)),
    }
    phrases = [
        f"{len(names):,} {one_and_many.split('|')[len(names) > 1]} ({list_some(names, _SHOWN)})"
        for one_and_many, names in groups.items()
        if names
    ]
    return ", ".join(phrases)


def _describe_files(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    if not new:
        return "not there any more"
    if not old:
        return "not there when the run was made"
    groups = {
        "changed": [name for name in new if name in old and new[name] != old[name]],
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
    }
    return ", ".join(
        f"{list_some(names, _SHOWN)} {verb}" for verb, names in groups.items() if names
    )
