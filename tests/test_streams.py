"""Output that nobody can receive."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from kd_app.streams import LossyStream, drop_lost_output


class FullStream(io.StringIO):
    """A file on a disk that is full until `space` is set."""

    space = False

    def write(self, text: str) -> int:
        if not self.space:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_text_is_dropped_while_a_disk_is_full_only() -> None:
    stream = FullStream()
    lossy = LossyStream(stream)
    print("first", file=lossy, flush=True)
    stream.space = True
    print("second", file=lossy, flush=True)
    assert stream.getvalue() == "second\n"
    assert lossy.isatty() is False


def test_a_pipe_that_its_reader_closed_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    pipe = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", pipe)
    os.close(reader)
    with drop_lost_output():
        print("x" * 100_000, flush=True)
        print("y", flush=True)
    assert sys.stdout is pipe
    pipe.flush()  # as Python does at its end: what is left goes nowhere
    pipe.close()


def test_what_can_be_written_arrives(capsys: pytest.CaptureFixture[str]) -> None:
    with drop_lost_output():
        print("text")
        print("error", file=sys.stderr)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("text\n", "error\n")


def test_without_a_stdout_there_is_one_that_drops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with drop_lost_output():
        assert isinstance(sys.stdout, LossyStream)
        assert sys.stdout.encoding == "utf-8"
    assert sys.stdout is None
