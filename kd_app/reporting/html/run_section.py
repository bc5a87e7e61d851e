"""All details of one run, read from its folder."""

import math
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from kd_app.config import RequestError
from kd_app.config.records import WRONG
from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.pair_metrics import PAIR_METRICS
from kd_app.reporting.cascade import write_answer as write_cascade_answer
from kd_app.reporting.cascade import write_details
from kd_app.reporting.distillation_gain import describe_gains
from kd_app.reporting.embedding_map import MapRow, read_map
from kd_app.reporting.embedding_table import (
    build_embedding_table,
    list_embedding_sentences,
    write_embedding_verdict,
)
from kd_app.reporting.exports import read_exports
from kd_app.reporting.html.examples import build_examples, select_flips
from kd_app.reporting.html.from_predictions import (
    build_classes,
    build_confusion,
    build_reliability,
    read_estimate,
    read_model_predictions,
)
from kd_app.reporting.html.provenance import build_provenance, list_limits
from kd_app.reporting.html.schema import (
    Curve,
    ModelPart,
    NeighborPart,
    PairPart,
    QueryPart,
    RunPart,
)
from kd_app.reporting.metrics import Estimate, Measurement, Split
from kd_app.reporting.neighbor_examples import read_neighbors
from kd_app.reporting.results import Results
from kd_app.reporting.runs import Run
from kd_app.reporting.sentences import (
    describe_license,
    explain_undefined,
    write_basis,
    write_verdict,
)
from kd_app.run_files import EMBEDDING_MAP, EXAMPLES, NEIGHBORS

T = TypeVar("T")
LABELS = {
    "teacher": "teacher",
    "labels_only": "labels only",
    "student": "student",
    "reference": "reference",
    "candidate": "candidate",
}
_ORDER = {"teacher": 0, "labels_only": 1, "student": 3}
"""Order of the models in tables; further controls are in place 2."""
_SHORT_ANSWERS = {"kept": "Yes.", "lost": "No.", "not shown": "Undecided."}
_MAX_POINTS = 400
"""Number of points of a curve that a chart can show."""
_ABSURD = 1e12
"""Above the values of all metrics."""


def select_split(results: Results) -> Measurement | None:
    """Return the test split, or validation if test was not read."""
    return find_split(results, "test") or find_split(results, "validation")


def find_split(results: Results, name: Literal["validation", "test"]) -> Measurement | None:
    """Return the metrics of a split, of a run or of a cascade."""
    if results.cascade is not None:
        return results.cascade.splits.get(name)
    return results.test if name == "test" else results.validation


def label_models(roles: Sequence[str]) -> dict[str, str]:
    """Return the label of each role. The label of a control is its name with spaces."""
    return {role: LABELS.get(role, role.replace("_", " ")) for role in roles}


def build_run_part(run: Run, name: str) -> RunPart:
    """Build all details of `run` under the given name. Files that the folder lacks are
    listed in `RunPart.missing`.
    """
    results, split, missing = run.results, select_split(run.results), list[str]()
    names = results.data.classes if results.data else []
    split_name = (split.split if split else None) or (
        "validation" if split is results.validation else "test"
    )
    part = RunPart(
        name=name,
        title=write_title(results),
        status=results.status,
        seed=results.seed,
        question=write_question(results),
        answer=write_answer(results),
        basis=_write_basis(results, split),
        split=split_name if split else None,
        num_images=split.num_images if split else None,
        confidence=split.confidence if split else None,
        verdict=results.verdict,
        models=build_models(results, split),
        pair=build_pair(split),
        gains=describe_gains(results),
        curves=_read(lambda: _build_curves(run), "Curves", missing) or [],
        classes=build_classes(split.per_class, names) if split else [],
        groups=split.groups if split else {},
        robustness=split.robustness if split else [],
        steps=results.steps,
        cascade=results.cascade,
        embedding=results.embedding,
        embedding_table=build_embedding_table(results),
        embedding_sentences=list_embedding_sentences(results)[1:],
        cascade_details=write_details(results, results.cascade) if results.cascade else [],
        license=describe_license(results.license),
        knowledge=results.knowledge,
        provenance=build_provenance(results),
        limits=[],
    )
    if results.embedding is None:
        _read(
            lambda: _add_predictions(part, run, split, names),
            "Confusions, flips and calibration",
            missing,
        )
    part.neighbors = _read(lambda: _read_queries(run), "Nearest images", missing) or []
    part.map = _read(lambda: _read_map(run), "The map of embeddings", missing) or []
    _read(lambda: read_exports(run.path), "Exported files", missing)
    part.limits = list_limits(results, split, part.classes)
    part.missing = [reason.replace(str(run.path), name) for reason in missing]
    return part


def _read(read: Callable[[], T], content: str, missing: list[str]) -> T | None:
    """Call `read`. If the file can't be read, append the reason to `missing` and return
    None.
    """
    try:
        return read()
    except RequestError as error:
        missing.append(f"{content} are left out. {error}")
    except WRONG as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        missing.append(
            f"{content} are left out because their file can't be read ({type(error).__name__}:"
            f" {reason}). Run the same command again."
        )
    return None


def write_title(results: Results) -> str:
    """'resnet8 instead of wrn_16_2 on fashion_mnist', 'a cascade of runs/a and
    runs/a/teacher on fashion_mnist'.
    """
    data = results.config.get("data")
    suffix = f" on {data['name']}" if isinstance(data, dict) and data.get("name") else ""
    if results.cascade is not None:
        files = " and ".join(stage.file for stage in results.cascade.stages)
        return f"a cascade of {files}{suffix}"
    student, teacher = (
        results.models[role].name if role in results.models else ""
        for role in ("student", "teacher")
    )
    return (f"{student} instead of {teacher}" if teacher else student or "a run") + suffix


def write_question(results: Results) -> str:
    """Write the question that the run answers."""
    if results.embedding is not None:
        return "Does the student see the images as the teacher does?"
    if results.cascade is not None:
        return "Does it pay to route hard images to a more expensive model?"
    has_teacher = "teacher" in results.models or (
        not results.models and results.config.get("teacher")
    )
    return "Can the student replace the teacher?" if has_teacher else "How good is the student?"


def write_answer(results: Results) -> str:
    """Write the verdict in a sentence, or the reason why there is no verdict."""
    if results.cascade is not None:
        return write_cascade_answer(results.cascade)
    if verdict := write_embedding_verdict(results):
        return " ".join([*results.cautions, verdict])
    split = select_split(results)
    if split is None:
        return f"Nothing has been measured yet. {_describe_status(results)}"
    if results.verdict is not None:
        answer = f"{_SHORT_ANSWERS[results.verdict.outcome]} {write_verdict(results.verdict)}"
        return " ".join([*results.cautions, answer])
    top1 = read_estimate(split, "student", "top1")
    if top1.value is None:
        return "The student's accuracy is undefined."
    answer = (
        f"The student classifies {100 * top1.value:.2f} % of {split.num_images:,} images correctly."
        " It was not compared with a teacher."
    )
    return " ".join([*results.cautions, answer])


def _write_basis(results: Results, split: Measurement | None) -> list[str]:
    sentences = [] if split is None else [write_basis(results, split)]
    sentences += explain_undefined(split) if isinstance(split, Split) else []
    sentences += [f"Note: {note}" for note in results.notes]
    if results.status != "finished" and split is not None:
        sentences.append(f"The run is not finished. {_describe_status(results)}")
    return sentences


def _describe_status(results: Results) -> str:
    return f"The run's status is '{results.status}'. {results.reason or ''}".rstrip()


def build_models(results: Results, split: Measurement | None) -> list[ModelPart]:
    """Build the measured models: the teacher first, the student last."""
    roles = sorted(results.models, key=lambda role: _ORDER.get(role, 2))
    labels = label_models(roles)
    return [
        ModelPart(
            role=role,
            label=labels[role],
            name=results.models[role].name,
            license=results.models[role].license,
            params=results.models[role].params,
            macs=results.models[role].macs,
            size_bytes=results.models[role].size_bytes,
            images_per_second=_read_speed(results, role),
            metrics=_read_metrics(split, role),
        )
        for role in roles
    ]


def _read_metrics(split: Measurement | None, role: str) -> dict[str, Estimate]:
    metrics = {
        spec.name: read_estimate(split, role, spec.name)
        for spec in MODEL_METRICS
        if "page" in spec.places
    }
    return {name: estimate for name, estimate in metrics.items() if estimate.value is not None}


def _name_student(results: Results) -> str | None:
    student = results.models.get("student")
    return student.name if student else None


def _read_speed(results: Results, role: str) -> float | None:
    """Return images per second. A control with the student's architecture has the
    student's speed; the speed of any other control was not measured.
    """
    if role == "teacher":
        speed = results.speed.teacher
    elif role in results.models and results.models[role].name == _name_student(results):
        speed = results.speed.student
    else:
        return None
    return speed.images_per_second if speed else None


def build_pair(split: Measurement | None) -> list[PairPart]:
    """Build the defined metrics that compare the student with teacher and controls."""
    if split is None:
        return []
    estimates = [(spec, read_estimate(split, "pair", spec.name)) for spec in PAIR_METRICS]
    parts = [
        PairPart(
            key=spec.name,
            name=spec.label,
            meaning=spec.meaning,
            unit=spec.format,
            estimate=estimate,
        )
        for spec, estimate in estimates
        if "page" in spec.places and estimate.value is not None
    ]
    labels = label_models(list(split.gains))
    return parts + [
        PairPart(
            key=f"gain.{control}",
            name=f"gain over {labels[control]}",
            meaning="points above this control",
            unit="points",
            estimate=gain,
        )
        for control, gain in split.gains.items()
        if control != "labels_only"
    ]


def _build_curves(run: Run) -> list[Curve]:
    """Average each metric over each epoch of each training, in the order of the
    models.
    """
    table = run.curves
    metrics = [
        str(name) for name in table.columns if str(name).startswith(("validation/", "train/"))
    ]
    mean = table.groupby(["stage", "epoch"], sort=True)[metrics].mean()
    roles = list(dict.fromkeys(str(stage) for stage in table["stage"]))
    curves = [
        Curve(role=role, metric=metric, **_thin_points(mean.loc[role][metric].dropna()))
        for role in roles
        for metric in metrics
    ]
    return [curve for curve in curves if curve.epochs]


def _thin_points(column: Any) -> dict[str, list[float]]:
    """Keep every n-th epoch, so that at most `_MAX_POINTS` are left, without values
    that no metric has.
    """
    column = column[(column.abs() < _ABSURD) & (abs(column.index) < _ABSURD)]
    every = math.ceil(len(column) / _MAX_POINTS) or 1
    thin = column.iloc[::every]
    return {
        "epochs": [float(epoch) + 1 for epoch in thin.index],
        "values": [float(value) for value in thin],
    }


def _add_predictions(
    part: RunPart, run: Run, split: Measurement | None, names: Sequence[str]
) -> None:
    """Add to `part` what is computed from the predictions."""
    table = run.predictions
    predictions = read_model_predictions(table)
    part.confusion = build_confusion(predictions, names)
    part.reliability = build_reliability(predictions, split)
    part.examples = _read_examples(run, names) or select_flips(predictions, table, names)


def _read_examples(run: Run, names: Sequence[str]) -> list[Any]:
    path = run.path / EXAMPLES
    if not path.is_file():
        return []
    import pandas as pd

    return build_examples(pd.read_parquet(run.find_file(EXAMPLES)), names)


def _read_queries(run: Run) -> list[QueryPart]:
    """The queries of the file of nearest images, in its order."""
    if not (run.path / NEIGHBORS).is_file():
        return []
    queries: dict[int, QueryPart] = {}
    for row in read_neighbors(run.find_file(NEIGHBORS)):
        images = [_encode(png) for png in row.neighbor_png]
        part = QueryPart(file=row.file, overlap=row.overlap, png=_encode(row.png), models=[])
        model = NeighborPart(role=row.role, files=row.neighbor_file, png=images)
        queries.setdefault(row.query, part).models.append(model)
    return list(queries.values())


def _read_map(run: Run) -> list[MapRow]:
    """The rows of the map of embeddings; none without the file."""
    is_there = (run.path / EMBEDDING_MAP).is_file()
    return read_map(run.find_file(EMBEDDING_MAP)) if is_there else []


def _encode(png: bytes | None) -> str | None:
    return None if png is None else b64encode(png).decode()


def iterate_accuracies(results: Results) -> Iterator[tuple[ModelPart, Estimate]]:
    """Yield each model that has a top-1 accuracy, with the accuracy."""
    for model in build_models(results, select_split(results)):
        if "top1" in model.metrics:
            yield model, model.metrics["top1"]
