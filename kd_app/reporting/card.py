"""The model card in the student's folder: usage, results, limitations and training."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from kd_app.config.redact import redact
from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.spec import Format
from kd_app.reporting.card_metadata import (
    name_dataset,
    name_license,
    write_metadata,
    write_title,
)
from kd_app.reporting.card_usage import write_usage
from kd_app.reporting.distillation_gain import describe_gains
from kd_app.reporting.embedding_card import build_embedding_card
from kd_app.reporting.markdown import escape_code, escape_text, to_list_items, to_table
from kd_app.reporting.metrics import Estimate, PerClass, Split
from kd_app.reporting.results import ModelRecord, Results
from kd_app.reporting.sentences import (
    build_pair_rows,
    explain_undefined,
    format_count,
    format_metric,
    format_percent,
    format_points,
    write_basis,
    write_verdict,
)
from kd_app.stages import write_atomically

CARD: Final = "README.md"
_MAX_CLASSES: Final = 20
"""Classes that the card names; ``config.json`` lists all."""
_NUM_WORST: Final = 3
"""Classes in a list of the worst."""
_LIMITS: Final = (
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "overfit_batches",
)
"""Trainer settings that restrict a run to a part of the images."""
_HEADS: Final = {
    "teacher": "teacher",
    "labels_only": "same network, labels only",
    "student": "this model",
}


def write_card(folder: Path, results: Results) -> None:
    """Write ``README.md`` into a student's folder, from `results` alone. Machine paths
    and secrets are left out.
    """
    if results.embedding is not None:
        _write_parts(
            folder,
            build_embedding_card(
                results,
                provenance=_list_provenance(results),
                licenses=_list_licenses(results),
            ),
        )
        return
    split, student = results.test or results.validation, results.models["student"]
    assert split is not None
    assert results.data is not None
    parts = [
        f"---\n{write_metadata(results, split)}\n---",
        f"# {write_title(results)}",
        _describe_student(results, student),
        "## How to use it",
        *write_usage(folder, results),
        "## Results",
        _build_models_table(results, split),
        _build_pair_table(split),
        *results.cautions,
        write_verdict(results.verdict) if results.verdict else "",
        to_list_items(describe_gains(results)),
        *explain_undefined(split),
        write_basis(results, split),
        "## Intended use",
        _describe_use(results),
        "## Limitations",
        to_list_items(_list_limitations(results, split)),
        "## Training",
        to_list_items(_list_provenance(results)),
        "## Licenses",
        to_list_items(_list_licenses(results)),
    ]
    _write_parts(folder, parts)


def _write_parts(folder: Path, parts: Iterable[str]) -> None:
    write_atomically(folder / CARD, "\n\n".join(part for part in parts if part) + "\n")


def _describe_student(results: Results, student: ModelRecord) -> str:
    assert results.data is not None
    return (
        f"{escape_code(student.name)} is an image classifier with"
        f" {format_count(student.params)} parameters and {format_count(student.macs)}"
        f" multiply-adds per image, {_describe_origin(results)}. The output is one of"
        f" {_list_classes(results.data.classes)}."
    )


def _describe_origin(results: Results) -> str:
    assert results.data is not None
    teacher, num_images = results.models.get("teacher"), f"{results.data.sizes.get('train', 0):,}"
    if teacher:
        name, params = escape_code(teacher.name), format_count(teacher.params)
        return f"distilled from {name} ({params} parameters) on {num_images} images"
    # A teacher that was not evaluated is in the results by its license only.
    if results.license is not None and results.license.teacher is not None:
        return f"distilled on {num_images} images from a teacher that was not evaluated"
    return f"trained on the labels of {num_images} images"


def _list_classes(names: list[str]) -> str:
    listed = ", ".join(escape_code(name) for name in names[:_MAX_CLASSES])
    others = len(names) - _MAX_CLASSES
    more = f" and {others} more, listed in `config.json`" if others > 0 else ""
    return f"{len(names)} classes: {listed}{more}"


def _build_models_table(results: Results, split: Split) -> str:
    """One column per model, each metric with its interval."""
    metrics = {role: each for role, each in split.by_model.items() if role in results.models}
    models = [results.models[role] for role in metrics]
    heads = [_HEADS.get(role, role.replace("_", " ")) for role in metrics]
    rows = [
        ["", *heads],
        ["---", *("---:" for _ in metrics)],
        ["network", *(escape_code(model.name) for model in models)],
    ]
    for spec in MODEL_METRICS:
        if "card" in spec.places:
            estimates = [each.look_up(spec.name) for each in metrics.values()]
            rows.append([spec.label, *(_format_estimate(each, spec.format) for each in estimates)])
    rows += [
        ["parameters", *(format_count(model.params) for model in models)],
        ["multiply-adds", *(format_count(model.macs) for model in models)],
        ["size on disk", *(f"{format_count(model.size_bytes)}B" for model in models)],
    ]
    return to_table(rows)


def _format_estimate(estimate: Estimate, unit: Format) -> str:
    return _format_bounds(*format_metric(estimate, unit))


def _format_bounds(value: str, bounds: str) -> str:
    return f"{value} ({bounds})" if bounds else value


def _build_pair_table(split: Split) -> str:
    rows = [
        (name, _format_bounds(value, bounds), meaning)
        for name, value, bounds, meaning in build_pair_rows(split, "card")
    ]
    if not rows:
        return ""
    return to_table([("this model", "", "meaning"), ("---", "---:", "---"), *rows])


def _describe_use(results: Results) -> str:
    assert results.data is not None
    return (
        f"Images like those of the evaluation: {name_dataset(results)}, with the"
        f" {len(results.data.classes)} classes above."
    )


def _list_limitations(results: Results, split: Split) -> list[str]:
    """Limitations that follow from the metrics and from how the run was configured."""
    assert results.data is not None
    student, pair, classes = split.student, split.pair, results.data.classes
    limitations = [
        f"Other images: the model assigns every image to one of these {len(classes)} classes. It"
        f" was trained on {results.data.sizes.get('train', 0):,} images and evaluated only on"
        " others of the same kind."
    ]
    limits = [key for key in _LIMITS if results.config.get("trainer", {}).get(key) is not None]
    if limits:
        limitations.append(
            "Any use: the model comes from a trial run on a part of the images only"
            f" ({', '.join(map(escape_code, limits))})."
        )
    if student.top1 is not None and student.top1 < 1:
        limitations.append(
            f"Uses where errors do harm: {format_percent(1 - student.top1)} of the images of the"
            " evaluation are classified wrongly."
        )
    if pair and pair.negative_flips:
        limitations.append(
            "Replacing the teacher without a check:"
            f" {format_percent(pair.negative_flips)} of the images are right with the teacher and"
            " wrong with this model."
        )
    limitations += _list_weak_classes(split.per_class, classes)
    limitations += _list_weak_groups(split)
    limitations += _list_weak_corruptions(split)
    if student.ece is not None:
        limitations.append(
            "Probabilities as estimates of accuracy: they are off by"
            f" {format_percent(student.ece)} on average (calibration error)."
        )
    return limitations


def _list_weak_classes(per_class: PerClass, classes: list[str]) -> list[str]:
    """The classes with the largest loss against the teacher, and those with the lowest
    accuracy.
    """
    student, teacher = (per_class.accuracy.get(role) for role in ("student", "teacher"))
    if student is None:
        return []
    known = [(number, value) for number, value in enumerate(student) if value is not None]

    def describe(number: int, value: str) -> str:
        images = f"{per_class.support[number]:,} images"
        return f"{escape_code(classes[number])} ({value}, {images})"

    sentences = []
    if teacher:
        changes = sorted((value - (teacher[number] or 0), number) for number, value in known)
        lost = [
            describe(number, f"{format_points(change)} points")
            for change, number in changes[:_NUM_WORST]
            if change < 0
        ]
        if lost:
            sentences.append(
                f"Classes with the largest loss against the teacher: {', '.join(lost)}."
            )
    worst = sorted(known, key=lambda row: row[1])[:_NUM_WORST]
    weak = [describe(number, format_percent(value)) for number, value in worst if value < 1]
    if weak:
        sentences.append(f"Classes with the lowest accuracy: {', '.join(weak)}.")
    return sentences


def _list_weak_groups(split: Split) -> list[str]:
    if not split.groups:
        return []
    name, group = min(split.groups.items(), key=lambda item: item[1].accuracy["student"].value or 0)
    accuracy = format_percent(group.accuracy["student"].value)
    return [
        f"Images of the group {escape_code(name)}: {accuracy} of {group.num_images:,} are"
        " classified correctly."
    ]


def _list_weak_corruptions(split: Split) -> list[str]:
    rows = [row for row in split.robustness if row.accuracy.get("student") is not None]
    if not rows:
        return []
    worst = min(rows, key=lambda row: row.accuracy["student"] or 0)
    return [
        f"Corrupted images: {format_percent(worst.accuracy['student'])} are classified correctly"
        f" under {escape_text(worst.corruption)} of severity {worst.severity}, the worst case"
        " of the evaluation."
    ]


def _list_provenance(results: Results) -> list[str]:
    config, environment = redact(results.config), redact(results.environment)
    assert results.data is not None
    teacher, epochs = results.models.get("teacher"), config.get("trainer", {}).get("max_epochs")
    sizes = ", ".join(f"{size:,} {name}" for name, size in results.data.sizes.items())
    terms = " + ".join(
        f"{escape_code(name)} ({_format_settings(node)})"
        for name, node in config.get("loss", {}).items()
    )
    software = ", ".join(
        escape_text(f"{name} {environment[name]}")
        for name in ("kd_app", "torch", "lightning", "timm", "python")
        if name in environment
    )
    commit = f"; commit `{environment['commit']}`" if environment.get("commit") else ""
    return [
        *([f"Teacher: {_describe_source(teacher)}"] if teacher else []),
        f"Student: {_describe_source(results.models['student'])}",
        f"Loss: {terms}",
        f"Optimizer: {_format_settings(config.get('optimizer', {}))};"
        f" schedule: {_format_settings(config.get('scheduler', {}))}",
        f"{epochs} epoch{'' if epochs == 1 else 's'}, seed {results.seed}",
        *_describe_refit(results.models["student"]),
        f"Data: {name_dataset(results)}; images: {sizes}; fingerprint"
        f" `{results.data.fingerprint[:16]}`",
        f"Software: {software}{commit}",
        f"Precision {escape_text(environment.get('precision', 'unknown'))} on"
        f" {escape_text(environment.get('device', 'an unknown device'))}",
    ]


def _describe_refit(student: ModelRecord) -> list[str]:
    refit = student.training.refit if student.training else None
    if refit is None:
        return []
    return [
        f"Trained again on train and validation ({refit.images:,} images) for {refit.epochs}"
        f" epoch{'' if refit.epochs == 1 else 's'}, which the first training had chosen on"
        " validation"
    ]


def _describe_source(model: ModelRecord) -> str:
    source = escape_text(redact(model.source))
    if source.endswith(" random"):
        source += " weights"
    return f"{escape_code(model.name)}, {source}, sha256 `{model.sha256[:16]}`"


def _format_settings(node: Mapping[str, Any]) -> str:
    """'name adamw, lr 0.001' for the config of a component."""
    return ", ".join(
        f"{escape_text(key)} {escape_text(value)}"
        for key, value in node.items()
        if key[:1] != "_" and value is not None
    )


def _list_licenses(results: Results) -> list[str]:
    licenses = results.license
    if licenses is None:
        return [f"This model: {escape_text(name_license(results))}"]
    sources = {
        "The teacher's weights": licenses.teacher,
        "The student's starting weights": licenses.student_start,
        "The data": licenses.data,
    }
    remarks = (*licenses.forbidden, *licenses.accepted, *licenses.unknown, *licenses.notices)
    return [
        f"This model: {escape_text(licenses.ships)}, the strictest license of its sources",
        *(
            f"{what}: {escape_text(license)}"
            for what, license in sources.items()
            if license is not None
        ),
        *map(escape_text, remarks),
    ]
