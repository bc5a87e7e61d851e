"""The files of a finished run, compared with the hashes in its results.json."""

from collections.abc import Iterator
from pathlib import Path

from kd_app.config.errors import RequestError
from kd_app.config.records import load_record
from kd_app.digest import hash_file
from kd_app.run_files import RESULTS


def check_recorded(path: Path) -> None:
    """Raise `RequestError` if a run's folder, or a file or folder in it, is not as the
    run wrote it. Files that the run did not record are not checked.
    """
    run = next((each for each in (path, *path.parents[:2]) if (each / RESULTS).is_file()), None)
    if run is None:
        return
    for name, sha256 in _list_recorded(run):
        file = run / name
        if path not in (run, file, *file.parents):
            continue
        if not file.is_file() or hash_file(file) != sha256:
            problem = "has changed since the run wrote it" if file.is_file() else "is missing"
            raise RequestError(
                f"{str(file)!r} {problem}, by hand or by damage: its sha256 is not the one that"
                f" {RESULTS} records, so it is not used. Nothing was changed. Restore the file, or"
                " repeat the run's command with overwrite=true: it writes the folder anew from the"
                " finished stages, without training again."
            )


def _list_recorded(run: Path) -> Iterator[tuple[str, str]]:
    """Yield name and sha256 of the run's files; nothing if results.json is unreadable,
    which its own reader reports.
    """
    try:
        content = load_record(run / RESULTS, expected="")
        files = [(str(each["name"]), str(each["sha256"])) for each in content.get("files", ())]
    except (RequestError, TypeError, KeyError, AttributeError):
        return
    yield from files
