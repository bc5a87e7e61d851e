"""How a command ended, as an exit code: 0 done, 1 the run failed, 2 the request was
wrong, 130 Ctrl-C, 143 SIGTERM.
"""

import re
import sys
import traceback
from collections.abc import Callable, Sequence

from kd_app.config.errors import RequestError, RunError

STOPPED = {130, 143}


def run_to_exit_code(body: Callable[[], object], *, about: str = "") -> int:
    """Run `body`; its ending as an exit code, with one paragraph on stderr where it did
    not go well, that begins with what it is `about`.
    """
    goes_on = "What was done is kept: the same command goes on from here."
    try:
        body()
    except RequestError as error:
        return report(2, f"{about}{error}")
    except RunError as error:
        return report(1, f"{about}The run failed: {error}")
    except KeyboardInterrupt:
        return report(130, f"Stopped by Ctrl-C. {goes_on}")
    except SystemExit as stop:
        if stop.code != 143:
            raise
        return report(143, f"Stopped by SIGTERM. {goes_on}")
    except Exception as error:
        return report(1, f"{about}{_explain_failure(error)}. {goes_on}")
    return 0


def report(code: int, paragraph: str) -> int:
    """Write a paragraph to stderr, and return the exit code that goes with it."""
    print(paragraph, file=sys.stderr, flush=True)
    return code


def combine(codes: Sequence[int]) -> int:
    """The exit code of several trials: a stop, else a failed run, else a wrong request,
    else 0.
    """
    return next((code for code in (143, 130, 1, 2) if code in codes), 0)


def _explain_failure(error: Exception) -> str:
    """What the system refused (disk full, no right to write) in words; all else is a
    fault of the program, with its traceback.
    """
    if isinstance(error, OSError):
        return (
            "The run failed:"
            f" {error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
        )
    if refused := re.search(
        r"I/O error: (.+) \(os error \d+\)", str(error)
    ):  # safetensors wraps it
        return f"The run failed: {refused[1]}"
    traceback.print_exception(error)
    return f"The run failed by a fault of the program, told above ({type(error).__name__})"
