"""The run that faults are done to: teacher, control and student, two epochs each, about
a second together; and what of it must not change.
"""

from pathlib import Path
from typing import Any

from tests.builders import results, student_sha256
from tests.commands.call import TINY

EPOCHS, STEPS = 2, 4
WORDS = (
    *TINY,
    f"trainer.max_epochs={EPOCHS}",
    f"teacher.max_epochs={EPOCHS}",
    f"trainer.limit_train_batches={STEPS}",
    "trainer.checkpoint_minutes=1e-9",
)


def places(folder: Path) -> list[str]:
    """The words that put a run and its stages into `folder`."""
    return [f"out={folder / 'out'}", f"stages={folder / 'stages'}"]


def outcome(folder: Path) -> tuple[str, Any, Any, Any]:
    """What a run in `folder` came to: the student that ships, bit by bit, and every
    figure but the speed.
    """
    content = results(folder / "out")
    assert content["status"] == "finished"
    return (
        student_sha256(folder / "out"),
        content["validation"],
        content["test"],
        content["verdict"],
    )
