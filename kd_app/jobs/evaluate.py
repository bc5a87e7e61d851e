"""The job of ``kd-evaluate``: measures the models of a finished run again, on the run's
own data or on other data.
"""

from pathlib import Path

from kd_app.config import RequestError
from kd_app.data.base import RunData
from kd_app.data.evaluation import Evaluation
from kd_app.measurement.classification import start_results
from kd_app.measurement.task_measurement import select_measurement
from kd_app.reporting.console import Console
from kd_app.reporting.tables import build_summary
from kd_app.run.known_images import KnownImages, leave_out_used
from kd_app.run.open_run import SavedRun, load_models, open_run, read_run
from kd_app.run.recorded_pixels import describe_normalization
from kd_app.specs.schema import EvaluationSettings
from kd_app.specs.spec import Config


def evaluate(config: Config, *, console: Console | None = None, trial: int | None = None) -> Path:
    """Measure the models of the run ``config['run']`` and write results.json into the
    folder ``config['out']``; returns that folder.

    Raises `RequestError` for an unfinished run, for data with classes that the run does
    not have, for an unknown split, and if no image is left to measure.
    """
    EvaluationSettings(**config)
    console = console or Console()
    out = Path(config["out"]) / ("" if trial is None else str(trial))
    saved, split = read_run(Path(config["run"]), config, "measure"), select_split(config)
    known = KnownImages.read(saved.folder, saved.results)
    is_own, notes = config["data"] is None, list[str]()

    def prepare(data: RunData) -> None:
        notes.extend(prepare_images(data, saved, known, split, is_own=is_own))

    with open_run(
        saved, out, config, overwrite=config["overwrite"], console=console, prepare=prepare
    ) as run:
        data = run.workspace.data
        if not is_own:
            notes += leave_out_used(
                known, data, split, config["known_images"], run.workspace.data_folder
            )
        builder = start_results(run.workspace, out, run.verdict, before=run.results)
        models = load_models(run)
        if data.name is None and "student" in models:
            notes += describe_normalization(saved.pixels, models["student"].loaded.pixels)
        builder.notes += notes
        select_measurement(run.workspace).measure_again(
            builder, run.workspace, models, split, before=run.results, is_own=is_own
        )
        results = builder.write("finished")
        console.show(build_summary(results))
        name = "the run" if is_own else config["data"]["name"]
        console.print(f"Measured {split} images of {name}: {out}")
    return out


def prepare_images(
    data: RunData, saved: SavedRun, known: KnownImages, split: str, *, is_own: bool
) -> list[str]:
    """Prepare the images that are measured; notes about them.

    Other data than the run's may lack classes and are divided only if the split is
    neither predefined nor 'all'. Images of the run keep the split of the run, also if
    some of them have changed.
    """
    trained = saved.results.data
    # the labels that judge an embedding are those of the images
    names_classes = saved.results.embedding is None
    classes = (tuple(trained.classes) if trained else ()) if names_classes else None
    if not is_own:
        data.evaluate_only(Evaluation(classes, split))
        return []
    try:
        changes = known.describe_changes(data)
    except RequestError as error:
        raise RequestError(
            f"The images of the run {str(saved.folder)!r} can't be listed: {error} If they have"
            " moved, name their new location with root=<folder>. To measure other images, use"
            " data=folder data.root=<folder>."
        ) from None
    if not changes:
        return []
    data.evaluate_only(Evaluation(classes, split, known.splits))
    return [
        f"The images have changed since the run: {changes}. Images of the run keep their split,"
        " and new ones count as test images."
    ]


def select_split(config: Config) -> str:
    """The split to measure; by default test of the run's data, all of other data."""
    if config["split"] != "auto":
        return str(config["split"])
    return "all" if config["data"] else "test"
