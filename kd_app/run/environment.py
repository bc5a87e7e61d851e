"""The environment of a run: versions, hardware and the commit of kd_app."""

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

import kd_app
from kd_app.deployment.hardware import read_cpu_name
from kd_app.training.trainer import TrainerSettings

_PACKAGES: Final = ("torch", "lightning", "timm", "torchmetrics", "numpy")
_SOURCE: Final = Path(kd_app.__file__).parent
FOLDER: Final = "folder"
"""The working directory of the command, to which paths in its configuration are
relative.
"""


def describe_environment(trainer: TrainerSettings) -> dict[str, Any]:
    """The current environment in the form of ``results.json``."""
    device = torch.cuda.get_device_name() if trainer.accelerator == "gpu" else read_cpu_name()
    return {
        "kd_app": kd_app.__version__,
        "python": platform.python_version(),
        **{name: _read_version(name) for name in _PACKAGES},
        "device": device,
        "accelerator": trainer.accelerator,
        "devices": trainer.world_size,
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": find_commit(_SOURCE),
        FOLDER: str(Path.cwd()),
    }


@cache
def _read_version(package: str) -> str:
    """The version of an installed package, whose metadata take long to parse."""
    return version(package)


@cache
def find_commit(package: Path) -> str | None:
    """The git commit of the folder `package`, with '+changes' if files in the checkout
    differ from the commit; None if the folder is no git checkout or git is missing.
    """
    git = ["git", "-C", str(package)]
    describe = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        for arguments in (["ls-files", "--error-unmatch", "__init__.py"], describe):
            output = subprocess.run(
                [*git, *arguments], capture_output=True, text=True, check=True, timeout=10
            ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.strip()
