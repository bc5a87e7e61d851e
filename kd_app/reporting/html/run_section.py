"""One run in full: everything that its folder tells."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

from kd_app.config import RequestError
from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.pair_metrics import PAIR_METRICS
from kd_app.reporting.cascade import write_answer as routed
from kd_app.reporting.cascade import write_details
from kd_app.reporting.distillation_gain import describe_gains
from kd_app.reporting.examples import EXAMPLES
from kd_app.reporting.exports import read_exports
from kd_app.reporting.html.examples import build_examples, select_flips
from kd_app.reporting.html.from_predictions import (
    build_classes,
    build_confusion,
    build_reliability,
    read_answers,
    read_estimate,
)
from kd_app.reporting.html.provenance import build_provenance, list_limits
from kd_app.reporting.html.schema import Curve, ModelPart, PairPart, RunPart
from kd_app.reporting.results import Estimate, Measurement, Results, Split
from kd_app.reporting.runs import Run
from kd_app.reporting.sentences import (
    describe_license,
    explain_undefined,
    write_basis,
    write_verdict,
)

T = TypeVar("T")
LABELS = {
    "teacher": "teacher",
    "labels_only": "labels only",
    "student": "student",
    "reference": "reference",
    "candidate": "candidate",
}
_REPLACE = "Can the student replace the teacher?"
_SHORT = {"kept": "Yes.", "lost": "No.", "not shown": "These images can't tell."}
_MOST_POINTS = 400


def select_split(results: Results) -> Measurement | None:
    """The split that the figures to quote are from."""
    return find_split(results, "test") or find_split(results, "validation")


def find_split(results: Results, name: Literal["validation", "test"]) -> Measurement | None:
    """The figures of a split, of a run or of a cascade."""
    if results.cascade is not None:
        return results.cascade.splits.get(name)
    return results.test if name == "test" else results.validation


def label_models(roles: Sequence[str]) -> dict[str, str]:
    """What each model is called: controls by their names, with spaces."""
    return {role: LABELS.get(role, role.replace("_", " ")) for role in roles}


def run_part(run: Run, name: str) -> RunPart:
    """Everything about `run`, which is called `name`; what its folder lacks is left
    out, and said to be.
    """
    results, split, missing = run.results, select_split(run.results), list[str]()
    names = results.data.classes if results.data else []
    part = RunPart(
        name=name,
        title=write_title(results),
        status=results.status,
        seed=results.seed,
        question=write_question(results),
        answer=write_answer(results),
        basis=_write_basis(results, split),
        split=None if split is None else "validation" if split is results.validation else "test",
        num_images=split.num_images if split else None,
        confidence=split.confidence if split else None,
        verdict=results.verdict,
        models=build_models(results, split),
        pair=build_pair(split),
        worth=describe_gains(results),
        curves=_read(lambda: _build_curves(run), "Curves", missing) or [],
        classes=build_classes(split.per_class, names) if split else [],
        groups=split.groups if split else {},
        robustness=split.robustness if split else [],
        steps=results.steps,
        cascade=results.cascade,
        cascade_says=write_details(results, results.cascade) if results.cascade else [],
        license=describe_license(results.license),
        knowledge=results.knowledge,
        made=build_provenance(results),
        limits=[],
    )
    _read(
        lambda: _from_answers(run, part, split, names),
        "Confusions, flips and calibration",
        missing,
    )
    _read(lambda: read_exports(run.path), "Exported files", missing)
    part.limits, part.missing = (
        list_limits(results, split, part.classes),
        [said.replace(str(run.path), name) for said in missing],
    )
    return part


def _read(read: Callable[[], T], what: str, missing: list[str]) -> T | None:
    """What a file of the run's folder holds; None, and the reason in `missing`, where
    it can't be read.
    """
    try:
        return read()
    except RequestError as error:
        missing.append(f"{what} are left out. {error}")
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        missing.append(
            f"{what} are left out, since their file can't be read ({type(error).__name__}:"
            f" {reason}). Run the same command again."
        )
    return None


def write_title(results: Results) -> str:
    """'resnet8 instead of wrn_16_2 on fashion_mnist', 'a cascade of runs/a and
    runs/a/teacher on fashion_mnist'.
    """
    if results.cascade is not None:
        return (
            "a cascade of"
            f" {' and '.join(each.file for each in results.cascade.stages)}{_on(results)}"
        )
    student, teacher = (
        results.models[role].name if role in results.models else ""
        for role in ("student", "teacher")
    )
    return (f"{student} instead of {teacher}" if teacher else student or "a run") + _on(results)


def _on(results: Results) -> str:
    data = results.config.get("data")
    return f" on {data['name']}" if isinstance(data, dict) and data.get("name") else ""


def write_question(results: Results) -> str:
    """What somebody wants to know of this run."""
    if results.cascade is not None:
        return "Does it pay to keep a dearer model for the hard images?"
    has_teacher = "teacher" in results.models or (
        not results.models and results.config.get("teacher")
    )
    return _REPLACE if has_teacher else "How good is the student?"


def write_answer(results: Results) -> str:
    """The verdict in a sentence, or what there is in its place."""
    if results.cascade is not None:
        return routed(results.cascade)
    split = select_split(results)
    if split is None:
        return (
            f"Nothing is measured yet: the run's status is '{results.status}'."
            f" {results.reason or ''}".rstrip()
        )
    if results.verdict is not None:
        return f"{_SHORT[results.verdict.outcome]} {write_verdict(results.verdict)}"
    top1 = read_estimate(split, "student", "top1")
    if top1.value is None:
        return "Its accuracy is undefined."
    return (
        f"It has {100 * top1.value:.2f} % of {split.num_images:,} images right; it was compared"
        " with no teacher."
    )


def _write_basis(results: Results, split: Measurement | None) -> list[str]:
    found = [] if split is None else [write_basis(results, split)]
    found += explain_undefined(split) if isinstance(split, Split) else []
    found += [f"Note: {note}" for note in results.notes]
    if results.status != "finished" and split is not None:
        found.append(
            f"The run is not finished: its status is '{results.status}'. {results.reason or ''}".rstrip()
        )
    return found


def build_models(results: Results, split: Measurement | None) -> list[ModelPart]:
    """Every model that was measured: the teacher first, the student last."""
    order = sorted(
        results.models, key=lambda role: {"teacher": 0, "labels_only": 1, "student": 3}.get(role, 2)
    )
    called = label_models(order)
    return [
        ModelPart(
            role=role,
            label=called[role],
            name=results.models[role].name,
            license=results.models[role].license,
            params=results.models[role].params,
            macs=results.models[role].macs,
            size_bytes=results.models[role].size_bytes,
            images_per_second=_read_speed(results, role),
            figures={
                spec.name: figure
                for spec in MODEL_METRICS
                if "page" in spec.shown
                and (figure := read_estimate(split, role, spec.name)).value is not None
            },
        )
        for role in order
    ]


def _read_speed(results: Results, role: str) -> float | None:
    """Images a second. A control of the student's architecture is the student's net
    with other weights, and is not measured twice.
    """
    if (
        role not in ("teacher", "student")
        and results.models[role].name != results.models["student"].name
    ):
        return None
    found = results.speed.teacher if role == "teacher" else results.speed.student
    return found.images_per_second if found else None


def build_pair(split: Measurement | None) -> list[PairPart]:
    """What compares the student with teacher and controls, as far as it is defined."""
    if split is None:
        return []
    found = [
        PairPart(
            key=spec.name, name=spec.label, meaning=spec.meaning, unit=spec.format, figure=figure
        )
        for spec in PAIR_METRICS
        if "page" in spec.shown
        and (figure := read_estimate(split, "pair", spec.name)).value is not None
    ]
    called = label_models(list(split.gains))
    return found + [
        PairPart(
            key=f"gain.{control}",
            name=f"gain over {called[control]}",
            meaning="points above this control",
            unit="points",
            figure=gain,
        )
        for control, gain in split.gains.items()
        if control != "labels_only"
    ]


def _build_curves(run: Run) -> list[Curve]:
    """The mean of each metric in each epoch of each training, in the order of the
    models.
    """
    table = run.curves
    metrics = [
        str(name) for name in table.columns if str(name).startswith(("validation/", "train/"))
    ]
    mean = table.groupby(["stage", "epoch"], sort=True)[metrics].mean()
    roles = list(dict.fromkeys(str(stage) for stage in table["stage"]))
    found = [
        Curve(role=role, metric=metric, **_thin_points(mean.loc[role][metric].dropna()))
        for role in roles
        for metric in metrics
    ]
    return [curve for curve in found if curve.epochs]


def _thin_points(column: Any) -> dict[str, list[float]]:
    """Not more points than can be seen."""
    every = math.ceil(len(column) / _MOST_POINTS) or 1
    thin = column.iloc[::every]
    return {
        "epochs": [float(epoch) + 1 for epoch in thin.index],
        "values": [float(value) for value in thin],
    }


def _from_answers(run: Run, part: RunPart, split: Measurement | None, names: Sequence[str]) -> None:
    table = run.predictions
    found = read_answers(table)
    part.confusion = build_confusion(found, names)
    part.reliability = build_reliability(found, split)
    part.examples = _build_examples(run, names) or select_flips(found, table, names)


def _build_examples(run: Run, names: Sequence[str]) -> list[Any]:
    path = run.path / EXAMPLES
    if not path.is_file():
        return []
    import pandas as pd

    return build_examples(pd.read_parquet(path), names)


def iterate_accuracies(results: Results) -> Iterator[tuple[ModelPart, Estimate]]:
    """Every model that has an accuracy, with it."""
    for model in build_models(results, select_split(results)):
        if "top1" in model.figures:
            yield model, model.figures["top1"]
