"""The signals that ask a process to stop, and what the process does then.

Systems send them to all processes of a job at once (a terminal, SLURM, systemd,
``timeout``), and often twice. So a repetition within a second counts as the same
signal, and the processes that work for another one leave the decision to it.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
"""Ctrl-C; the end of a job or service; a closed terminal; SLURM's --signal."""
_SAME_SIGNAL_SECONDS = 1.0
_GRACE_SECONDS = 0.5
"""Until this process receives a signal that has already ended one of its children."""


class StopRequest:
    """The first stop signal that was received; None until then."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._received_at = -_SAME_SIGNAL_SECONDS

    def receive(self, number: int) -> bool:
        """Record a signal; False for a repetition within a second."""
        now = time.monotonic()
        if now - self._received_at < _SAME_SIGNAL_SECONDS:
            return False
        self._received_at = now
        if self.number is None:
            self.number = number
        return True

    def reset(self) -> None:
        """Return to the state before any signal."""
        self.number = None
        self.expect_again()

    def expect_again(self) -> None:
        """Count the next signal, even within a second."""
        self._received_at = -_SAME_SIGNAL_SECONDS


_RECEIVED = StopRequest()
"""The signals of this process, outside of a training."""
_LEADS: list[bool] = [False]
"""Whether the work is done by child processes, which stop by themselves."""
_PATIENCE_SECONDS = 60.0
"""For child processes that save their state. Systems kill a job sooner or later."""


def name_signal(number: int) -> str:
    """'Ctrl-C', or 'SIGTERM'."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def compute_exit_code(number: int) -> int:
    """The exit code of a process that a signal stopped, as shells report it."""
    return 128 + number


STOPPED = frozenset(compute_exit_code(number) for number in STOP_SIGNALS)
"""The exit codes of stopped processes."""


def raise_stop(number: int) -> NoReturn:
    """Raise `KeyboardInterrupt` for Ctrl-C, else `SystemExit` with the exit code."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(compute_exit_code(number))


@contextmanager
def stop_on_signals() -> Iterator[bool]:
    """Raise in the main thread of the body when a stop signal arrives (`raise_stop`).

    A signal that is ignored (``nohup``) or has a handler of its own keeps it. Nothing
    changes in another thread, or within another such body; then yields False.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or _on_signal in map(signal.getsignal, STOP_SIGNALS):
        yield False
        return
    previous = {
        number: handler
        for number in STOP_SIGNALS
        if (handler := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler)
    }
    hook = sys.unraisablehook
    _RECEIVED.reset()
    try:
        for number in previous:
            signal.signal(number, _on_signal)
        sys.unraisablehook = lambda lost: _repeat_lost_stop(lost, hook)
        yield True
    finally:
        sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, handler)
        _RECEIVED.reset()  # what runs afterwards in this process was not stopped


def _on_signal(number: int, frame: object) -> None:
    if not _RECEIVED.receive(number):
        return
    if _LEADS[-1]:
        stop_children(number)
    raise_stop(number)


@contextmanager
def stop_children_first(leads: bool) -> Iterator[None]:
    """Let the child processes stop before this process does, if it `leads` them."""
    _LEADS.append(leads)
    try:
        yield
    finally:
        _LEADS.pop()


def stop_children(number: int) -> None:
    """Pass a signal on to the child processes, and wait until they have ended."""
    from multiprocessing import active_children  # slow, and rarely needed

    for child in active_children():
        with suppress(OSError):
            os.kill(child.pid or 0, number)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while active_children() and time.monotonic() < deadline:
        time.sleep(0.05)


def _repeat_lost_stop(lost: Any, hook: Callable[[Any], object]) -> None:
    """Signal again if the exception of a signal was raised in a destructor or a
    callback of the garbage collector, where Python drops it.
    """
    number = _RECEIVED.number
    if number is None or not issubclass(lost.exc_type, KeyboardInterrupt | SystemExit):
        hook(lost)
        return
    _RECEIVED.expect_again()
    # not here, where it would be dropped again
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()


def check_stop() -> None:
    """Raise if a signal was received and a library has caught the exception."""
    if _RECEIVED.number is not None:
        raise_stop(_RECEIVED.number)


def find_stop(*, wait: bool = False) -> int | None:
    """The stop signal that this process received; None without one.

    wait: first wait a moment for a signal that has ended a child process.
    """
    deadline = time.monotonic() + (_GRACE_SECONDS if wait else 0)
    with suppress(KeyboardInterrupt, SystemExit):
        while _RECEIVED.number is None and time.monotonic() < deadline:
            time.sleep(0.02)
    return _RECEIVED.number


@contextmanager
def block_signals() -> Iterator[None]:
    """Delay stop signals, also in the child processes that the body starts, which then
    call `leave_signals_to_parent`.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def leave_signals_to_parent(parent: int) -> None:
    """Ignore stop signals in a process that works for `parent`, except for a SIGTERM
    that `parent` sends itself.
    """
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_wait_for_parent, args=(parent,), daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, set(STOP_SIGNALS) - {signal.SIGTERM})


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
