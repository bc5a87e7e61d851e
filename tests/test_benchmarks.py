"""What the README measures can be measured."""

from pathlib import Path

from benchmarks.sweep import make_teacher, train, words
from benchmarks.training_loop import compare


def test_the_training_loop_is_timed_beside_the_bare_one() -> None:
    (ratio,) = compare("resnet8", "resnet8", steps=2, rounds=1, skip=1)
    assert ratio > 0


def test_the_trainings_of_a_sweep_run_alone(tmp_path: Path) -> None:
    make_teacher(tmp_path / "teacher")
    train([*words(tmp_path / "teacher", tmp_path / "stages", 1), "trainer.limit_train_batches=2"], trials=2)
    assert len(list((tmp_path / "stages").glob("student-*/model/model.safetensors"))) == 2
