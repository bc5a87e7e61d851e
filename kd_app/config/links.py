"""Links in a run's folder or a stage, which may be somebody else's."""

from collections.abc import Iterable
from pathlib import Path

from kd_app.config.errors import RequestError
from kd_app.files import is_outside


def check_links(folder: Path, names: Iterable[str] = ("*",)) -> None:
    """Raise `RequestError` if one of these entries of `folder`, or an entry of such a
    folder, is a link that leads out of `folder`.

    names: of the entries that are read, by default all. `folder` itself may be a link:
    it is what the user named.
    """
    entries = [path for name in names for path in folder.glob(name)]
    inner = [path for each in entries if not each.is_symlink() for path in each.glob("*")]
    for path in (*entries, *inner):
        if path.is_symlink() and is_outside(path, folder):
            raise RequestError(
                f"{str(path)!r} is a link to {str(path.readlink())!r}, out of its folder. What is"
                " read from a run or a stage lies in its folder, because the folder may be somebody"
                " else's. Replace the link by a copy of what it names."
            )
