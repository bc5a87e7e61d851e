"""Run a task with Hydra: compose the configuration, run one trial or a sweep, and
remove Hydra's files.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from kd_app.commands.app import AfterSweep
from kd_app.commands.exit_codes import combine, report, report_stop, run_to_exit_code
from kd_app.config.compose import (
    COMPOSE_ERRORS,
    check_choices,
    compose_config,
    explain_error,
    normalize_overrides,
    to_plain_dict,
)
from kd_app.config.errors import RequestError
from kd_app.config.hydra_messages import check_flags
from kd_app.config.memory import explain_memory_error
from kd_app.config.own_code import explain_own_error
from kd_app.config.paths import CONF
from kd_app.signals import STOPPED, find_stop, stop_children_first, stop_on_signals

_SWEEP = {"-m", "--multirun"}
_CONCERNS_HYDRA = re.compile(r"-|[+~]*hydra\b")
"""The start of a flag of Hydra, or of an override of its settings."""


def run_with_hydra(
    task: Callable[[dict[str, Any], int | None], None],
    primary: str,
    after_sweep: AfterSweep | None,
) -> int:
    """Compose ``conf/<primary>.yaml`` with the command line, run `task` once or once
    for each trial, and return the exit code.
    """
    # a launcher may run the trials in processes with other arguments
    arguments = sys.argv[1:] = _prepare_overrides(sys.argv[1:])
    if any(map(_CONCERNS_HYDRA.match, arguments)):
        return _run_hydra_main(task, primary, after_sweep, arguments)
    # Hydra's own main composes the configuration twice
    return run_to_exit_code(lambda: _run_task(task, compose_config(primary, arguments), None))


def _run_hydra_main(
    task: Callable[[dict[str, Any], int | None], None],
    primary: str,
    after_sweep: AfterSweep | None,
    arguments: list[str],
) -> int:
    codes: list[int] = []
    configs: dict[int | None, DictConfig] = {}

    @hydra.main(config_path=str(CONF), config_name=primary, version_base="1.3")
    def main(config: DictConfig) -> None:
        settings = HydraConfig.get()
        trial = settings.job.num if settings.mode == RunMode.MULTIRUN else None

        def run_trial() -> None:
            varied = [each for each in settings.overrides.task if each not in arguments]
            with _record_refusal(Path(config["out"]) / str(trial), varied):
                _run_task(task, to_plain_dict(config), trial)

        has_table = trial is not None and after_sweep is not None
        with stop_on_signals() as is_child, stop_children_first(False):
            code = run_to_exit_code(
                run_trial if has_table else lambda: _run_task(task, to_plain_dict(config), trial),
                about="" if trial is None else f"Trial {trial}: ",
            )
        codes.append(code)
        configs[trial] = config
        if code in STOPPED:
            if is_child:
                # a launcher's process would run the next trial
                sys.stdout.flush()
                os._exit(code)
            raise _TrialsStopped(code)

    try:
        check_flags(sys.argv[1:])
        check_choices(each for each in sys.argv[1:] if not each.startswith("-"))
        with stop_children_first(True):
            main()
    except _TrialsStopped as stop:
        codes.append(stop.code)
    except COMPOSE_ERRORS as error:
        overrides = [each for each in sys.argv[1:] if not each.startswith("-")]
        codes.append(report(2, explain_error(error, primary, overrides)))
    except (KeyboardInterrupt, SystemExit, RuntimeError) as error:
        # between two trials, or while other processes run them
        number = find_stop(wait=isinstance(error, RuntimeError))
        is_refused = isinstance(error, SystemExit) and {"-p", "--package"} & set(arguments)
        if number is None and not is_refused:
            raise
        codes.append(2 if number is None else report_stop(number))
    if _SWEEP & set(sys.argv):
        _end_sweep(codes, after_sweep, primary, configs)
    return combine(codes)


def _run_task(
    task: Callable[[dict[str, Any], int | None], None], config: dict[str, Any], trial: int | None
) -> None:
    with explain_own_error(config), explain_memory_error("this command", config):
        task(config, trial)


@contextmanager
def _record_refusal(trial: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Record a refusal of the trial in this folder for the table of the sweep."""
    from kd_app.reporting.refusals import remove_refusal, write_refusal

    try:
        yield
    except RequestError as error:
        with suppress(OSError):  # the refusal is printed in any case
            write_refusal(trial, overrides, str(error))
        raise
    remove_refusal(trial)


def _compose_sweep_config(primary: str, configs: Mapping[int | None, DictConfig]) -> dict[str, Any]:
    """The config of the last trial, or of the command if no trial ran here."""
    if configs:
        return to_plain_dict(list(configs.values())[-1])
    return compose_config(primary, _drop_sweeps(sys.argv[1:]))


def _end_sweep(
    codes: list[int],
    after_sweep: AfterSweep | None,
    primary: str,
    configs: Mapping[int | None, DictConfig],
) -> None:
    """Remove Hydra's files and empty folders; run `after_sweep` if any trial ran."""

    def find_trial(number: int) -> dict[str, Any] | None:
        return to_plain_dict(configs[number]) if number in configs else None

    from kd_app.reporting.refusals import remove_refusals

    out = _find_sweep_folder(sys.argv[1:])
    (out / "multirun.yaml").unlink(missing_ok=True)
    for folder in out.glob("[0-9]*"):
        _remove_if_empty(folder)
    if not any(out.glob("[0-9]*")):
        remove_refusals(out)
    _remove_if_empty(out)
    # without codes, the trials ran in other processes or in an earlier call
    has_trials = bool(set(codes) - {2}) if codes else any(out.glob("[0-9]*"))
    if not codes and not has_trials:
        codes.append(
            report(
                2,
                "No trial of the sweep ran. Expected at least one value for each"
                " setting that varies, for example seed=range(0,3).",
            )
        )
    if after_sweep and has_trials and not STOPPED & set(codes):
        codes.append(
            run_to_exit_code(
                lambda: after_sweep(_compose_sweep_config(primary, configs), find_trial)
            )
        )


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # only empty folders can be removed
        folder.rmdir()


def _find_sweep_folder(arguments: list[str]) -> Path:
    # Only these are parsed: another override may be the reason for which no trial ran.
    *_, out = _parse([each for each in arguments if each.lstrip("+").startswith("out=")])
    return Path(str(out.value()))


def _drop_sweeps(arguments: list[str]) -> list[str]:
    overrides = _parse(arguments)
    return [str(override.input_line) for override in overrides if not override.is_sweep_override()]


def _parse(arguments: list[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(
        [each for each in arguments if not each.startswith("-")]
    )


class _TrialsStopped(BaseException):
    """A signal stopped a trial; no further trials run. code: the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _prepare_overrides(argv: list[str]) -> list[str]:
    """The command line for Hydra: normalized overrides, ``-m`` first, and an ``out=``
    for a sweep without one.
    """
    is_sweep = bool(_SWEEP & set(argv))
    arguments = sorted(
        normalize_overrides(argv, is_sweep=is_sweep), key=lambda argument: argument not in _SWEEP
    )
    if is_sweep and not any(each.lstrip("+").startswith("out=") for each in arguments):
        # the same command must find the same folder to resume
        name = hashlib.sha256(" ".join(sorted(arguments)).encode()).hexdigest()[:8]
        arguments.append(f"out=runs/sweep-{name}")
    return arguments
