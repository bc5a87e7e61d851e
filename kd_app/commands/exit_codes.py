"""The exit codes of a command: 0 success, 1 failed run, 2 wrong request, 130 Ctrl-C,
143 SIGTERM.
"""

import re
import sys
import traceback
from collections.abc import Callable, Sequence

from kd_app.config.errors import RequestError, RunError
from kd_app.config.escape import escape_controls

STOPPED = {130, 143}


def run_to_exit_code(body: Callable[[], object], *, about: str = "") -> int:
    """Run `body` and return the exit code; a failure prints one paragraph to stderr,
    with the prefix `about`.
    """
    resume = "Completed work is kept: run the same command again to resume."
    try:
        body()
    except RequestError as error:
        return report(2, f"{about}{error}")
    except RunError as error:
        return report(1, f"{about}The run failed: {error}")
    except KeyboardInterrupt:
        return report(130, f"Stopped by Ctrl-C. {resume}")
    except SystemExit as stop:
        if stop.code != 143:
            raise
        return report(143, f"Stopped by SIGTERM. {resume}")
    except Exception as error:
        return report(1, f"{about}{_explain_failure(error)}. {resume}")
    return 0


def report(code: int, paragraph: str) -> int:
    """Print a paragraph to stderr and return the exit code."""
    print(escape_controls(paragraph), file=sys.stderr, flush=True)
    return code


def combine(codes: Sequence[int]) -> int:
    """Combine the exit codes of trials: a signal before a failed run, before a wrong
    request, before 0.
    """
    return next((code for code in (143, 130, 1, 2) if code in codes), 0)


def _explain_failure(error: Exception) -> str:
    """Describe an error of the operating system (disk full, no permission); print the
    traceback of any other error.
    """
    if isinstance(error, OSError):
        file = f" ({error.filename})" if error.filename else ""
        return f"The run failed: {error.strerror or error}{file}"
    # safetensors raises an error of its own for an OSError
    if match := re.search(r"I/O error: (.+) \(os error \d+\)", str(error)):
        return f"The run failed: {match[1]}"
    traceback.print_exception(error)
    return f"The run failed by an internal error, with the traceback above ({type(error).__name__})"
