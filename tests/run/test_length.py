"""Settings that need a longer run, from the configuration to the note."""

from pathlib import Path

from kd_app.run.length import list_length_notes
from tests.builders import build_workspace, teacher_folder


def test_a_run_of_usual_length_has_no_note(tmp_path: Path) -> None:
    assert list_length_notes(build_workspace(tmp_path, "trainer.max_epochs=10")) == []


def test_every_part_that_needs_a_longer_run_is_reported_with_its_key(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "teacher")
    workspace = build_workspace(
        tmp_path,
        f"teacher.checkpoint={folder}",
        "teacher.max_epochs=0",
        "trainer.max_epochs=2",
        "trainer.accumulate_grad_batches=4",
        "data.batch_size=5000",
        "scheduler.warmup=1",
        "loss.soft_target.schedule=ramp",
        "loss.soft_target.schedule.begin=0.99",
        "callbacks=[ema,early_stopping]",
        "callbacks.early_stopping.patience=5",
    )
    notes = list_length_notes(workspace)
    starts = [
        "labels_only, student: scheduler.warmup=1 needs more steps",
        "labels_only, student: callbacks.ema.decay=0.999 needs at least 8,990 steps",
        "labels_only, student: callbacks.early_stopping.patience=5 needs at least 7 epochs",
        "labels_only, student: trainer.accumulate_grad_batches=4 needs at least 4 batches",
        "student: loss.soft_target.schedule.begin=0.99 needs at least 50 steps",
        "data.batch_size=5000 is more than the 1,295 images to train on",
    ]
    assert len(notes) == len(starts)
    for start, note in zip(starts, notes, strict=True):
        assert note.startswith(start)
