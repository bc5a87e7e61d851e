"""What a process does when it receives a signal that asks it to stop."""

import signal
import time

import pytest

from kd_app import signals
from kd_app.signals import (
    STOPPED,
    StopRequest,
    check_stop,
    find_stop,
    name_signal,
    stop_children_first,
    stop_on_signals,
)


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [
        (signal.SIGINT, KeyboardInterrupt, None),
        (signal.SIGTERM, SystemExit, 143),
        (signal.SIGHUP, SystemExit, 129),
        (signal.SIGUSR1, SystemExit, 138),
    ],
)
def test_a_signal_raises_and_the_handler_before_comes_back(
    number: signal.Signals, error: type[BaseException], code: int | None
) -> None:
    before = signal.getsignal(number)
    with stop_on_signals():
        with pytest.raises(error) as raised:
            signal.raise_signal(number)
        assert find_stop() == number
    assert signal.getsignal(number) == before
    assert getattr(raised.value, "code", None) == code
    assert find_stop() is None
    assert 128 + number in STOPPED


def test_ctrl_c_is_called_by_its_key() -> None:
    assert [name_signal(each) for each in (signal.SIGINT, signal.SIGTERM)] == ["Ctrl-C", "SIGTERM"]


def test_a_signal_that_is_ignored_or_has_a_handler_keeps_it() -> None:
    def requeue(number: int, frame: object) -> None: ...

    before = signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGUSR2)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, requeue)
    try:
        with stop_on_signals():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGUSR2) is requeue
        assert find_stop() is None
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGUSR2, before[1])


def test_a_body_within_another_changes_nothing() -> None:
    with stop_on_signals() as is_outer, stop_on_signals() as is_inner:
        assert (is_outer, is_inner) == (True, False)


def test_the_same_signal_within_a_second_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    request = StopRequest()
    assert request.receive(signal.SIGTERM)
    now[0] += 0.9
    assert not request.receive(signal.SIGTERM)
    now[0] += 0.2
    assert request.receive(signal.SIGINT)
    assert request.number == signal.SIGTERM


class Interrupted:
    """An object whose destructor a signal interrupts."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_stop_that_a_destructor_loses_comes_again() -> None:
    with stop_on_signals():
        Interrupted()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5)


def test_a_stop_that_a_library_has_caught_is_raised_at_the_next_check() -> None:
    with stop_on_signals():
        check_stop()
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit, match="143"):
            check_stop()


def test_a_signal_that_first_ended_a_child_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stop_on_signals():
        assert find_stop() is None
        monkeypatch.setattr(time, "sleep", lambda _: signal.raise_signal(signal.SIGTERM))
        assert find_stop(wait=True) == signal.SIGTERM


def test_the_children_of_a_leading_process_stop_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[int] = []
    monkeypatch.setattr(signals, "stop_children", stopped.append)
    with pytest.raises(SystemExit), stop_on_signals(), stop_children_first(True):
        signal.raise_signal(signal.SIGTERM)
    with (
        pytest.raises(SystemExit),
        stop_on_signals(),
        stop_children_first(True),
        stop_children_first(False),
    ):
        signal.raise_signal(signal.SIGTERM)
    assert stopped == [signal.SIGTERM]
