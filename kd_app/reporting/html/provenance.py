"""How a run was made, and what its student is not good for."""

from collections.abc import Iterator, Mapping
from typing import Any

from kd_app.config.redact import redact
from kd_app.reporting.html.schema import ClassPart, Made
from kd_app.reporting.results import Measurement, Results
from kd_app.reporting.runs import flatten
from kd_app.reporting.sentences import format_points

_FEW = 30
"""Images of a class below which its accuracy says little."""
_UNSAID = (
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
)
"""Parts of a dotted key that say where and by what code, not what was made."""


def build_provenance(results: Results) -> Made:
    """Settings, data, environment and stages; of paths of the machine the last part,
    and nothing that is named like a secret.
    """
    config = redact(results.config)
    data = results.data
    sizes = (
        ", ".join(f"{count:,} {split}" for split, count in data.sizes.items())
        if data
        else "unknown"
    )
    known = {
        "images": sizes,
        "classes": f"{len(data.classes):,}" if data else "unknown",
        "fingerprint": data.fingerprint if data else "unknown",
    }
    return Made(
        settings=dict(_iterate_settings(config, results)),
        data={"data": _format_setting(_read_place(config, "data", "name")), **known},
        environment={
            key: _format_setting(value) for key, value in redact(results.environment).items()
        },
        stages=[(stage.name, stage.seconds, stage.made) for stage in results.stages],
        config={
            key: _format_setting(value)
            for key, value in flatten(config)
            if not set(key.split(".")) & set(_UNSAID)
        },
    )


def _iterate_settings(config: Mapping[str, Any], results: Results) -> Iterator[tuple[str, str]]:
    for role in ("teacher", "student"):
        model = results.models.get(role)
        if model is not None:
            yield role, f"{model.name}, {model.source}"
    for name, term in _to_dict(config.get("loss")).items():
        own = [
            f"{key}={_format_setting(value)}"
            for key, value in _to_dict(term).items()
            if key not in ("_target_", "weight") and value is not None
        ]
        yield (
            f"loss.{name}",
            ", ".join([f"weight={_format_setting(_read_place(term, 'weight'))}", *own]),
        )
    controls = ", ".join(_to_dict(config.get("controls")))
    yield "controls", controls or "none"
    yield (
        "optimizer",
        f"{_format_setting(_read_place(config, 'optimizer', 'name'))}, lr={_format_setting(_read_place(config, 'optimizer', 'lr'))}",
    )
    yield (
        "epochs",
        (
            f"{_format_setting(_read_place(config, 'trainer', 'max_epochs'))} (teacher:"
            f" {_format_setting(_read_place(config, 'teacher', 'max_epochs'))})"
        ),
    )
    yield "batch size", _format_setting(_read_place(config, "data", "batch_size"))
    yield (
        "seeds",
        (
            f"seed={results.seed}, data.seed={_format_setting(_read_place(config, 'data', 'seed'))},"
            f" teacher.seed={_format_setting(_read_place(config, 'teacher', 'seed'))}"
        ),
    )
    if _to_dict(config.get("callbacks")):
        yield "callbacks", ", ".join(_to_dict(config.get("callbacks")))


def _to_dict(node: Any) -> Mapping[str, Any]:
    return node if isinstance(node, Mapping) else {}


def _read_place(node: Any, *keys: str) -> Any:
    for key in keys:
        node = _to_dict(node).get(key)
    return node


def _format_setting(value: Any) -> str:
    if isinstance(value, Mapping):
        own = ", ".join(
            f"{key}={_format_setting(inner)}" for key, inner in value.items() if key != "_target_"
        )
        return f"{str(value.get('_target_', '')).rpartition('.')[2]}({own})"
    return "none" if value is None else str(value)


def list_limits(results: Results, split: Measurement | None, classes: list[ClassPart]) -> list[str]:
    """What the figures do not show, as far as this run tells."""
    return [*_describe_data(results, split), *_describe_classes(classes), *_describe_use(results)]


def _describe_data(results: Results, split: Measurement | None) -> Iterator[str]:
    if results.data is not None:
        yield (
            "Other images: everything was measured on images like those of this data set"
            f" ({len(results.data.classes):,} classes). For another camera, place or time the"
            " figures promise nothing; measure again with kd-evaluate run=... data=..."
        )
        yield (
            "Anything else: an image of none of these classes is called one of them, often with a"
            " high probability."
        )
    if split is not None and split is results.validation:
        yield (
            "A figure to quote: the test set was not read. If something was chosen on validation,"
            " its figures are too good by chance."
        )
    if split is not None:
        yield (
            f"A claim about the method: one seed ({results.seed}) compares two models. It takes"
            " several seeds to compare two ways of training."
        )
    limited = [
        key
        for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches")
        if _read_place(results.config, "trainer", key) is not None
    ]
    if limited:
        yield f"Any conclusion at all: only a part of the images was used ({', '.join(limited)})."


def _describe_classes(classes: list[ClassPart]) -> Iterator[str]:
    lost = [row for row in classes if row.change is not None and row.change < 0][:3]
    if lost:
        named = "; ".join(
            f"{row.name} ({format_points(row.change or 0)} points, {row.support:,} images)"
            for row in lost
        )
        yield f"Whoever depends on the classes that lost most: {named}."
    few = [row.name for row in classes if row.support < _FEW]
    if few:
        named = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        yield f"A judgment of single classes with fewer than {_FEW} images: {named}."


def _describe_use(results: Results) -> Iterator[str]:
    device = results.environment.get("device")
    if results.speed.student is not None and results.speed.student.images_per_second is not None:
        yield (
            "A promise of speed: images per second were measured on one machine"
            f" ({device or 'unknown'}), in torch, in batches."
        )
    unknown = [role for role, model in results.models.items() if model.license == "unknown"]
    if unknown:
        yield f"Use without looking: the license of the weights of {', '.join(unknown)} is unknown."
