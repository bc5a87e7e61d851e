"""A finished run's models, measured again on its own or other data."""

from pathlib import Path

from kd_app.reporting.console import Console
from kd_app.reporting.tables import build_summary
from kd_app.run.measurement import measure_models, start_results
from kd_app.run.open_run import load_models, open_run, read_run
from kd_app.run.schema import EvaluationSettings
from kd_app.run.spec import Config


def evaluate(config: Config, *, console: Console | None = None, trial: int | None = None) -> Path:
    """Measure the models of ``config['run']`` and write a results.json into
    ``config['out']``; the folder of the results.

    Raises `RequestError`: no finished run, classes that are not the run's, an unknown
    split.
    """
    EvaluationSettings(**config)
    console = console or Console()
    out = Path(config["out"]) / ("" if trial is None else str(trial))
    saved = read_run(Path(config["run"]), config, "measure")
    with open_run(saved, out, config, overwrite=config["overwrite"], console=console) as run:
        builder = start_results(run.workspace, out, run.verdict, before=run.results)
        split = (
            ("all" if config["data"] else "test") if config["split"] == "auto" else config["split"]
        )
        models = load_models(run)
        measure_models(builder, run.workspace, models, {"test": split}, before=run.results)
        results = builder.write("finished")
        console.show(build_summary(results))
        console.print(
            f"Measured {split} images of {config['data']['name'] if config['data'] else 'the run'}:"
            f" {out}"
        )
    return out
