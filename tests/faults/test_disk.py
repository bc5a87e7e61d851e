"""A disk that is full, or that nobody may write to."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.builders import student_sha256
from tests.commands.call import call, expect_refusal, paragraph, succeed
from tests.faults.conftest import Fault
from tests.faults.disk import Disk
from tests.faults.whole_run import WORDS, outcome, places

WRITES = (
    ("results.json", "kd_app.reporting.results.write_atomically", 1),
    ("a stage's record", "kd_app.stages.Stages._build", 1),
    ("a checkpoint", "kd_app.training.trainer.AtomicCheckpoints.save_checkpoint", 1),
    ("a checkpoint", "kd_app.training.trainer.AtomicCheckpoints.save_checkpoint", 3),
    ("a curve", "kd_app.callbacks.curve_log.CurveLogger.log_metrics", 2),
    ("the best weights", "kd_app.callbacks.resumable_checkpoint.save", 2),
    ("a stage's model", "kd_app.training.fit.save_model", 1),
    ("a stage's answers", "kd_app.deployment.predictions.Predictions.save", 1),
    ("predictions.parquet", "kd_app.run.output.write_table", 1),
    ("examples.parquet", "kd_app.measurement.dark_knowledge.write_examples", 1),
    ("metrics.csv", "kd_app.run.output.write_curves", 1),
    ("the copy of the student", "kd_app.run.output.copy_labeled", 1),
    ("the model card", "kd_app.measurement.builder.write_card", 1),
    ("results.json", "kd_app.reporting.results.write_atomically", 2),
)
"""What is being written, and the call before which the disk gets full, in the order in
which a run comes to them.
"""


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_paragraph_and_with_room_the_same_words_end_alike(
    disk: Disk, reference_run: Path, fault: Fault
) -> None:
    words = [*WORDS, *places(disk.folder)]
    for written, moment, call_number in WRITES:
        with disk.full_from(moment, call=call_number):
            result = call(*words)
        assert result.code == 1, (written, result)
        message = paragraph(result.err)
        assert message.startswith("The run failed: "), written
        assert message.endswith("Completed work is kept: run the same command again to resume."), (
            written
        )
    succeed(*words)
    assert outcome(disk.folder) == outcome(reference_run)
    assert not list(disk.folder.rglob("*partial*"))
    for written, times in Counter(written for written, _, _ in WRITES).items():
        happened = (
            "exit code 1 and one paragraph; with room again the same words went on to the same"
            " student and figures"
        )
        fault(f"the disk gets full: {written}", times=times, happened=happened, lost="nothing")


def test_a_read_only_disk_is_refused_and_nothing_is_lost(
    disk: Disk, reference_run: Path, fault: Fault
) -> None:
    shutil.copytree(reference_run, disk.folder, dirs_exist_ok=True)
    with disk.read_only():
        messages = [
            expect_refusal(*WORDS, *places(disk.folder)),
            expect_refusal(*WORDS, f"out={disk.folder / 'new'}"),
        ]
    assert all("Choose another folder with out=." in each for each in messages)
    succeed(*WORDS, *places(disk.folder))
    assert outcome(disk.folder) == outcome(reference_run)
    fault(
        "the output folder is read-only",
        times=2,
        happened="refused in one paragraph, exit code 2",
        lost="nothing",
    )


@pytest.mark.slow
def test_stages_on_a_read_only_disk_end_the_run_in_one_paragraph(
    disk: Disk, tmp_path: Path, reference_run: Path, fault: Fault
) -> None:
    words = [*WORDS, f"out={tmp_path / 'out'}", f"stages={disk.folder / 'stages'}"]
    with disk.read_only():
        assert "Set stages= to another folder." in expect_refusal(*words)
    succeed(*words)
    assert student_sha256(tmp_path / "out") == student_sha256(reference_run / "out")
    fault(
        "the folder of stages is read-only",
        happened="refused in one paragraph, exit code 2; when it could be written the run ended",
        lost="nothing",
    )
