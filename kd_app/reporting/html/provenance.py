"""Configuration and environment of a run, and the limits of its result."""

from collections.abc import Iterator, Mapping
from typing import Any

from kd_app.config.errors import list_some
from kd_app.config.redact import redact
from kd_app.reporting.html.schema import ClassPart, Provenance
from kd_app.reporting.metrics import Measurement
from kd_app.reporting.results import Results
from kd_app.reporting.runs import flatten
from kd_app.reporting.sentences import format_points

_FEW_IMAGES = 30
"""A class with fewer images has too wide an interval to judge its accuracy."""
_HIDDEN_KEYS = frozenset(
    {
        "_target_",
        "_convert_",
        "_partial_",
        "out",
        "stages",
        "own",
        "remake",
        "overwrite",
        "allow",
        "logger",
        "presets",
    }
)
"""Parts of a dotted key that set paths and code rather than the content of a run."""


def build_provenance(results: Results) -> Provenance:
    """Build settings, data, environment and stages of a run. Only the last part of a
    path is kept, and settings with the name of a secret are left out.
    """
    config, data = redact(results.config), results.data
    known_data = {"data": _format_setting(_read_key(config, "data", "name"))}
    known_data |= dict.fromkeys(("images", "classes", "fingerprint"), "unknown")
    if data:
        known_data["images"] = ", ".join(
            f"{count:,} {split}" for split, count in data.sizes.items()
        )
        known_data["classes"] = f"{len(data.classes):,}"
        known_data["fingerprint"] = data.fingerprint
    return Provenance(
        settings=dict(_iterate_settings(config, results)),
        data=known_data,
        environment={
            key: _format_setting(value) for key, value in redact(results.environment).items()
        },
        stages=[(stage.name, stage.seconds, stage.status) for stage in results.stages],
        config={
            key: _format_setting(value)
            for key, value in flatten(config)
            if not _HIDDEN_KEYS.intersection(key.split("."))
        },
    )


def _iterate_settings(config: Mapping[str, Any], results: Results) -> Iterator[tuple[str, str]]:
    """Yield name and value of the main settings."""

    def read(*keys: str) -> str:
        return _format_setting(_read_key(config, *keys))

    for role in ("teacher", "student"):
        model = results.models.get(role)
        if model is not None:
            yield role, f"{model.name}, {model.source}"
    for name, term in _to_dict(config.get("loss")).items():
        options = [f"weight={_format_setting(_read_key(term, 'weight'))}"]
        options += [
            f"{key}={_format_setting(value)}"
            for key, value in _to_dict(term).items()
            if key not in ("_target_", "weight") and value is not None
        ]
        yield f"loss.{name}", ", ".join(options)
    yield "controls", ", ".join(_to_dict(config.get("controls"))) or "none"
    yield "optimizer", f"{read('optimizer', 'name')}, lr={read('optimizer', 'lr')}"
    teacher = results.models.get("teacher")
    is_trained = teacher is not None and teacher.training is not None
    teacher_epochs = f" (teacher: {read('teacher', 'max_epochs')})" if is_trained else ""
    yield "epochs", f"{read('trainer', 'max_epochs')}{teacher_epochs}"
    yield "batch size", read("data", "batch_size")
    teacher_seed = f", teacher.seed={read('teacher', 'seed')}" if is_trained else ""
    yield "seeds", f"seed={results.seed}, data.seed={read('data', 'seed')}{teacher_seed}"
    callbacks = _to_dict(config.get("callbacks"))
    if callbacks:
        yield "callbacks", ", ".join(callbacks)


def _to_dict(node: Any) -> Mapping[str, Any]:
    return node if isinstance(node, Mapping) else {}


def _read_key(node: Any, *keys: str) -> Any:
    for key in keys:
        node = _to_dict(node).get(key)
    return node


def _format_setting(value: Any) -> str:
    if isinstance(value, Mapping):
        options = ", ".join(
            f"{key}={_format_setting(inner)}" for key, inner in value.items() if key != "_target_"
        )
        return f"{str(value.get('_target_', '')).rpartition('.')[2]}({options})"
    return "none" if value is None else str(value)


def list_limits(results: Results, split: Measurement | None, classes: list[ClassPart]) -> list[str]:
    """List the conclusions that this run does not support."""
    return [*_describe_data(results, split), *_describe_classes(classes), *_describe_use(results)]


def _describe_data(results: Results, split: Measurement | None) -> Iterator[str]:
    if results.data is not None:
        yield (
            "Other images: everything was measured on images like those of this data set"
            f"{_count_classes(results.data.classes)}. The results do not carry over to another"
            " camera, place or time. To measure on other images, run kd-evaluate run=... data=..."
        )
    if results.data is not None and results.embedding is None:
        yield (
            "Unknown classes: an image of none of these classes is still assigned to one of them,"
            " often with a high probability."
        )
    if split is not None and split is results.validation:
        yield (
            "Test accuracy: the test set was not read. If anything was selected on validation, the"
            " validation metrics are too optimistic."
        )
    if split is not None:
        yield (
            f"Methods: one seed ({results.seed}) compares two models. Comparing two ways of"
            " training takes several seeds."
        )
    limited = [
        key
        for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches")
        if _read_key(results.config, "trainer", key) is not None
    ]
    if limited:
        yield (
            f"Partial data: the run used only a part of the images ({', '.join(limited)}), so the"
            " metrics support no conclusions."
        )


def _count_classes(classes: list[str]) -> str:
    return f" ({len(classes):,} classes)" if classes else ""


def _describe_classes(classes: list[ClassPart]) -> Iterator[str]:
    lost = [row for row in classes if row.change is not None and row.change < 0][:3]
    if lost:
        names = "; ".join(
            f"{row.name} ({format_points(row.change or 0)} points, {row.support:,} images)"
            for row in lost
        )
        yield f"Weak classes: accuracy dropped most for {names}."
    few = [row.name for row in classes if row.support < _FEW_IMAGES]
    if few:
        yield (
            f"Single classes: fewer than {_FEW_IMAGES} images are too few to judge one class"
            f" ({list_some(few, 5)})."
        )


def _describe_use(results: Results) -> Iterator[str]:
    device = results.environment.get("device")
    if results.speed.student is not None and results.speed.student.images_per_second is not None:
        yield (
            "Speed: images per second were measured in torch, in batches, on one machine"
            f" ({device or 'unknown'}). The speed differs between machines."
        )
    unknown = [role for role, model in results.models.items() if model.license == "unknown"]
    if unknown:
        yield (
            f"License: the license of the weights of {', '.join(unknown)} is unknown. Check it"
            " before use."
        )
