"""``kill -9`` at any moment of a run, again and again; the same command resumes it."""

import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Fault
from tests.faults.whole_run import EPOCHS, STEPS, WORDS, outcome, places
from tests.training.processes import distill_in_process, start_distill, wait_for_exit

MOMENTS = {
    "in training": ("kd_app.training.module:Distillation.training_step", EPOCHS * STEPS),
    "in validation": ("kd_app.training.module:Distillation.validation_step", EPOCHS),
    "in the middle of writing a checkpoint": (
        "torch.serialization:_open_zipfile_writer_buffer.__exit__",
        EPOCHS * STEPS,
    ),
    "before a written file takes its place": ("os:replace", EPOCHS * STEPS),
    "when the results are about to be written": ("kd_app.reporting.results:write_atomically", 2),
}
"""Where -> a function that is called there, and the last of its calls before which the
process may be killed.
"""

Attempt = Callable[[list[str], str], int]
"""One attempt at a run: its exit code."""


def kill_repeatedly(folder: Path, times: int, attempt: Attempt) -> list[Path]:
    """Run the same words until they were killed so often, and once more; whenever they
    got to their end, anew. The folders of the runs.
    """
    folders = [folder / "0"]
    while times:
        words = [*WORDS, *places(folders[-1])]
        code = attempt(words, str(folder / "log"))
        assert code in (0, -signal.SIGKILL), (folder / "log").read_text(encoding="utf-8")
        times -= code != 0
        if code == 0:
            folders.append(folder / str(len(folders)))
    assert distill_in_process([*WORDS, *places(folders[-1])], str(folder / "log")) == 0
    return folders


HAPPENED = (
    "the same words went on; student (sha256) and figures are those of a run that nobody killed"
)
LOST = "what was done since the last checkpoint, which is done again"


@pytest.mark.parametrize("times", [pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_random_times_ends_bit_identical(
    times: int, tmp_path: Path, reference_run: Path, fault: Fault
) -> None:
    draw = random.Random(times)

    def attempt(words: list[str], log: str) -> int:
        process = start_distill(words, log)
        process.join(draw.uniform(0.1, 2.0))
        process.kill()
        return wait_for_exit(process)

    for folder in kill_repeatedly(tmp_path, times, attempt):
        assert outcome(folder) == outcome(reference_run)
    fault("kill -9 at a random time", times=times, happened=HAPPENED, lost=LOST)


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_wherever_it_writes_or_learns_ends_bit_identical(
    times: int, tmp_path: Path, reference_run: Path, fault: Fault
) -> None:
    draw, hit = random.Random(times), Counter[str]()

    def attempt(words: list[str], log: str) -> int:
        where = min(MOMENTS, key=lambda each: hit[each])
        name, calls = MOMENTS[where]
        code = distill_in_process(words, log, (name, draw.randint(1, calls)))
        hit[where] += code != 0
        return code

    for folder in kill_repeatedly(tmp_path, times, attempt):
        assert outcome(folder) == outcome(reference_run)
    for where, count in hit.items():
        fault(f"kill -9 {where}", times=count, happened=HAPPENED, lost=LOST)
