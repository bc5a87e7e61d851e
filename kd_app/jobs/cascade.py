"""What keeping a dearer model for the hard images is worth: temperatures, costs, a
threshold that keeps the margin, and the check on test.
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
from kd_app.deployment.cascade import Cascade, ImageStage, prepare_batch
from kd_app.deployment.confidence import fit_temperature, log_probabilities
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
from kd_app.reporting.results import Cascade as CascadePart
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
_WHOLE = "cascade"
_WARM = 5
"""Images that are answered before anything is timed."""


class Routing(Typed, called="routing"):
    """The group of ``conf/evaluate.yaml``."""

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
    """A stage whose answers are known: of an image's number. So thresholds are checked
    by the very code that ships.
    """

    answers: NDArray[np.float32]

    def infer_logits(self, rows: NDArray[Any], /) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.answers[rows]
        return found

    def prepare_image(self, image: Image.Image, /) -> NDArray[np.uint8]:
        raise AssertionError("images are numbers here")


@dataclass(frozen=True)
class _Selection:
    """The measure and its choice, and what was compared to find it."""

    measure: Measure
    choice: RoutingChoice
    choices: dict[Measure, RoutingChoice]
    temperatures: tuple[float, ...]
    costs: tuple[float, ...]


def evaluate_cascade(
    config: Config, *, console: Console | None = None, trial: int | None = None
) -> Path:
    """Judge the cascade of the models ``config['cascade']`` on a run's data and write
    results.json, report.html and, where routing pays, cascade.json into
    ``config['out']``; that folder.

    Temperatures are fitted, images are timed and thresholds are chosen on validation;
    test is looked at once. With m measures each is tested at ``1 - (1 - confidence) /
    m``, so that the cheapest of them keeps the margin at `confidence` (Bonferroni). The
    temperatures see the same images.

    Raises `RequestError`: fewer than two stages, no such model, other classes, no run
    whose data to judge it on, data that give no 8-bit images.
    """
    EvaluationSettings(**config)
    routing, console = Routing(**config["routing"]), console or Console()
    _check_asked(config)
    stages = [open_model(said, threads=1) for said in config["cascade"]]
    check_same_classes([(each.name, each.model.classes) for each in stages])
    saved = read_run(_run(config, stages), config, "measure")
    out = Path(config["out"]) / ("" if trial is None else str(trial))
    with open_run(saved, out, config, overwrite=config["overwrite"], console=console) as run:
        _check_data(run.workspace, stages)
        builder = start_results(run.workspace, out, run.verdict, before=run.results)
        builder.config = {
            **run.config,
            "cascade": {"stages": config["cascade"], **config["routing"]},
        }
        results = _judge(routing, stages, run.workspace, builder)
        if trial is None:
            write_report([out], out)
        for each in build_cascade_tables(results):
            console.show(each)
        console.print(f"Everything is in {out}")
    return out


def _check_asked(config: Config) -> None:
    named = config["cascade"]
    if len(named) < 2:
        raise RequestError(
            f"cascade={named!r} names one stage. Expected: two or more, from cheap to dear. To"
            " measure one model, name its run=."
        )
    if config["split"] != "auto":
        raise RequestError(
            f"split={config['split']} does nothing for a cascade: it is chosen on validation and"
            " checked on test. Leave it out."
        )
    if config["robustness"].get("corruptions"):
        raise RequestError(
            "robustness= is for a run's models, and does nothing for a cascade. Leave it out."
        )


def _run(config: Config, stages: Sequence[OpenModel]) -> Path:
    """The run on whose data the cascade is judged."""
    found = (
        Path(config["run"])
        if config["run"]
        else next((each.run for each in stages if each.run), None)
    )
    if found is None:
        raise RequestError(
            f"None of cascade={config['cascade']!r} lies in a run's folder, so nobody says on which"
            " data to judge it. Say run=<folder of a run>."
        )
    return found


def _check_data(shop: Workspace, stages: Sequence[OpenModel]) -> None:
    require(shop.data, "uint8", because="A cascade", instead="judge it on other data")
    check_same_classes([("The data", shop.classes), (stages[0].name, stages[0].model.classes)])


def _judge(
    routing: Routing, stages: Sequence[OpenModel], shop: Workspace, builder: ResultsBuilder
) -> Results:
    verdict = builder.rule
    add_data(builder, shop)
    if verdict.metric != "top1":
        builder.notes.append(
            f"The thresholds keep the margin in top-1; the run's verdict is about {verdict.metric}."
        )
    validation, test = (
        [_load_predictions(shop, each, number, split) for number, each in enumerate(stages)]
        for split in ("validation", "test")
    )
    shop.console.print_transient("  timing the stages ...")
    names = [f"stage {number}" for number in range(len(stages))]
    alone = {
        name: partial(_infer_single, each.model) for name, each in zip(names, stages, strict=True)
    }
    costs = _time_calls(alone, _select_images(shop, validation[0], routing.images))
    found = _choose(
        routing, verdict, validation, tuple(float(costs[name].mean()) for name in names)
    )
    routes = found.choice.answer == "cascade"
    cascade = (
        Cascade(
            [each.model for each in stages],
            found.choice.rung.thresholds,
            found.measure,
            found.temperatures,
        )
        if routes
        else None
    )
    shop.console.print_transient("  timing all of it, image by image ...")
    latency = _time_calls(
        {**alone, **({_WHOLE: lambda image: cascade.infer([image])} if cascade else {})},
        _select_images(shop, test[0], routing.images),
    )
    took = {name: _summarize_latency(each) for name, each in latency.items()}
    told = _build_record(stages, validation, test, found, verdict=verdict, latency=took)
    builder.cascade = CascadePart.model_validate(told)
    splits: tuple[tuple[SplitName, list[Predictions]], ...] = (
        ("validation", validation),
        ("test", test),
    )
    for split, answers in splits:
        logits, stage = _combine_predictions(answers, found)
        candidate, reference = replace(answers[0], logits=logits), answers[-1]
        both = dict(zip(CASCADE, (candidate, reference), strict=True))
        groups = list_groups(shop, candidate)
        metrics = measure_split(
            both, seed=0, confidence=verdict.confidence, group=groups, pair=CASCADE
        )
        builder.cascade.splits[split] = CascadeSplit.model_validate(metrics)
        judgment = verdict.judge(candidate, reference)
        builder.set_verdict(judgment, split)
        write_predictions(builder.out, shop, both, stage)
    if cascade:
        cascade.save(builder.out / FILE, [each.file for each in stages])
    return builder.write("finished")


def _load_predictions(
    shop: Workspace, stage: OpenModel, number: int, split: Literal["validation", "test"]
) -> Predictions:
    """What a stage answers to a split, computed once."""
    sha256, pixels = hash_file(stage.file), stage.model.pixels

    def build(folder: Path) -> None:
        shop.console.print_transient(f"  stage {number}: {split} images ...")
        rows = [
            (
                batch.index.numpy(),
                batch.to_hard_target().numpy(),
                stage.model.infer_logits(np.ascontiguousarray(batch.image.numpy())),
            )
            for batch in limit_batches(shop.data.build_evaluation_loader(split, pixels), shop.limit)
        ]
        Predictions(*(np.concatenate(column) for column in zip(*rows, strict=True))).save(folder)

    config = {"file": stage.file.name, "pixels": vars(pixels), "split": split, "limit": shop.limit}
    made = shop.find_or_build(
        f"answers-stage{number}-{split}",
        config,
        {"data": shop.data.fingerprint, "weights": sha256},
        build,
    )
    return Predictions.load(made.path)


def _select_images(shop: Workspace, answers: Predictions, most: int) -> list[Image.Image]:
    """Evenly spread images of those that were answered, as they were decoded."""
    rows = np.linspace(0, len(answers.index) - 1, min(most, len(answers.index))).round().astype(int)
    pictures = (shop.data.read_image(int(answers.index[row])) for row in rows)
    return [
        Image.fromarray(each if each.shape[2] == 3 else each[:, :, 0])
        for each in pictures
        if each is not None
    ]


def _infer_single(model: ImageStage, image: Image.Image) -> NDArray[np.float32]:
    return model.infer_logits(prepare_batch([image], np.zeros(1, dtype=np.int64), model))


def _time_calls(
    calls: Mapping[str, Callable[[Image.Image], object]], images: Sequence[Image.Image]
) -> dict[str, Floats]:
    """Seconds of every image through each, ``[images]``: one thread, one image at a
    time, each image through all before the next.
    """
    with limit_to_one_thread():
        for image in images[:_WARM]:
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


def _choose(
    routing: Routing, verdict: VerdictRule, answers: Sequence[Predictions], costs: tuple[float, ...]
) -> _Selection:
    """The measure whose proven choice costs least; the first of equals."""
    target, logits = answers[0].target, [each.logits for each in answers]
    heats = tuple(fit_temperature(each, target) for each in logits)
    level = 1 - (1 - verdict.confidence) / len(routing.measures)
    choices = {}
    for measure in routing.measures:
        curve = compute_routing_curve(
            logits, target, costs, measure=measure, temperatures=heats, num_steps=routing.steps
        )
        choices[measure] = choose_threshold(
            curve, costs, num_images=len(target), margin=verdict.margin, confidence_level=level
        )
    best = min(choices, key=lambda measure: choices[measure].cost)
    return _Selection(best, choices[best], choices, heats, costs)


def _combine_predictions(
    answers: Sequence[Predictions], found: _Selection
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Log-probabilities of what is compared with the last stage (the cascade, or the
    first stage where nothing is routed), and who answered.
    """
    logits = [each.logits for each in answers]
    if found.choice.answer != "cascade":
        return log_probabilities(logits[0], found.temperatures[0]).astype(np.float32), np.zeros(
            len(logits[0]), dtype=np.int64
        )
    known = Cascade(
        [_RecordedModel(each) for each in logits],
        found.choice.rung.thresholds,
        found.measure,
        found.temperatures,
    )
    ours, stage = known.infer(np.arange(len(logits[0])))  # type: ignore[arg-type]
    return ours.astype(np.float32), stage


def _build_record(
    stages: Sequence[OpenModel],
    validation: Sequence[Predictions],
    test: Sequence[Predictions],
    found: _Selection,
    *,
    verdict: VerdictRule,
    latency: Mapping[str, dict[str, float]],
) -> dict[str, Any]:
    """As results.json tells of it."""
    rung, target = found.choice.rung, test[0].target
    known = {"measure": found.measure, "temperatures": found.temperatures}
    thresholds = (
        rung.thresholds
        if found.choice.answer == "cascade"
        else (float("-inf"),) * (len(stages) - 1)
    )
    tested = measure_thresholds(
        thresholds,
        [each.logits for each in test],
        target,
        found.costs,
        **known,  # type: ignore[arg-type]
    )
    return {
        "answer": found.choice.answer,
        "margin": verdict.margin,
        "confidence": verdict.confidence,
        "num_images": len(validation[0].target),
        "measure": found.measure,
        "thresholds": list(thresholds),
        "stages": [
            {
                "file": stage.name,
                "sha256": hash_file(stage.file),
                "temperature": found.temperatures[number],
                "validation": estimate_top1(validation[number], verdict.confidence),
                "test": estimate_top1(test[number], verdict.confidence),
                "cost_ms": 1000 * found.costs[number],
                "latency": latency[f"stage {number}"],
            }
            for number, stage in enumerate(stages)
        ],
        "curves": [_build_curve(measure, choice) for measure, choice in found.choices.items()],
        "test": _build_point(tested),
        "latency": latency.get(_WHOLE),
    }


def _build_curve(measure: str, choice: RoutingChoice) -> dict[str, Any]:
    chosen = None if choice.answer == "last" else choice.curve.index(choice.rung)
    return {
        "measure": measure,
        "rungs": [
            {**_build_point(rung), "proven": k < choice.proven}
            for k, rung in enumerate(choice.curve)
        ],
        "chosen": chosen,
    }


def _build_point(rung: OperatingPoint) -> dict[str, Any]:
    told = asdict(rung)
    cost = told.pop("cost")
    return {**told, "cost_ms": 1000 * cost}


def _summarize_latency(seconds: Floats) -> dict[str, float]:
    percentiles = {
        f"p{share}": 1000 * select_nearest_rank(seconds, share / 100) for share in (50, 95, 99)
    }
    return {"mean": 1000 * float(seconds.mean()), **percentiles, "num_images": len(seconds)}
