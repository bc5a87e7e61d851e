"""The job of ``kd-evaluate cascade=[...]``: measures whether a cascade of a cheap and a
costly model pays, chooses its thresholds on validation, and checks them on test.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from kd_app.config import RequestError
from kd_app.data.base import require
from kd_app.deployment.cascade_choice import (
    CascadeChoice,
    Routing,
    choose_cascade,
    combine_predictions,
)
from kd_app.deployment.logits import name_images
from kd_app.deployment.predictions import predict_with_artifact
from kd_app.digest import hash_file
from kd_app.measurement.builder import ResultsBuilder, SplitName
from kd_app.measurement.cascade_record import CASCADE as WHOLE
from kd_app.measurement.cascade_record import (
    ImageCall,
    build_record,
    infer_cascade,
    infer_single,
    select_images,
    summarize_latency,
    time_calls,
)
from kd_app.measurement.classification import add_data, start_results
from kd_app.metrics.model_pair import CASCADE
from kd_app.metrics.record import Predictions
from kd_app.metrics.report_metrics import measure_split
from kd_app.reporting.cascade import build_cascade_tables
from kd_app.reporting.cascade_results import CascadeRecord as CascadePart
from kd_app.reporting.cascade_results import CascadeSplit
from kd_app.reporting.console import Console
from kd_app.reporting.html import write_report
from kd_app.reporting.results import Results
from kd_app.run.machine import choose_device
from kd_app.run.open_model import OpenModel, check_same_classes, open_model
from kd_app.run.open_run import open_run, read_run
from kd_app.run.output import list_groups, write_predictions
from kd_app.run.workspace import Workspace
from kd_app.run_files import CASCADE as FILE
from kd_app.specs.schema import EvaluationSettings
from kd_app.specs.spec import Config
from kd_app.specs.task_choice import require_classifier


def evaluate_cascade(
    config: Config, *, console: Console | None = None, trial: int | None = None
) -> Path:
    """Evaluate the cascade of the models ``config['cascade']`` on a run's data.

    Writes results.json, report.html and, if the cascade pays, cascade.json into the
    folder ``config['out']``, and returns that folder.

    Validation is used to fit temperatures, to time images and to choose thresholds;
    test is read once. Each of m measures is tested at ``1 - (1 - confidence) / m``
    (Bonferroni), so that the cheapest one keeps the margin at `confidence`. The
    temperatures are fitted on the same images.

    Raises `RequestError` for fewer than two stages, a missing model, stages with
    different classes, no run with data, and data without 8-bit images.
    """
    EvaluationSettings(**config)
    routing, console = Routing(**config["routing"]), console or Console()
    check_request(config)
    device = choose_device(config)
    stages = [open_model(path, threads=1, device=device) for path in config["cascade"]]
    check_same_classes([(stage.name, stage.model.classes) for stage in stages])
    saved = read_run(_find_run(config, stages), config, "measure")
    require_classifier(saved.folder, saved.results, why="a cascade compares predicted classes")
    out = Path(config["out"]) / ("" if trial is None else str(trial))
    with open_run(saved, out, config, overwrite=config["overwrite"], console=console) as run:
        _check_data(run.workspace, stages)
        builder = start_results(run.workspace, out, run.verdict, before=run.results)
        builder.config = {
            **run.config,
            "cascade": {"stages": config["cascade"], **config["routing"]},
        }
        results = _evaluate(routing, stages, run.workspace, builder)
        if trial is None:
            write_report([out], out)
        for table in build_cascade_tables(results):
            console.show(table)
        console.print(f"Everything is in {out}")
    return out


def check_request(config: Config) -> None:
    """Raises `RequestError` for fewer than two stages, and for settings that have no
    effect on a cascade.
    """
    paths = config["cascade"]
    if len(paths) < 2:
        raise RequestError(
            f"cascade={paths!r} names one stage. Expected: two or more, from cheap to costly. To"
            " measure one model, set run=<its run> instead."
        )
    if config["split"] != "auto":
        raise RequestError(
            f"split={config['split']} does nothing for a cascade, which is chosen on validation and"
            " checked on test. Leave it out."
        )
    if config["robustness"].get("corruptions"):
        raise RequestError(
            "robustness= does nothing for a cascade; it applies to the models of a run. Leave it"
            " out."
        )


def _find_run(config: Config, stages: Sequence[OpenModel]) -> Path:
    """The run on whose data the cascade is evaluated."""
    if config["run"]:
        return Path(config["run"])
    folder = next((stage.run for stage in stages if stage.run), None)
    if folder is None:
        raise RequestError(
            f"None of the models in cascade={config['cascade']!r} is in a run's folder, so the data"
            " for the evaluation are unknown. Set run=<folder of a run>."
        )
    return folder


def _check_data(workspace: Workspace, stages: Sequence[OpenModel]) -> None:
    require(workspace.data, "uint8", because="A cascade", instead="judge it on other data")
    first = stages[0]
    check_same_classes([("The data", workspace.classes), (first.name, first.model.classes)])


def _evaluate(
    routing: Routing, stages: Sequence[OpenModel], workspace: Workspace, builder: ResultsBuilder
) -> Results:
    rule, console = builder.rule, workspace.console
    add_data(builder, workspace)
    if rule.metric != "top1":
        builder.notes.append(
            f"The thresholds keep the margin in top-1; the run's verdict uses {rule.metric}."
        )
    validation, test = (
        [_load_predictions(workspace, stage, number, split) for number, stage in enumerate(stages)]
        for split in ("validation", "test")
    )
    console.print_transient("  timing the stages ...")
    calls: dict[str, ImageCall] = {
        f"stage {number}": partial(infer_single, stage.model, workspace.decoding)
        for number, stage in enumerate(stages)
    }
    seconds = time_calls(calls, select_images(workspace, validation[0], routing.images))
    costs = tuple(float(seconds[name].mean()) for name in calls)
    choice = choose_cascade(routing, rule, validation, costs)
    cascade = None
    if choice.uses_cascade:
        cascade = choice.build_cascade([stage.model for stage in stages], workspace.decoding)
        calls[WHOLE] = partial(infer_cascade, cascade)
    console.print_transient("  timing the cascade, image by image ...")
    seconds = time_calls(calls, select_images(workspace, test[0], routing.images))
    latency = {name: summarize_latency(each) for name, each in seconds.items()}
    record = build_record(stages, validation, test, choice, rule=rule, latency=latency)
    builder.cascade = CascadePart.model_validate(record)
    splits: tuple[tuple[SplitName, list[Predictions]], ...] = (
        ("validation", validation),
        ("test", test),
    )
    for split, predictions in splits:
        builder.cascade.splits[split] = _measure_split(
            workspace, builder, choice, predictions, split
        )
    if cascade:
        cascade.save(builder.out / FILE, [stage.file for stage in stages])
    return builder.write("finished")


def _measure_split(
    workspace: Workspace,
    builder: ResultsBuilder,
    choice: CascadeChoice,
    predictions: Sequence[Predictions],
    split: SplitName,
) -> CascadeSplit:
    """Compare the selected cascade with its last stage, and write their predictions."""
    rule = builder.rule
    logits, stage = combine_predictions(predictions, choice, spool=builder.out)
    candidate, reference = replace(predictions[0], logits=logits), predictions[-1]
    pair = dict(zip(CASCADE, (candidate, reference), strict=True))
    groups = list_groups(workspace, candidate)
    metrics = measure_split(pair, seed=0, confidence=rule.confidence, group=groups, pair=CASCADE)
    part = CascadeSplit.model_validate(metrics)
    builder.set_verdict(rule.judge(candidate, reference), split)
    write_predictions(builder.out, workspace, pair, stage)
    return part


def _load_predictions(
    workspace: Workspace, stage: OpenModel, number: int, split: Literal["validation", "test"]
) -> Predictions:
    """A stage's predictions on a split, computed once."""
    input_spec = stage.model.pixels

    def build(folder: Path) -> None:
        workspace.console.print_transient(f"  stage {number}: {split} images ...")
        loader = workspace.data.build_evaluation_loader(split, input_spec)
        with name_images(workspace.data.files):
            predictions = predict_with_artifact(
                stage.model, loader, limit=workspace.limit, spool=folder
            )
            predictions.save(folder)

    config = {
        "file": stage.file.name,
        "pixels": vars(input_spec),
        "split": split,
        "limit": workspace.limit,
    }
    inputs = {"data": workspace.data.fingerprint, "weights": hash_file(stage.file)}
    folder = workspace.find_or_build(f"answers-stage{number}-{split}", config, inputs, build).path
    return Predictions.load(folder)
