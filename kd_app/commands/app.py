"""What all commands share: Hydra around a task, one paragraph for a wrong request, and an exit code that says how it ended.

0 done, 1 the run failed, 2 the request was wrong, 130 Ctrl-C, 143 SIGTERM. torch is imported inside the task.
"""

import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from kd_app.config.compose import COMPOSING, explained, opened, plain
from kd_app.config.errors import RequestError, RunError
from kd_app.config.paths import CONF

Task = Callable[[dict[str, Any], int | None], None]
"""``task(config, trial)``: `trial` is the number of the trial in a sweep, else None."""

_STOPPED = {130, 143}


def run(task: Task, primary: str, *, after_sweep: Callable[[dict[str, Any]], None] | None = None) -> NoReturn:
    """Compose ``conf/<primary>.yaml`` with the words of the command line, run `task` once, or once a trial, and exit."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, _terminated)
    ended = _Ended()

    @hydra.main(config_path=str(CONF), config_name=primary, version_base="1.3")
    def main(config: DictConfig) -> None:
        settings = HydraConfig.get()
        trial = settings.job.num if settings.mode == RunMode.MULTIRUN else None
        ended.codes.append(guarded(lambda: task(plain(config), trial), about="" if trial is None else f"Trial {trial}: "))
        ended.config = config
        if ended.codes[-1] in _STOPPED:
            raise _Stopped

    sys.argv[1:] = _words(sys.argv[1:])
    try:
        main()
    except _Stopped:
        pass
    except COMPOSING as error:
        _tell(explained(error, primary, [word for word in sys.argv[1:] if not word.startswith("-")]))
        ended.codes.append(2)
    except KeyboardInterrupt:
        ended.codes.append(130)
    if {"-m", "--multirun"} & set(sys.argv):
        _end_sweep(ended, after_sweep)
    sys.exit(_code(ended.codes))


def _end_sweep(ended: "_Ended", after_sweep: Callable[[dict[str, Any]], None] | None) -> None:
    """Leave nothing of Hydra's own behind, and conclude if there is something to conclude."""
    out = Path(next(word.removeprefix("out=") for word in sys.argv[1:] if word.startswith("out=")))
    (out / "multirun.yaml").unlink(missing_ok=True)
    for folder in [*out.glob("[0-9]*"), out]:
        with suppress(OSError):  # it holds something, or is not there
            folder.rmdir()
    config = ended.config
    if after_sweep and config is not None and set(ended.codes) - {2} and not _STOPPED & set(ended.codes):
        ended.codes.append(guarded(lambda: after_sweep(plain(config))))


class _Ended:
    def __init__(self) -> None:
        self.codes: list[int] = []
        self.config: DictConfig | None = None


class _Stopped(BaseException):
    """Somebody stopped a trial: no more trials."""


def guarded(body: Callable[[], None], *, about: str = "") -> int:
    """Run `body`; its ending as an exit code, with one paragraph on stderr where it did not go well, that begins with what it is `about`."""
    try:
        body()
    except RequestError as error:
        _tell(f"{about}{error}")
        return 2
    except RunError as error:
        _tell(f"{about}The run failed: {error}")
        return 1
    except KeyboardInterrupt:
        _tell("Stopped by Ctrl-C. What was done is kept: the same command goes on from here.")
        return 130
    except SystemExit as stop:
        if stop.code == 143:
            _tell("Stopped by SIGTERM. What was done is kept: the same command goes on from here.")
            return 143
        raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _tell(f"{about}The run failed: {error.strerror or error}{where}. What was done is kept: the same command goes on.")
        return 1
    except Exception as error:
        traceback.print_exc()
        _tell(f"{about}The run failed, and not as it should: {type(error).__name__}. What was done is kept: the same command goes on.")
        return 1
    return 0


def _words(argv: list[str]) -> list[str]:
    """The command line for Hydra: kwargs opened, and a folder for a sweep that names none (the same words find the same folder)."""
    words = opened(argv)
    if {"-m", "--multirun"} & set(words) and not any(word.startswith("out=") for word in words):
        name = hashlib.sha256(" ".join(sorted(words)).encode()).hexdigest()[:8]
        words.append(f"out=runs/sweep-{name}")
    return words


def _code(codes: list[int]) -> int:
    """The exit code of several trials: a stop, else a failed run, else a wrong request, else 0."""
    return next((code for code in (143, 130, 1, 2) if code in codes), 0)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _terminated(number: int, frame: Any) -> NoReturn:
    sys.exit(143)
