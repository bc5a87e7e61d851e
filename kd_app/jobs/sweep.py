"""The end of a sweep: a table of the trials (best on validation first), the test of the
winner, suggestions, and one report.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kd_app.config import RequestError, RunError
from kd_app.config.keys import NON_IDENTITY_KEYS
from kd_app.config.records import read_record
from kd_app.jobs import distill as job
from kd_app.reporting.comparison import compare
from kd_app.reporting.console import Console
from kd_app.reporting.html import write_report
from kd_app.reporting.refusals import list_refusals
from kd_app.reporting.runs import load_run
from kd_app.reporting.selection import read_selection
from kd_app.reporting.tables import Trial, build_sweep_table
from kd_app.run.folder import find_differences
from kd_app.run_files import CONFIG
from kd_app.search.trials import read_proposals, read_trial_results, require_optuna
from kd_app.specs.record_rules import check_record

_CALLBACKS: Final = "callbacks"


def finish_sweep(
    config: Mapping[str, Any], find_trial: Callable[[int], dict[str, Any] | None]
) -> None:
    """Test the winner of the sweep in ``config['out']`` (if ``test=auto``) and show all
    trials.

    config: of the command, for one of the trials. find_trial: the configuration of a
    trial that ran in this process. Raises `RunError` with the failed trials.
    """
    console, out = Console(), Path(config["out"])
    trials = load_trials(out)
    winner = select_winner(trials)
    if winner is not None and config["test"] == "auto":
        console.print(f"Trial {winner} is the best on validation; testing it")
        own = find_trial(winner)
        if own is None:
            own = merge_trial(config, _read_config(out / str(winner)))
        settings = {"test": "always", "remake": [], "overwrite": False}
        silent = Console(silent=True)
        job.distill({**own, **settings}, console=silent, trial=winner, is_winner=True)
        trials = load_trials(out)
    sentences = [*_suggest_next(out), *_summarize_seeds(out, trials)]
    _show_trials(console, out, trials, winner=winner, sentences=sentences)


def merge_trial(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a trial that did not run in this process: what is trained
    from the trial's `record`, and everything else from the `config` of the command.

    Of the callbacks, which are never built from a record, only the numbers are the
    trial's. Raises `RequestError` if the record names code or a location that the
    command does not allow.
    """
    known = {key: value for key, value in record.items() if key in config}
    trained = {
        key: value
        for key, value in known.items()
        if key not in NON_IDENTITY_KEYS and key != _CALLBACKS
    }
    check_record(trained, config["allow"])
    callbacks = _merge_numbers(config[_CALLBACKS], record.get(_CALLBACKS))
    return {**config, **trained, _CALLBACKS: callbacks}


def _merge_numbers(config: Any, record: Any) -> Any:
    """`config` with the numbers of `record` that stand in the place of numbers."""
    if isinstance(config, Mapping) and isinstance(record, Mapping):
        return {key: _merge_numbers(each, record.get(key)) for key, each in config.items()}
    are_numbers = isinstance(config, int | float) and isinstance(record, int | float)
    return record if are_numbers else config


def _suggest_next(out: Path) -> list[str]:
    """What to try next after a search; empty after a plain sweep."""
    if read_proposals(out) is None:
        return []
    require_optuna()
    from kd_app.search.study import suggest_next

    return suggest_next(out)


def compare_trials(config: Mapping[str, Any]) -> None:
    """Show all trials of the sweep in ``config['out']``, compared with the first.
    Raises `RunError` with the failed trials.
    """
    out = Path(config["out"])
    trials = load_trials(out)
    sentences = _compare(out, trials)
    _show_trials(Console(), out, trials, winner=select_winner(trials), sentences=sentences)


def _compare(out: Path, trials: Sequence[Trial]) -> list[str]:
    runs = [load_run(out / str(trial.number)) for trial in trials if trial.results]
    return compare(runs).write_sentences()


def _show_trials(
    console: Console,
    out: Path,
    trials: Sequence[Trial],
    *,
    winner: int | None,
    sentences: Sequence[str],
) -> None:
    console.show(build_sweep_table(trials, winner=winner))
    for sentence in sentences:
        console.print(sentence)
    folders = [out / str(trial.number) for trial in trials]
    page = write_report(folders, out / "report") if trials else None
    console.print(f"Every trial is in {out}{f', and the report in {page}' if page else ''}")
    failed = [
        f"trial {trial.number}: {trial.results.reason}"
        for trial in trials
        if trial.results and trial.results.status == "failed"
    ]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(trials)} trials failed ({'; '.join(failed)}). Finished trials"
            " are kept. Re-run the same command to retry the failed ones."
        )


def _summarize_seeds(out: Path, trials: Sequence[Trial]) -> list[str]:
    """The comparison of methods, if trials differ in their seeds."""
    seeds = {trial.results.seed for trial in trials if trial.results}
    return _compare(out, trials) if len(seeds) > 1 else []


def load_trials(out: Path) -> list[Trial]:
    """The runs in the numbered folders of a sweep, each with its values of the settings
    that differ between trials; and the trials that were refused.
    """
    folders = sorted(
        (path for path in out.iterdir() if path.name.isdecimal() and (path / CONFIG).is_file()),
        key=lambda path: int(path.name),
    )
    configs = [_read_config(folder) for folder in folders]
    refusals = list_refusals(out)
    varied = {key for each in configs for key, _, _ in find_differences(configs[0], each)}
    varied |= {each.partition("=")[0] for refusal in refusals for each in refusal.overrides}
    trials = [
        Trial(
            int(folder.name), _format_overrides(config, sorted(varied)), read_trial_results(folder)
        )
        for folder, config in zip(folders, configs, strict=True)
    ]
    trials += [
        Trial(refusal.number, refusal.overrides, None, refusal.reason) for refusal in refusals
    ]
    return sorted(trials, key=lambda trial: trial.number)


def _format_overrides(config: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    flat = {key: value for key, _, value in find_differences({}, config)}
    return tuple(f"{key}={flat[key]}" for key in keys if key in flat)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = read_record(folder / CONFIG, dict[str, Any], expected="")
    except RequestError:
        return {}
    return {key: value for key, value in config.items() if key != "own"}


def select_winner(trials: Sequence[Trial]) -> int | None:
    """Number of the finished trial that is best on validation, by `read_selection`; the
    lowest number among equals.
    """
    scores = {
        trial.number: score.value
        for trial in trials
        if trial.results and trial.results.status == "finished"
        for score in (read_selection(trial.results),)
        if score is not None
    }
    return max(scores, key=lambda number: (scores[number], -number)) if scores else None
