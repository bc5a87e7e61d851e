"""The end of a sweep: its trials in one table, best by validation first, the winner
tested, what to try next, and one page about all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kd_app.config import RunError
from kd_app.jobs import distill as run
from kd_app.reporting.comparison import compare
from kd_app.reporting.console import Console
from kd_app.reporting.html import write_report
from kd_app.reporting.runs import load_run
from kd_app.reporting.tables import Trial, sweep
from kd_app.run.run_folder import find_differences
from kd_app.run_files import CONFIG
from kd_app.search.trials import read_proposals, read_trial_results, require_optuna


def finish_sweep(config: Mapping[str, Any]) -> None:
    """Test the winner of the sweep in ``config['out']``, unless ``test=never``, and
    show all trials. Raises `RunError` that names failed ones.
    """
    console, out = Console(), Path(config["out"])
    trials = _load_trials(out)
    winner = _select_winner(trials)
    if winner is not None and config["test"] == "auto":
        console.print(f"Trial {winner} is the best on validation; testing it")
        kept = {key: config[key] for key in ("out", "stages", "allow", "examples", "license")}
        again = {"test": "always", "remake": [], "overwrite": False, **kept}
        run.distill(
            {**_read_config(out / str(winner)), **again}, console=Console(silent=True), trial=winner
        )
        trials = _load_trials(out)
    _show_trials(
        console,
        out,
        trials,
        winner=winner,
        says=[*_suggest_next(out), *_summarize_seeds(out, trials)],
    )


def _suggest_next(out: Path) -> list[str]:
    """What to try next after a search; nothing after a plain sweep."""
    if read_proposals(out) is None:
        return []
    require_optuna()
    from kd_app.search.study import suggest_next

    return suggest_next(out)


def set_side_by_side(config: Mapping[str, Any]) -> None:
    """Show all trials of the sweep in ``config['out']``, and what they show beside the
    first. Raises `RunError` that names failed ones.
    """
    out = Path(config["out"])
    trials = _load_trials(out)
    says = compare(
        [load_run(out / str(trial.number)) for trial in trials if trial.results]
    ).write_sentences()
    _show_trials(Console(), out, trials, winner=_select_winner(trials), says=says)


def _show_trials(
    console: Console, out: Path, trials: Sequence[Trial], *, winner: int | None, says: Sequence[str]
) -> None:
    console.show(sweep(trials, winner=winner))
    for sentence in says:
        console.print(sentence)
    page = (
        write_report([out / str(trial.number) for trial in trials], out / "report")
        if trials
        else None
    )
    console.print(f"Every trial is in {out}{f', and what they show in {page}' if page else ''}")
    failed = [
        f"trial {each.number}: {each.results.reason}"
        for each in trials
        if each.results and each.results.status == "failed"
    ]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(trials)} trials failed ({'; '.join(failed)}). The others are"
            " whole; the same words try these again."
        )


def _summarize_seeds(out: Path, trials: Sequence[Trial]) -> list[str]:
    """What the trials show of methods, where some were run with several seeds."""
    seeds = {trial.results.seed for trial in trials if trial.results}
    return (
        compare(
            [load_run(out / str(trial.number)) for trial in trials if trial.results]
        ).write_sentences()
        if len(seeds) > 1
        else []
    )


def _load_trials(out: Path) -> list[Trial]:
    """The numbered folders of a sweep that hold a run, each with what it says
    differently from the others.
    """
    folders = sorted(
        (path for path in out.iterdir() if path.name.isdecimal() and (path / CONFIG).is_file()),
        key=lambda path: int(path.name),
    )
    configs = [_read_config(folder) for folder in folders]
    varied = sorted({key for each in configs for key, _, _ in find_differences(configs[0], each)})
    return [
        Trial(int(folder.name), _format_differences(each, varied), read_trial_results(folder))
        for folder, each in zip(folders, configs, strict=True)
    ]


def _format_differences(config: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    flat = {key: now for key, _, now in find_differences({}, config)}
    return tuple(f"{key}={flat.get(key)}" for key in keys)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return (
        {key: value for key, value in found.items() if key != "own"}
        if isinstance(found, dict)
        else {}
    )


def _select_winner(trials: Sequence[Trial]) -> int | None:
    scores = {
        trial.number: trial.results.validation.student.top1
        for trial in trials
        if trial.results
        and trial.results.status == "finished"
        and trial.results.validation
        and trial.results.validation.student.top1 is not None
    }
    return max(scores, key=lambda number: (scores[number], -number)) if scores else None
