"""The job of ``kd-evaluate cascade=[...]``: measures whether a cascade of a cheap and a
costly model pays, chooses its thresholds on validation, and checks them on test.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt

from kd_app.config import RequestError, Typed
from kd_app.data.base import require
from kd_app.deployment.cascade import ImageStage, ModelCascade, prepare_batch
from kd_app.deployment.confidence import compute_log_probabilities, fit_temperature
from kd_app.deployment.predictions import limit_batches
from kd_app.deployment.routing import (
    OperatingPoint,
    RoutingChoice,
    choose_threshold,
    compute_routing_curve,
    measure_thresholds,
)
from kd_app.deployment.timing import (
    Floats,
    limit_to_one_thread,
    select_nearest_rank,
    time_interleaved,
)
from kd_app.metrics.model_pair import CASCADE
from kd_app.metrics.record import Predictions
from kd_app.metrics.report_metrics import measure_split
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.cascade import build_cascade_tables
from kd_app.reporting.console import Console
from kd_app.reporting.html import write_report
from kd_app.reporting.results import CascadeRecord as CascadePart
from kd_app.reporting.results import CascadeSplit, Results
from kd_app.run.measurement import add_data, estimate_top1, start_results
from kd_app.run.open_model import OpenModel, check_same_classes, open_model
from kd_app.run.open_run import open_run, read_run
from kd_app.run.results_builder import ResultsBuilder, SplitName
from kd_app.run.run_output import list_groups, write_predictions
from kd_app.run.schema import EvaluationSettings
from kd_app.run.spec import Config
from kd_app.run.workspace import Workspace
from kd_app.stages import hash_file

FILE = "cascade.json"
Measure = Literal["maximum", "margin", "entropy", "energy"]
_CASCADE = "cascade"
_WARMUP_IMAGES = 5


class Routing(Typed, called="routing"):
    """The group ``routing`` of ``conf/evaluate.yaml``."""

    def __init__(
        self,
        *,
        measures: Annotated[list[Measure], Field(min_length=1)],
        steps: PositiveInt,
        images: PositiveInt,
    ) -> None:
        self.measures = list(dict.fromkeys(measures))
        self.steps = steps
        self.images = images


@dataclass(frozen=True)
class _RecordedModel:
    """A stage that returns stored logits for image numbers, so that thresholds are
    checked with the code of the exported cascade.
    """

    logits: NDArray[np.float32]

    def infer_logits(self, rows: NDArray[Any], /) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.logits[rows]
        return logits

    def prepare_image(self, image: Image.Image, /) -> NDArray[np.uint8]:
        raise AssertionError("images are numbers here")


@dataclass(frozen=True)
class _Selection:
    """The selected measure of confidence with its thresholds, the choices for all
    measures, and the temperature and cost (seconds) of each stage.
    """

    measure: Measure
    choice: RoutingChoice
    choices: dict[Measure, RoutingChoice]
    temperatures: tuple[float, ...]
    costs: tuple[float, ...]

    @property
    def uses_cascade(self) -> bool:
        return self.choice.answer == "cascade"

    def build_cascade(self, stages: Sequence[ImageStage]) -> ModelCascade:
        return ModelCascade(stages, self.choice.rung.thresholds, self.measure, self.temperatures)


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
    stages = [open_model(path, threads=1) for path in config["cascade"]]
    check_same_classes([(stage.name, stage.model.classes) for stage in stages])
    saved = read_run(_find_run(config, stages), config, "measure")
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
    calls = {
        f"stage {number}": partial(_infer_single, stage.model)
        for number, stage in enumerate(stages)
    }
    seconds = _time_calls(calls, _select_images(workspace, validation[0], routing.images))
    costs = tuple(float(seconds[name].mean()) for name in calls)
    selection = _select(routing, rule, validation, costs)
    cascade = None
    timed: dict[str, Callable[[Image.Image], object]] = dict(calls)
    if selection.uses_cascade:
        cascade = selection.build_cascade([stage.model for stage in stages])
        timed[_CASCADE] = partial(_infer_cascade, cascade)
    console.print_transient("  timing the cascade, image by image ...")
    seconds = _time_calls(timed, _select_images(workspace, test[0], routing.images))
    latency = {name: summarize_latency(each) for name, each in seconds.items()}
    record = _build_record(stages, validation, test, selection, rule=rule, latency=latency)
    builder.cascade = CascadePart.model_validate(record)
    splits: tuple[tuple[SplitName, list[Predictions]], ...] = (
        ("validation", validation),
        ("test", test),
    )
    for split, predictions in splits:
        builder.cascade.splits[split] = _measure_split(
            workspace, builder, selection, predictions, split
        )
    if cascade:
        cascade.save(builder.out / FILE, [stage.file for stage in stages])
    return builder.write("finished")


def _measure_split(
    workspace: Workspace,
    builder: ResultsBuilder,
    selection: _Selection,
    predictions: Sequence[Predictions],
    split: SplitName,
) -> CascadeSplit:
    """Compare the selected cascade with its last stage, and write their predictions."""
    rule = builder.rule
    logits, stage = _combine_predictions(predictions, selection)
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
        rows = [
            (
                batch.index.numpy(),
                batch.to_hard_target().numpy(),
                stage.model.infer_logits(np.ascontiguousarray(batch.image.numpy())),
            )
            for batch in limit_batches(loader, workspace.limit)
        ]
        Predictions(*(np.concatenate(column) for column in zip(*rows, strict=True))).save(folder)

    config = {
        "file": stage.file.name,
        "pixels": vars(input_spec),
        "split": split,
        "limit": workspace.limit,
    }
    inputs = {"data": workspace.data.fingerprint, "weights": hash_file(stage.file)}
    folder = workspace.find_or_build(f"answers-stage{number}-{split}", config, inputs, build).path
    return Predictions.load(folder)


def _select_images(
    workspace: Workspace, predictions: Predictions, max_images: int
) -> list[Image.Image]:
    """Up to `max_images` of the predicted images, evenly spaced and decoded."""
    num_images = len(predictions.index)
    rows = np.linspace(0, num_images - 1, min(max_images, num_images)).round().astype(int)
    arrays = (workspace.data.read_image(int(predictions.index[row])) for row in rows)
    return [
        Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])
        for array in arrays
        if array is not None
    ]


def _infer_single(model: ImageStage, image: Image.Image) -> NDArray[np.float32]:
    return model.infer_logits(prepare_batch([image], np.zeros(1, dtype=np.int64), model))


def _infer_cascade(cascade: ModelCascade, image: Image.Image) -> object:
    return cascade.infer([image])


def _time_calls(
    calls: Mapping[str, Callable[[Image.Image], object]], images: Sequence[Image.Image]
) -> dict[str, Floats]:
    """Seconds per image of each call, ``[images]``, on one thread. All calls process an
    image before the next image starts.
    """
    with limit_to_one_thread():
        for image in images[:_WARMUP_IMAGES]:
            for call in calls.values():
                call(image)
        rounds = [
            time_interleaved(
                {name: partial(call, image) for name, call in calls.items()},
                rounds=1,
                repeats=dict.fromkeys(calls, 1),
            )
            for image in images
        ]
    return {name: np.array([each[name][0, 0] for each in rounds]) for name in calls}


def _select(
    routing: Routing,
    rule: VerdictRule,
    predictions: Sequence[Predictions],
    costs: tuple[float, ...],
) -> _Selection:
    """Choose the measure of confidence whose proven thresholds cost least; the first
    among equals.
    """
    target, logits = predictions[0].target, [each.logits for each in predictions]
    temperatures = tuple(fit_temperature(each, target) for each in logits)
    confidence = 1 - (1 - rule.confidence) / len(routing.measures)
    choices = {}
    for measure in routing.measures:
        curve = compute_routing_curve(
            logits,
            target,
            costs,
            measure=measure,
            temperatures=temperatures,
            num_steps=routing.steps,
        )
        choices[measure] = choose_threshold(
            curve,
            costs,
            num_images=len(target),
            margin=rule.margin,
            confidence_level=confidence,
        )
    best = min(choices, key=lambda measure: choices[measure].cost)
    return _Selection(best, choices[best], choices, temperatures, costs)


def _combine_predictions(
    predictions: Sequence[Predictions], selection: _Selection
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Log-probabilities of the selected cascade (of the first stage if there is none),
    and the last stage of each image.
    """
    logits = [each.logits for each in predictions]
    if not selection.uses_cascade:
        log_p = compute_log_probabilities(logits[0], selection.temperatures[0])
        return log_p.astype(np.float32), np.zeros(len(log_p), dtype=np.int64)
    cascade = selection.build_cascade([_RecordedModel(each) for each in logits])
    log_p, stage = cascade.infer(np.arange(len(logits[0])))  # type: ignore[arg-type]
    return log_p.astype(np.float32), stage


def _build_record(
    stages: Sequence[OpenModel],
    validation: Sequence[Predictions],
    test: Sequence[Predictions],
    selection: _Selection,
    *,
    rule: VerdictRule,
    latency: Mapping[str, dict[str, float]],
) -> dict[str, Any]:
    """The part ``cascade`` of results.json."""
    all_kept = (float("-inf"),) * (len(stages) - 1)
    thresholds = selection.choice.rung.thresholds if selection.uses_cascade else all_kept
    tested = measure_thresholds(
        thresholds,
        [each.logits for each in test],
        test[0].target,
        selection.costs,
        measure=selection.measure,
        temperatures=selection.temperatures,
    )
    return {
        "answer": selection.choice.answer,
        "margin": rule.margin,
        "confidence": rule.confidence,
        "num_images": len(validation[0].target),
        "measure": selection.measure,
        "thresholds": list(thresholds),
        "stages": [
            {
                "file": stage.name,
                "sha256": hash_file(stage.file),
                "temperature": selection.temperatures[number],
                "validation": estimate_top1(validation[number], rule.confidence),
                "test": estimate_top1(test[number], rule.confidence),
                "cost_ms": 1000 * selection.costs[number],
                "latency": latency[f"stage {number}"],
            }
            for number, stage in enumerate(stages)
        ],
        "curves": [build_curve(measure, choice) for measure, choice in selection.choices.items()],
        "test": _build_point(tested),
        "latency": latency.get(_CASCADE),
    }


def build_curve(measure: str, choice: RoutingChoice) -> dict[str, Any]:
    """A routing curve for results.json."""
    chosen = None if choice.answer == "last" else choice.curve.index(choice.rung)
    rungs = [
        {**_build_point(rung), "proven": number < choice.proven}
        for number, rung in enumerate(choice.curve)
    ]
    return {"measure": measure, "rungs": rungs, "chosen": chosen}


def _build_point(rung: OperatingPoint) -> dict[str, Any]:
    record = asdict(rung)
    cost = record.pop("cost")
    return {**record, "cost_ms": 1000 * cost}


def summarize_latency(seconds: Floats) -> dict[str, float]:
    """Mean and percentiles of a latency, in milliseconds."""
    percentiles = {
        f"p{share}": 1000 * select_nearest_rank(seconds, share / 100) for share in (50, 95, 99)
    }
    return {"mean": 1000 * float(seconds.mean()), **percentiles, "num_images": len(seconds)}
