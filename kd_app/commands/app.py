"""What all commands share: Hydra around a task, one paragraph for a wrong request, and
an exit code that says how it ended.

0 done, 1 the run failed, 2 the request was wrong, 130 Ctrl-C, 143 SIGTERM. torch is
imported inside the task.
"""

import hashlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from kd_app.commands.help import ASKED, helped
from kd_app.config.compose import COMPOSING, composed, explained, opened, plain
from kd_app.config.errors import RequestError, RunError
from kd_app.config.paths import CONF
from kd_app.training.ranks.torchrun import Torchrun, is_follower

Task = Callable[[dict[str, Any], int | None], None]
"""``task(config, trial)``: `trial` is the number of the trial in a sweep, else None."""

_STOPPED = {130, 143}
_SWEEP = {"-m", "--multirun"}


def run(
    task: Task, primary: str, *, after_sweep: Callable[[dict[str, Any]], None] | None = None
) -> NoReturn:
    """Compose ``conf/<primary>.yaml`` with the words of the command line, run `task`
    once, or once a trial, and exit.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(_together(lambda: _run(task, primary, after_sweep)))


def _together(body: Callable[[], int]) -> int:
    """Run `body` in the first of torchrun's processes, and let the others follow until
    it is done; its exit code. Alone it is just `body`.
    """
    if is_follower():
        from kd_app.training.ranks.start import follow

        with suppress(KeyboardInterrupt):
            follow()
        return 0
    try:
        return body()
    finally:
        torchrun = Torchrun.here()
        if torchrun is not None:
            torchrun.dismiss()


def _run(task: Task, primary: str, after_sweep: Callable[[dict[str, Any]], None] | None) -> int:
    codes: list[int] = []
    configs: list[DictConfig] = []

    @hydra.main(config_path=str(CONF), config_name=primary, version_base="1.3")
    def main(config: DictConfig) -> None:
        settings = HydraConfig.get()
        trial = settings.job.num if settings.mode == RunMode.MULTIRUN else None
        codes.append(
            guarded(
                lambda: task(plain(config), trial),
                about="" if trial is None else f"Trial {trial}: ",
            )
        )
        configs.append(config)
        if codes[-1] in _STOPPED:
            raise _Stopped

    sys.argv[1:] = _words(sys.argv[1:])
    try:
        if ASKED & set(sys.argv):
            print(helped(primary, sys.argv[1:]))
            return 0
        main()
    except _Stopped:
        pass
    except COMPOSING as error:
        codes.append(
            _told(
                2,
                explained(
                    error, primary, [word for word in sys.argv[1:] if not word.startswith("-")]
                ),
            )
        )
    except KeyboardInterrupt:
        codes.append(130)
    if _SWEEP & set(sys.argv):
        _end_sweep(
            codes,
            after_sweep,
            lambda: (
                plain(configs[-1]) if configs else composed(primary, _without_sweeps(sys.argv[1:]))
            ),
        )
    return _code(codes)


def _end_sweep(
    codes: list[int],
    after_sweep: Callable[[dict[str, Any]], None] | None,
    config: Callable[[], dict[str, Any]],
) -> None:
    """Leave nothing of Hydra's own behind, and conclude if there is something to
    conclude.
    """
    out = Path(next(word.removeprefix("out=") for word in sys.argv[1:] if word.startswith("out=")))
    (out / "multirun.yaml").unlink(missing_ok=True)
    for folder in [*out.glob("[0-9]*"), out]:
        with suppress(OSError):  # it holds something, or is not there
            folder.rmdir()
    ran = not codes or set(codes) - {2}  # without codes: in other processes, or earlier
    if after_sweep and ran and not _STOPPED & set(codes) and (codes or any(out.glob("[0-9]*"))):
        codes.append(guarded(lambda: after_sweep(config())))


def _without_sweeps(words: list[str]) -> list[str]:
    said = OverridesParser.create().parse_overrides(
        [word for word in words if not word.startswith("-")]
    )
    return [str(override.input_line) for override in said if not override.is_sweep_override()]


class _Stopped(BaseException):
    """Somebody stopped a trial: no more trials."""


def guarded(body: Callable[[], object], *, about: str = "") -> int:
    """Run `body`; its ending as an exit code, with one paragraph on stderr where it did
    not go well, that begins with what it is `about`.
    """
    goes_on = "What was done is kept: the same command goes on from here."
    try:
        body()
    except RequestError as error:
        return _told(2, f"{about}{error}")
    except RunError as error:
        return _told(1, f"{about}The run failed: {error}")
    except KeyboardInterrupt:
        return _told(130, f"Stopped by Ctrl-C. {goes_on}")
    except SystemExit as stop:
        if stop.code != 143:
            raise
        return _told(143, f"Stopped by SIGTERM. {goes_on}")
    except Exception as error:
        return _told(1, f"{about}{_failure(error)}. {goes_on}")
    return 0


def _failure(error: Exception) -> str:
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


def _words(argv: list[str]) -> list[str]:
    """The command line for Hydra: kwargs opened, ``-m`` first, and a folder for a sweep
    that names none (the same words find the same folder).
    """
    words = sorted(opened(argv), key=lambda word: word not in _SWEEP)
    if _SWEEP & set(words) and not any(word.startswith("out=") for word in words):
        name = hashlib.sha256(" ".join(sorted(words)).encode()).hexdigest()[:8]
        words.append(f"out=runs/sweep-{name}")
    return words


def _code(codes: list[int]) -> int:
    """The exit code of several trials: a stop, else a failed run, else a wrong request,
    else 0.
    """
    return next((code for code in (143, 130, 1, 2) if code in codes), 0)


def _told(code: int, text: str) -> int:
    print(text, file=sys.stderr, flush=True)
    return code


def _terminated(number: int, frame: Any) -> NoReturn:
    sys.exit(143)
