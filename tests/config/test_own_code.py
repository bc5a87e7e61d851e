"""Failures of a user's own code are told by class and method."""

import errno
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kd_app.config import RequestError, RunError
from kd_app.config.own_code import describe_own_error, explain_own_error
from kd_app.digest import hash_value


class Mine:
    """A part of a user: this file is not installed."""

    def on_step(self, error: BaseException) -> None:
        help_it(error)


def help_it(error: BaseException) -> None:
    raise error


def catch(call: Callable[[], object]) -> BaseException:
    """The error of a call, without the frame of this function, which is in this file,
    too.
    """
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # any of them
        call()
    error: BaseException = caught.value
    assert error.__traceback__ is not None
    return error.with_traceback(error.__traceback__.tb_next)


def fail(error: BaseException) -> BaseException:
    """The error, raised in the user's code."""
    return catch(partial(Mine().on_step, error))


def test_the_paragraph_names_class_method_place_and_error() -> None:
    text = describe_own_error(fail(ValueError("boom\nmore")))
    assert text is not None
    line = Mine.on_step.__code__.co_firstlineno + 1
    assert text.startswith(f"Mine.on_step ({__file__}, line {line}) failed: ValueError: boom. ")


@pytest.mark.parametrize(
    "error",
    [
        *(RequestError("x"), RunError("x"), SystemExit(143), SystemExit(130), MemoryError()),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("Error while serializing: No space left on device (os error 28)"),
    ],
)
def test_what_is_explained_elsewhere_is_left_alone(error: BaseException) -> None:
    assert describe_own_error(fail(error)) is None


def test_an_exit_in_the_users_code_is_a_failure() -> None:
    assert "SystemExit: 3" in str(describe_own_error(fail(SystemExit(3))))


def test_an_error_of_kd_app_or_of_a_library_is_not_the_users() -> None:
    # functools calls the function without a frame of this file
    assert describe_own_error(catch(partial(hash_value, object()))) is None


def test_an_error_in_a_process_that_loads_data_is_read_from_its_text() -> None:
    library = next(path for path in sys.path if path.endswith("site-packages"))
    text = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call"
        f' last):\n  File "{library}/torch/utils/data.py", line 3, in fetch\n    x\n'
        '  File "/home/me/mine.py", line 12, in __getitem__\n    y\nValueError: bad pixel\n'
    )
    message = describe_own_error(ValueError(text))
    assert message is not None
    assert message.startswith(
        "__getitem__ (/home/me/mine.py, line 12) failed: ValueError: bad pixel."
    )
    assert describe_own_error(ValueError(text.replace("/home/me/", f"{library}/torch/"))) is None


@pytest.mark.parametrize("configured", [True, False])
def test_an_installed_package_is_the_users_if_the_configuration_names_it(
    configured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd_app.config.own_code._LIBRARIES", (f"{tmp_path}/", str(Path.cwd())))
    monkeypatch.setattr("kd_app.config.own_code._is_own", lambda file: False)
    (tmp_path / "part.py").write_text("def run():\n    raise ValueError('boom')\n")
    run: Any = runpy.run_path(str(tmp_path / "part.py"), run_name="theirs.part")["run"]
    config = {"loss": {"x": {"_target_": "theirs.Loss"}}} if configured else {}
    kind = RunError if configured else ValueError
    with pytest.raises(kind, match="boom"), explain_own_error(config):
        run()
