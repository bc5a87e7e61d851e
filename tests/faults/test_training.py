"""A training that loses a process, or its senses."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kd_app.losses.soft_target import SoftTarget
from kd_app.training.module import Distillation
from tests.builders import results, student_sha256
from tests.commands.call import DIVERGING, TINY, call, paragraph, succeed
from tests.faults.conftest import Fault
from tests.faults.whole_run import WORDS, outcome, places


@pytest.mark.slow
# torch raises where the signal arrives, which may be in a hook that ignores errors
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_workers_that_are_killed_end_the_run_and_the_same_words_go_on(
    photos: Path, tmp_path: Path, fault: Fault
) -> None:
    data = [
        "data=folder",
        f"data.root={photos}",
        "data.image_size=16",
        "data.num_workers=2",
        "data.cache=none",
        "data.batch_size=4",
    ]
    words = [*WORDS, *data, "student.name=resnet8", "controls=[]"]
    plain, steps = Distillation.training_step, 0

    def kill_workers(module: Distillation, batch: Any, batch_idx: int) -> Tensor:
        nonlocal steps
        steps += 1
        if steps == 3:
            for worker in multiprocessing.active_children():
                worker.kill()
        return plain(module, batch, batch_idx)

    with patch.object(Distillation, "training_step", kill_workers):
        result = call(*words, *places(tmp_path / "killed"))
    assert result.code == 1
    assert "DataLoader worker" in paragraph(result.err)
    assert "Repeat the command to resume" in paragraph(result.err)
    assert results(tmp_path / "killed" / "out")["status"] == "failed"
    assert "resumes at step" in succeed(*words, *places(tmp_path / "killed"))
    succeed(*words, *places(tmp_path / "whole"))
    assert student_sha256(tmp_path / "killed" / "out") == student_sha256(tmp_path / "whole" / "out")
    happened = (
        "exit code 1 and one paragraph; the same words went on to the student of an undisturbed run"
    )
    fault(
        "the processes that read images are killed",
        happened=happened,
        lost="what was done since the last checkpoint, which is done again",
    )


@pytest.mark.slow
def test_a_term_that_is_not_finite_is_named_and_skipping_goes_on_from_the_last_good_state(
    tmp_path: Path, fault: Fault
) -> None:
    words, plain = [*WORDS, *places(tmp_path)], SoftTarget.forward

    def return_nan(term: SoftTarget, student: Any, teacher: Any, batch: Any) -> Tensor:
        value = plain(term, student, teacher, batch)
        return (
            value * float("nan") if 0.6 < batch.progress < 0.7 else value
        )  # the sixth of eight steps

    with patch.object(SoftTarget, "forward", return_nan):
        result = call(*words)
        assert result.code == 1
        message = paragraph(result.err)
        assert "The loss term soft_target is not finite at step 6 (images " in message
        assert "The last finite state is saved." in message
        assert call(*words).err == result.err  # it is not forgotten either
        out = succeed(*words, "trainer.on_nan=skip")
    assert "student: resumes at step 5\n" in out
    assert "Note: student: 1 steps with a non-finite gradient were skipped" in out
    state = load_file(tmp_path / "out" / "student" / "model.safetensors")
    assert all(
        bool(torch.isfinite(tensor).all())
        for tensor in state.values()
        if tensor.is_floating_point()
    )
    happened = (
        "exit code 1; the paragraph names term, step and images; trainer.on_nan=skip went on at the"
        " last good step and left that one out"
    )
    fault(
        "a loss term is not a number in mid-training",
        happened=happened,
        lost="the steps that are not finite",
    )


@pytest.mark.slow
def test_files_from_the_future_do_not_disturb(
    tmp_path: Path, reference_run: Path, fault: Fault
) -> None:
    """As a clock leaves them that is set back between two attempts. In mid-run nobody
    asks for the time of day.
    """
    words = [*WORDS, *places(tmp_path)]
    with patch("kd_app.training.fit.save_model", side_effect=OSError("stopped here")):
        assert call(*words).code == 1
    next_year = time.time() + 365 * 24 * 3600
    for path in tmp_path.rglob("*"):
        os.utime(path, (next_year, next_year))
    assert "teacher: resumes at step 8\n" in succeed(*words)
    assert outcome(tmp_path) == outcome(reference_run)
    happened = "the same words went on, to the same student and figures"
    fault("the clock is set back by a year between two attempts", happened=happened, lost="nothing")


def test_a_learning_rate_without_measure_is_told_by_the_terms_name(
    tmp_path: Path, fault: Fault
) -> None:
    result = call(*TINY, *DIVERGING, *places(tmp_path))
    assert result.code == 1
    assert paragraph(result.err).startswith("The run failed: The loss term ")
    assert results(tmp_path / "out")["status"] == "failed"
    fault(
        "the loss is not a number in the first steps",
        happened="exit code 1; the paragraph names the term",
        lost="nothing was learned",
    )
