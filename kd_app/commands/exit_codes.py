"""The exit codes of a command: 0 success, 1 failed run, 2 wrong request, 130 Ctrl-C,
143 SIGTERM, 128 + its number for another signal.
"""

import re
import sys
import traceback
from collections.abc import Callable, Sequence

from kd_app.config.errors import RequestError, RunError, take_first_line
from kd_app.config.escape import escape_controls
from kd_app.signals import STOPPED, compute_exit_code, find_stop, name_signal

_RESUME = "Completed work is kept: run the same command again to resume."
_DEAD_CHILD = re.compile(r"killed by signal|stopped by|exited unexpectedly|abruptly|terminated")
"""In messages of torch, joblib and kd_app about a child process that has ended."""
_GPU = re.compile(r"(CUDA|HIP|CUBLAS|CUDNN|NCCL|cuBLAS|cuDNN)\w* error", re.IGNORECASE)


def run_to_exit_code(body: Callable[[], object], *, about: str = "") -> int:
    """Run `body` and return the exit code; a failure prints one paragraph to stderr,
    with the prefix `about`.
    """
    try:
        body()
    except RequestError as error:
        return report(2, f"{about}{error}")
    except (KeyboardInterrupt, SystemExit) as stop:
        code = 130 if isinstance(stop, KeyboardInterrupt) else stop.code
        if not code:
            return report(1, f"{about}The run failed: a part of it called sys.exit. {_RESUME}")
        if code not in STOPPED:
            raise
        return report_stop(int(code) - 128)
    except Exception as error:
        # a signal to all processes can end a child first, which looks like its failure
        number = find_stop(wait=_DEAD_CHILD.search(str(error)) is not None)
        if number is not None:
            return report_stop(number)
        return report(1, f"{about}{_explain_failure(error)}")
    return 0


def report_stop(number: int) -> int:
    """Print that a signal stopped the command, and return the exit code."""
    return report(compute_exit_code(number), f"Stopped by {name_signal(number)}. {_RESUME}")


def report(code: int, paragraph: str) -> int:
    """Print a paragraph to stderr and return the exit code."""
    print(escape_controls(paragraph), file=sys.stderr, flush=True)
    return code


def combine(codes: Sequence[int]) -> int:
    """Combine the exit codes of trials: a signal before a failed run, before a wrong
    request, before 0.
    """
    return next((code for code in (*sorted(STOPPED, reverse=True), 1, 2) if code in codes), 0)


def _explain_failure(error: Exception) -> str:
    """Describe a failed run, an error of the operating system (disk full, no
    permission) or of a GPU; print the traceback of any other error.
    """
    if isinstance(error, RunError):
        return f"The run failed: {error}"
    if isinstance(error, OSError):
        file = f" ({error.filename})" if error.filename else ""
        # without a number, it is a traceback from another process
        reason = error.strerror or str(error).strip().rpartition("\n")[2]
        return f"The run failed: {reason}{file}. {_RESUME}"
    # safetensors raises an error of its own for an OSError
    if match := re.search(r"I/O error: (.+) \(os error \d+\)", str(error)):
        return f"The run failed: {match[1]}. {_RESUME}"
    if isinstance(error, RuntimeError) and _GPU.search(str(error)):
        return f"The run failed: {take_first_line(error)}. {_RESUME}"
    traceback.print_exception(error)
    name = type(error).__name__
    return f"The run failed by an internal error, with the traceback above ({name}). {_RESUME}"
