"""Hydra around a task: composes the configuration, runs one trial or a sweep of them,
and leaves no files of Hydra's own.
"""

import hashlib
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from kd_app.commands.exit_codes import STOPPED, combine, report, run_to_exit_code
from kd_app.config.compose import (
    COMPOSING,
    compose_config,
    explain_error,
    normalize_overrides,
    to_plain_dict,
)
from kd_app.config.paths import CONF

_SWEEP = {"-m", "--multirun"}


def run_with_hydra(
    task: Callable[[dict[str, Any], int | None], None],
    primary: str,
    after_sweep: Callable[[dict[str, Any]], None] | None,
) -> int:
    """Compose ``conf/<primary>.yaml`` with the words of the command line and run `task`,
    once or once a trial; the exit code.
    """
    codes: list[int] = []
    configs: list[DictConfig] = []

    @hydra.main(config_path=str(CONF), config_name=primary, version_base="1.3")
    def main(config: DictConfig) -> None:
        settings = HydraConfig.get()
        trial = settings.job.num if settings.mode == RunMode.MULTIRUN else None
        codes.append(
            run_to_exit_code(
                lambda: task(to_plain_dict(config), trial),
                about="" if trial is None else f"Trial {trial}: ",
            )
        )
        configs.append(config)
        if codes[-1] in STOPPED:
            raise _TrialsStopped

    sys.argv[1:] = _prepare_overrides(sys.argv[1:])
    try:
        main()
    except _TrialsStopped:
        pass
    except COMPOSING as error:
        words = [word for word in sys.argv[1:] if not word.startswith("-")]
        codes.append(report(2, explain_error(error, primary, words)))
    except KeyboardInterrupt:
        codes.append(130)
    if _SWEEP & set(sys.argv):
        _end_sweep(
            codes,
            after_sweep,
            lambda: (
                to_plain_dict(configs[-1])
                if configs
                else compose_config(primary, _drop_sweeps(sys.argv[1:]))
            ),
        )
    return combine(codes)


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
    if after_sweep and ran and not STOPPED & set(codes) and (codes or any(out.glob("[0-9]*"))):
        codes.append(run_to_exit_code(lambda: after_sweep(config())))


def _drop_sweeps(words: list[str]) -> list[str]:
    said = OverridesParser.create().parse_overrides(
        [word for word in words if not word.startswith("-")]
    )
    return [str(override.input_line) for override in said if not override.is_sweep_override()]


class _TrialsStopped(BaseException):
    """Somebody stopped a trial: no more trials."""


def _prepare_overrides(argv: list[str]) -> list[str]:
    """The command line for Hydra: kwargs opened, ``-m`` first, and a folder for a sweep
    that names none (the same words find the same folder).
    """
    words = sorted(normalize_overrides(argv), key=lambda word: word not in _SWEEP)
    if _SWEEP & set(words) and not any(word.startswith("out=") for word in words):
        name = hashlib.sha256(" ".join(sorted(words)).encode()).hexdigest()[:8]
        words.append(f"out=runs/sweep-{name}")
    return words
