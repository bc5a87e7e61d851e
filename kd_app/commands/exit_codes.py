"""The exit codes of a command: 0 success, 1 failed run, 2 wrong request, 130 Ctrl-C,
143 SIGTERM, 128 + its number for another signal.
"""

import re
import sys
import traceback
from collections.abc import Callable, Sequence

from kd_app.config.errors import RequestError, RunError, take_first_line
from kd_app.signals import STOPPED, compute_exit_code, find_stop, name_signal

_DEAD_CHILD = re.compile(r"killed by signal|stopped by|exited unexpectedly|abruptly|terminated")
"""In messages of torch, joblib and kd_app about a child process that has ended."""
_GPU = re.compile(r"(CUDA|HIP|CUBLAS|CUDNN|NCCL|cuBLAS|cuDNN)\w* error", re.IGNORECASE)


def run_to_exit_code(body: Callable[[], object], *, about: str = "") -> int:
    """Run `body` and return the exit code; a failure prints one paragraph to stderr,
    with the prefix `about`.
    """
    resume = "Completed work is kept: run the same command again to resume."
    try:
        body()
    except RequestError as error:
        return report(2, f"{about}{error}")
    except (KeyboardInterrupt, SystemExit) as stop:
        code = 130 if isinstance(stop, KeyboardInterrupt) else stop.code
        if not code:
            return report(1, f"{about}The run failed: a part of it called sys.exit. {resume}")
        if code not in STOPPED:
            raise
        return report(int(code), f"Stopped by {name_signal(int(code) - 128)}. {resume}")
    except Exception as error:
        # a signal to all processes can end a child first, which looks like its failure
        number = find_stop(wait=_DEAD_CHILD.search(str(error)) is not None)
        if number is not None:
            code = compute_exit_code(number)
            return report(code, f"Stopped by {name_signal(number)}. {resume}")
        if isinstance(error, RunError):
            return report(1, f"{about}The run failed: {error}")
        return report(1, f"{about}{_explain_failure(error)}. {resume}")
    return 0


def report(code: int, paragraph: str) -> int:
    """Print a paragraph to stderr and return the exit code."""
    print(paragraph, file=sys.stderr, flush=True)
    return code


def combine(codes: Sequence[int]) -> int:
    """Combine the exit codes of trials: a signal before a failed run, before a wrong
    request, before 0.
    """
    return next((code for code in (*sorted(STOPPED, reverse=True), 1, 2) if code in codes), 0)


def _explain_failure(error: Exception) -> str:
    """Describe an error of the operating system (disk full, no permission) or of a GPU;
    print the traceback of any other error.
    """
    if isinstance(error, OSError):
        file = f" ({error.filename})" if error.filename else ""
        return f"The run failed: {error.strerror or error}{file}"
    # safetensors raises an error of its own for an OSError
    if match := re.search(r"I/O error: (.+) \(os error \d+\)", str(error)):
        return f"The run failed: {match[1]}"
    if isinstance(error, RuntimeError) and _GPU.search(str(error)):
        return f"The run failed: {take_first_line(error)}"
    traceback.print_exception(error)
    return f"The run failed by an internal error, with the traceback above ({type(error).__name__})"
