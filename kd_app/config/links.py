"""Links in a run's folder or a stage, which may be somebody else's."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kd_app.config.errors import RequestError
from kd_app.files import is_outside

_CACHED: Final = "snapshots"
"""In the cache of Hugging Face, a folder of folders with links to the files."""


def check_links(folder: Path, names: Iterable[str] = ("*",)) -> None:
    """Raise `RequestError` if one of these entries of `folder`, or an entry of such a
    folder, is a link that leads out of `folder`.

    names: of the entries that are read, by default all. `folder` itself may be a link:
    it is what the user named. The cache of Hugging Face has its files beside the
    folder.
    """
    root = folder.resolve()
    root = root.parent.parent if root.parent.name == _CACHED else folder
    entries = [path for name in names for path in folder.glob(name)]
    inner = [path for each in entries if not each.is_symlink() for path in each.glob("*")]
    for path in (*entries, *inner):
        if path.is_symlink() and is_outside(path, root):
            raise RequestError(
                f"{str(path)!r} is a link to {str(path.readlink())!r}, out of its folder. What is"
                " read from a run or a stage lies in its folder, because the folder may be somebody"
                " else's. Replace the link by a copy of what it names."
            )
