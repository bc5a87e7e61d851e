"""The job of ``kd-evaluate``: measures the models of a finished run again, on the run's
own data or on other data.
"""

from pathlib import Path

from kd_app.reporting.console import Console
from kd_app.reporting.tables import build_summary
from kd_app.run.measurement import measure_models, start_results
from kd_app.run.open_run import load_models, open_run, read_run
from kd_app.run.schema import EvaluationSettings
from kd_app.run.spec import Config


def evaluate(config: Config, *, console: Console | None = None, trial: int | None = None) -> Path:
    """Measure the models of the run ``config['run']`` and write results.json into the
    folder ``config['out']``; returns that folder.

    Raises `RequestError` for an unfinished run, for data with other classes than the
    run's, and for an unknown split.
    """
    EvaluationSettings(**config)
    console = console or Console()
    out = Path(config["out"]) / ("" if trial is None else str(trial))
    saved = read_run(Path(config["run"]), config, "measure")
    with open_run(saved, out, config, overwrite=config["overwrite"], console=console) as run:
        builder = start_results(run.workspace, out, run.verdict, before=run.results)
        split = select_split(config)
        models = load_models(run)
        measure_models(builder, run.workspace, models, {"test": split}, before=run.results)
        results = builder.write("finished")
        console.show(build_summary(results))
        data = config["data"]["name"] if config["data"] else "the run"
        console.print(f"Measured {split} images of {data}: {out}")
    return out


def select_split(config: Config) -> str:
    """The split to measure; by default test of the run's data, all of other data."""
    if config["split"] != "auto":
        return str(config["split"])
    return "all" if config["data"] else "test"
