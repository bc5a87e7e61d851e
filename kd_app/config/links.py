"""Links in folders that are read."""

import os
from pathlib import Path
from typing import Final

from kd_app.config.errors import RequestError

_CACHED: Final = "snapshots"
"""In the cache of Hugging Face, a folder of folders with links to the files."""


def check_links(folder: Path) -> None:
    """Raise `RequestError` for a link, in a folder that is read or one level below,
    that leads out of the folder. Somebody else may have made it, and what it leads to
    would get into results and copies.
    """
    root = folder.resolve()
    if root.parent.name == _CACHED:
        root = root.parent.parent
    inner = [each for each in folder.glob("[!.]*") if each.is_dir() and not each.is_symlink()]
    for path in (each for parent in (folder, *inner) for each in parent.glob("[!.]*")):
        if path.is_symlink() and not _is_inside(path, root):
            raise RequestError(
                f"{str(path)!r} is a link out of the folder, to {os.readlink(path)!r}, and is not"
                " followed. Put the file itself in its place."
            )


def _is_inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a loop of links
        return False
