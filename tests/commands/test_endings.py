"""How a command ends is its exit code, and one paragraph where it did not end well."""

import errno
import signal
import sys
from contextlib import suppress
from unittest.mock import patch

import pytest

from kd_app.config import RequestError, RunError
from kd_app.streams import LossyStream
from tests.commands.call import CommandResult, call, paragraph


def ending(error: BaseException) -> CommandResult:
    """The command whose work ends in this way."""
    with patch("kd_app.jobs.distill.distill", side_effect=error):
        return call("seed=1")


@pytest.mark.parametrize(
    ("error", "code", "output"),
    [
        (
            RequestError("There is no such thing as that. Use this."),
            2,
            "There is no such thing as that. Use this.",
        ),
        (RunError("The loss term x is nan."), 1, "The run failed: The loss term x is nan."),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            1,
            "The run failed: No space left on device (runs/x). Completed work is kept",
        ),
        (
            KeyboardInterrupt(),
            130,
            "Stopped by Ctrl-C. Completed work is kept: run the same command again to resume.",
        ),
        (
            SystemExit(143),
            143,
            "Stopped by SIGTERM. Completed work is kept: run the same command again to resume.",
        ),
        (SystemExit(129), 129, "Stopped by SIGHUP. Completed work is kept"),
        (SystemExit(0), 1, "The run failed: a part of it called sys.exit. Completed work"),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with"),
            1,
            "The run failed: CUDA error: an illegal memory access was encountered. Completed",
        ),
    ],
)
def test_every_ending_has_its_code_and_its_paragraph(
    error: BaseException, code: int, output: str
) -> None:
    result = ending(error)
    assert result.code == code
    assert paragraph(result.err).startswith(output)


def test_a_fault_of_the_program_is_told_with_its_traceback_and_is_a_failed_run() -> None:
    result = ending(ZeroDivisionError("division by zero"))
    assert result.code == 1
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith(
        "The run failed by an internal error, with the traceback above (ZeroDivisionError)."
    )


def test_a_run_that_does_its_work_ends_with_0_and_says_nothing_on_stderr() -> None:
    with patch("kd_app.jobs.distill.distill") as distill:
        result = call("seed=1")
    assert (result.code, result.err) == (0, "")
    assert distill.call_args.args[0]["seed"] == 1
    assert distill.call_args.kwargs["trial"] is None


@pytest.mark.parametrize(
    ("codes", "code"),
    [(("fine", "fine"), 0), (("fine", "wrong"), 2), (("wrong", "failed", "fine"), 1)],
)
def test_the_worst_trial_is_the_exit_code_of_a_sweep(codes: tuple[str, ...], code: int) -> None:
    endings = {
        "fine": None,
        "wrong": RequestError("This is a request that is wrong."),
        "failed": RunError("The run failed."),
    }
    with (
        patch("kd_app.jobs.distill.distill", side_effect=[endings[each] for each in codes]),
        patch("kd_app.jobs.sweep.finish_sweep") as concluded,
    ):
        result = call(
            "-m", f"seed={','.join(str(number) for number in range(len(codes)))}", "out=sweep"
        )
    assert result.code == code
    assert concluded.called
    assert result.err.count("Trial ") == sum(each != "fine" for each in codes)


def test_a_child_that_the_signal_ended_first_is_no_failure() -> None:
    lost = RunError("Process 1 of 2 was stopped by SIGTERM")
    with patch("time.sleep", side_effect=lambda _: signal.raise_signal(signal.SIGTERM)):
        result = ending(lost)
    assert result.code == 143
    assert paragraph(result.err).startswith("Stopped by SIGTERM. Completed work is kept")


def test_an_import_that_a_signal_breaks_ends_with_the_signals_code() -> None:
    def break_import(*_: object) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("numpy.core failed to import")

    with patch("kd_app.commands.app._run_with_hydra", side_effect=break_import):
        result = call("seed=1")
    assert (result.code, result.err) == (130, "Stopped by Ctrl-C.\n")


def test_a_run_writes_to_streams_that_drop_what_is_lost() -> None:
    streams: list[object] = []

    def tell(*_: object, **__: object) -> None:
        streams.extend((sys.stdout, sys.stderr))

    with patch("kd_app.jobs.distill.distill", side_effect=tell):
        assert call("seed=1").code == 0
    assert [type(stream) for stream in streams] == [LossyStream, LossyStream]
