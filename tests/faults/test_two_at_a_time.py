"""Two commands in one folder, and a lock whose holder died."""

import signal
from pathlib import Path

import pytest

from tests.builders import results
from tests.commands.call import expect_refusal, succeed
from tests.faults.conftest import Fault
from tests.faults.whole_run import WORDS, outcome, places
from tests.training.processes import start_distill, wait_for, wait_for_exit


@pytest.mark.slow  # with a lock of this process: tests/commands/test_going_on.py
def test_a_second_command_in_a_runs_folder_is_refused_and_the_first_is_not_disturbed(
    tmp_path: Path, reference_run: Path, fault: Fault
) -> None:
    words = [*WORDS, *places(tmp_path)]
    first = start_distill(words, str(tmp_path / "log"))
    wait_for(tmp_path, "out/results.json")
    assert "Another process works in" in expect_refusal(*words)
    assert "Another process works in" in expect_refusal(*words, "overwrite=true")
    assert wait_for_exit(first) == 0
    assert outcome(tmp_path) == outcome(reference_run)
    happened = "the second is refused in one paragraph, exit code 2; the first ended as if alone"
    fault("two commands in one run's folder", times=2, happened=happened, lost="nothing")


@pytest.mark.slow
def test_two_runs_of_the_same_stages_at_a_time_make_each_once(
    tmp_path: Path, reference_run: Path, fault: Fault
) -> None:
    words = [
        [*WORDS, f"out={tmp_path / name / 'out'}", f"stages={tmp_path / 'stages'}"]
        for name in ("a", "b")
    ]
    both = [
        start_distill(each, str(tmp_path / f"log{number}")) for number, each in enumerate(words)
    ]
    assert [wait_for_exit(each) for each in both] == [0, 0]
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b") == outcome(reference_run)
    used = [stage for name in ("a", "b") for stage in results(tmp_path / name / "out")["stages"]]
    paths = [stage["path"] for stage in used if stage["status"] == "computed"]
    assert len(paths) == len(set(paths))
    assert set(paths) == {stage["path"] for stage in used}
    fault(
        "two runs want the same stages at a time",
        happened="each was made by one of them and found by the other; both ended alike",
        lost="nothing",
    )


@pytest.mark.slow  # a lock file that nobody holds: tests/run/test_folder.py
def test_a_lock_whose_holder_died_is_no_lock(
    tmp_path: Path, reference_run: Path, fault: Fault
) -> None:
    words = [*WORDS, *places(tmp_path)]
    first = start_distill(words, str(tmp_path / "log"))
    wait_for(tmp_path, "stages/teacher-*.partial/last.ckpt")
    first.kill()
    assert wait_for_exit(first) == -signal.SIGKILL
    assert (tmp_path / "out" / ".lock").exists()
    succeed(*words)
    assert outcome(tmp_path) == outcome(reference_run)
    fault(
        "a lock file is left by a process that died",
        happened="the same words went on, to the same student and figures",
        lost="nothing",
    )
