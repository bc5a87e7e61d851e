"""A training that is stopped at any point resumes and ends bit-identical."""

import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kd_app.callbacks.curve_log import read_curves
from tests.builders import image_folder, results, stage, student_sha256, teacher_folder
from tests.commands.call import succeed
from tests.training.processes import Moment, distill_in_process, start_distill

MODULE = "kd_app.training.module:Distillation"
CHECKPOINT = "kd_app.callbacks.resumable_checkpoint:ResumableCheckpoint"
EPOCHS, STEPS = 3, 4
"""Optimizer steps of an epoch: 7 batches of 64, two a step; the last step has one
batch.
"""

KILLS: Sequence[Moment] = (
    (f"{MODULE}.training_step", 1),
    (f"{MODULE}.training_step", 4),  # between two batches of one step
    (f"{MODULE}.training_step", 3),
    (f"{MODULE}.validation_step", 1),
    (f"{MODULE}.validation_step", 2),
    # after the last batch and the validation, before the checkpoint
    (f"{MODULE}.on_train_epoch_end", 1),
    ("os:replace", 5),  # a file is written, but not renamed
    ("kd_app.callbacks.resumable_checkpoint:save", 1),
    (f"{MODULE}.training_step", 6),
    (f"{CHECKPOINT}.on_train_epoch_end", 1),
    ("kd_app.training.fit:save_model", 1),  # the training is finished, but not saved
    ("kd_app.training.fit:_tidy", 1),
    ("kd_app.run.output:write_student", 1),
    ("kd_app.reporting.results:write_atomically", 2),
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[list[str], Path, str]]:
    """(overrides, out, log) of a run in a new folder; the runs differ only in the
    folder.
    """
    teacher = teacher_folder(tmp_path_factory.mktemp("teacher"))

    def build_words(name: str, *more: str) -> tuple[list[str], Path, str]:
        folder = tmp_path_factory.mktemp(name)
        fixed = [
            f"out={folder / 'out'}",
            f"stages={folder / 'stages'}",
            f"teacher.checkpoint={teacher}",
            "controls=[]",
            "logger=[]",
            "trainer=cpu",
        ]
        hard = [
            "student.name=test_resnet",
            "student.kwargs.drop_rate=0.2",
            "student.kwargs.drop_path_rate=0.2",
            "loss=[cross_entropy,feature_hint,crd]",
        ]
        steps = [
            f"trainer.max_epochs={EPOCHS}",
            "data.batch_size=64",
            "data.split.test=0.7",
            "trainer.limit_test_batches=2",
            "trainer.accumulate_grad_batches=2",
            "trainer.log_every=4",
        ]
        every = [
            "+callbacks=ema",
            "callbacks.ema.decay=0.9",
            "scheduler=cosine",
            "trainer.checkpoint_minutes=1e-9",
            "trainer.precision=32-true",
        ]
        return [*fixed, *hard, *steps, *every, *more], folder / "out", str(folder / "log")

    return build_words


def curves(out: Path) -> list[dict[str, float]]:
    return list(read_curves(stage(out, "student") / "curves.jsonl"))


@pytest.fixture(scope="module")
def reference_run(words: Callable[..., tuple[list[str], Path, str]]) -> Path:
    """A run without interruption."""
    overrides, out, _ = words("undisturbed")
    succeed(*overrides)
    return out


@pytest.mark.slow
def test_a_run_killed_at_many_points_is_bit_identical(
    words: Callable[..., tuple[list[str], Path, str]], reference_run: Path
) -> None:
    overrides, out, log = words("killed")
    for moment in KILLS:
        assert distill_in_process(overrides, log, moment) == -signal.SIGKILL, (
            moment,
            Path(log).read_text(),
        )
    assert distill_in_process(overrides, log) == 0, Path(log).read_text()
    assert student_sha256(out) == student_sha256(reference_run)
    assert curves(out) == curves(reference_run)
    assert results(out)["test"] == results(reference_run)["test"]


@pytest.mark.parametrize(
    ("sign", "code", "stops"),
    [
        pytest.param(signal.SIGTERM, 143, 1, id="SIGTERM"),
        pytest.param(signal.SIGTERM, 143, 4, id="SIGTERM everywhere", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, 4, id="Ctrl-C", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_saves_its_state_and_is_bit_identical(
    words: Callable[..., tuple[list[str], Path, str]],
    reference_run: Path,
    sign: int,
    code: int,
    stops: int,
) -> None:
    overrides, out, log = words("stopped", "trainer.checkpoint_minutes=60")
    steps = {
        # in the first batch of step 3, which is finished first
        (f"{MODULE}.training_step", 5): 3,
        (f"{MODULE}.validation_step", 1): STEPS,
        # in the last batch of an epoch, whose validation is finished first
        (f"{MODULE}.training_step", 7): 2 * STEPS,
        (f"{MODULE}.training_step", 2): 2 * STEPS + 1,
    }
    for moment, step in [*steps.items()][:stops]:
        assert distill_in_process(overrides, log, moment, sign=sign) == code, Path(log).read_text()
        assert distill_in_process(overrides, log, (f"{MODULE}.training_step", 1)) == -signal.SIGKILL
        assert f"resumes at step {step}\n" in Path(log).read_text()
    assert distill_in_process(overrides, log) == 0
    assert student_sha256(out) == student_sha256(reference_run)
    assert curves(out) == curves(reference_run)


def test_a_preempted_run_saves_its_state_and_calls_the_installed_handler(
    words: Callable[..., tuple[list[str], Path, str]], reference_run: Path
) -> None:
    overrides, out, log = words("preempted", "trainer.checkpoint_minutes=60")
    assert (
        distill_in_process(
            overrides, log, (f"{MODULE}.training_step", 5), sign=signal.SIGUSR2, listens=True
        )
        == 144
    ), Path(log).read_text()
    assert distill_in_process(overrides, log) == 0
    assert "resumes at step 3\n" in Path(log).read_text()
    assert student_sha256(out) == student_sha256(reference_run)


@pytest.mark.slow
def test_a_copied_run_resumes_in_its_new_folder(
    words: Callable[..., tuple[list[str], Path, str]], reference_run: Path
) -> None:
    overrides, out, log = words("here")
    assert distill_in_process(overrides, log, (f"{MODULE}.training_step", 9)) == -signal.SIGKILL
    elsewhere, there, _ = words("there")
    shutil.copytree(out.parent, there.parent, dirs_exist_ok=True)
    shutil.rmtree(out.parent)
    assert distill_in_process(elsewhere, str(there.parent / "log")) == 0
    assert "resumes at step" in (there.parent / "log").read_text()
    assert student_sha256(there) == student_sha256(reference_run)
    assert results(there)["test"] == results(reference_run)["test"]
    assert (
        results(there)["speed"]["training_images_per_second"]
        > results(reference_run)["speed"]["training_images_per_second"] / 30
    )


@pytest.mark.slow
def test_images_of_worker_processes_are_the_same_after_a_kill(
    words: Callable[..., tuple[list[str], Path, str]], tmp_path: Path
) -> None:
    images = image_folder(tmp_path / "images", images=60)
    folder = [
        f"data.root={images}",
        "data=folder",
        "data.num_workers=2",
        "data.cache=none",
        "data.batch_size=8",
    ]
    folder += ["teacher=none", "trainer.max_epochs=2"]
    whole, out, log = words("whole")
    whole = [
        word
        for word in whole
        if not word.startswith(("teacher", "loss", "trainer.max_epochs", "data."))
    ] + [*folder, "loss=[cross_entropy]"]
    assert distill_in_process(whole, log) == 0, Path(log).read_text()
    killed = [word.replace("whole", "half") for word in whole]
    for moment in ((f"{MODULE}.training_step", 5), (f"{MODULE}.validation_step", 2)):
        assert distill_in_process(killed, log, moment) == -signal.SIGKILL, Path(log).read_text()
    assert distill_in_process(killed, log) == 0, Path(log).read_text()
    other = Path(str(out).replace("whole", "half"))
    assert student_sha256(other) == student_sha256(out)
    assert curves(other) == curves(out)


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_times_is_bit_identical(
    words: Callable[..., tuple[list[str], Path, str]], reference_run: Path
) -> None:
    overrides, out, log = words("random")
    draw = random.Random(0)
    for _ in range(20):
        process = start_distill(overrides, log)
        time.sleep(draw.uniform(0.2, 2.0))
        process.kill()
        process.join()
    assert distill_in_process(overrides, log) == 0, Path(log).read_text()
    assert student_sha256(out) == student_sha256(reference_run)
    assert curves(out) == curves(reference_run)
