"""The model card that ships with a student: what it is, how to use it, how good it is,
what it is not good for, and how it was made.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kd_app.config.redact import redact
from kd_app.config.targets import FACTORY
from kd_app.metrics.model_metrics import MODEL_METRICS
from kd_app.metrics.spec import Format
from kd_app.models.save import CONVERTED, INT8, INT8_OF_BYTES, PROGRAM
from kd_app.reporting.distillation_gain import describe_gains
from kd_app.reporting.results import Estimate, Model, PerClass, Results, Split
from kd_app.reporting.sentences import (
    build_pair_rows,
    count,
    explain_undefined,
    format_percent,
    format_points,
    write,
    write_basis,
    write_verdict,
)
from kd_app.stages import write_atomically

CARD = "README.md"
_TASK = "image-classification"
_NAMED_CLASSES = 20
_WORST = 3
_LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")

_HUB_LICENSES: Final = frozenset(
    (
        *(
            "apache-2.0",
            "mit",
            "bsd-2-clause",
            "bsd-3-clause",
            "cc0-1.0",
            "cc-by-3.0",
            "cc-by-4.0",
            "cc-by-sa-3.0",
            "cc-by-sa-4.0",
            "cc-by-nc-2.0",
        ),
        *(
            "cc-by-nc-3.0",
            "cc-by-nc-4.0",
            "cc-by-nc-sa-3.0",
            "cc-by-nc-sa-4.0",
            "cc-by-nc-nd-4.0",
            "cc-by-nd-4.0",
            "agpl-3.0",
            "gpl-2.0",
            "gpl-3.0",
        ),
        *(
            "lgpl-2.1",
            "lgpl-3.0",
            "mpl-2.0",
            "openrail",
            "odbl",
            "odc-by",
            "pddl",
            "unlicense",
            "apple-amlr",
            "unknown",
        ),
        "fair-noncommercial-research-license",
    )
)
"""Those that the hub knows by these names
(huggingface.co/docs/hub/repositories-licenses), of the ones that images and image
models come under.
"""

_TIMM = """\
{import_nets}import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:student", pretrained=True).eval()  # the folder of this file
settings = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**settings, is_training=False)
image = Image.open("image.png").convert("L" if settings["input_size"][0] == 1 else "RGB")
with torch.inference_mode():
    probabilities = model(transform(image)[None]).softmax(dim=1)[0]
label = model.pretrained_cfg["label_names"][probabilities.argmax()]
print(label, f"{{probabilities.max():.1%}}")"""

_EXPORTED = """\
import json
from pathlib import Path

import torch
from PIL import Image
from timm.data import create_transform

model = torch.export.load("student/model.pt2").module()  # in the folder of this file: its layers are narrower than timm's of that name
config = json.loads(Path("student/config.json").read_text())
asked = {key: config["pretrained_cfg"][key] for key in ("input_size", "mean", "std", "crop_pct", "interpolation")}
image = Image.open("image.png").convert("L" if asked["input_size"][0] == 1 else "RGB")
with torch.inference_mode():
    probabilities = model(create_transform(**asked, is_training=False)(image)[None]).softmax(dim=1)[0]
label = config["label_names"][probabilities.argmax()]
print(label, f"{probabilities.max():.1%}")"""

_OWN = """\
from safetensors.torch import load_file
from {module} import {name}

model = {name}({arguments}).eval(){handed_over}
model.load_state_dict(load_file("student/model.safetensors"))  # in the folder of this file; config.json says how its images are normalized"""


_INT8 = f"""\
It is quantized: the figures are those of `{INT8}`, its int8 program for ExecuTorch (one normalized image in, logits out). The code above runs the
float weights that it was made from; `torch.export.load("student/{CONVERTED}").module()` rounds as the program does, for any number of images.
`{INT8_OF_BYTES}` is what kd-export ships: the program for uint8 images, which it normalizes itself."""


def write_card(folder: Path, results: Results) -> None:
    """Write ``README.md`` into the folder of a student; all of it comes from `results`.
    Machine paths and secrets are left out.
    """
    split, student = results.test or results.validation, results.models["student"]
    assert split is not None
    assert results.data is not None
    parts = [
        f"---\n{write_metadata(results, split)}\n---",
        f"# {_write_title(results)}",
        _describe_student(results, student),
        "## How to use it",
        f"```python\n{_EXPORTED if (folder / PROGRAM).is_file() else write_snippet(results)}\n```",
        _INT8 if (folder / INT8).is_file() else "",
        "## Results",
        _build_table(results, split),
        _format_pairs(split),
        *_write_verdict(results),
        _to_list_items(describe_gains(results)),
        *explain_undefined(split),
        write_basis(results, split),
        "## Meant for",
        (
            f"Images like those that it was measured on: {_name_dataset(results)}, in its"
            f" {_list_classes(results.data.classes)}."
        ),
        "## Not good for",
        _to_list_items(_list_limits(results, split)),
        "## How it was made",
        _to_list_items(_write_provenance(results)),
        "## Licenses",
        _to_list_items(_write_licenses(results)),
    ]
    write_atomically(folder / CARD, "\n\n".join(part for part in parts if part) + "\n")


def write_metadata(results: Results, split: Split) -> str:
    """The YAML that the Hugging Face hub reads: license, library, task, tags, and the
    figures as a model index.
    """
    from huggingface_hub import EvalResult, ModelCardData

    from kd_app.models.license import Policy

    name = _name_dataset(results)
    measured = [
        EvalResult(
            task_type=_TASK,
            task_name="Image Classification",
            dataset_type=_to_identifier(name),
            dataset_name=name,
            dataset_split="test" if split is results.test else "validation",
            metric_type=spec.hub,
            metric_name=spec.label,
            metric_value=round(value, 6),
        )
        for spec in MODEL_METRICS
        if spec.hub and (value := split.student.get(spec.name).value) is not None
    ]
    taught = ["knowledge-distillation"] if "teacher" in results.models else []
    license, license_name = _map_hub_license(_name_license(results))
    card = ModelCardData(
        license=license,
        license_name=license_name,
        license_link=Policy().look_up(_name_license(results)).link if license_name else None,
        library_name="pytorch" if _own(results) else "timm",
        pipeline_tag=_TASK,
        tags=[_TASK, *([] if _own(results) else ["timm"]), *taught, "kd_app"],
        model_name=_write_title(results),
        eval_results=measured,
    )
    return card.to_yaml()


def _map_hub_license(name: str) -> tuple[str, str | None]:
    """``license`` and ``license_name``: the hub refuses a license that it does not
    know; one of another name is 'other', and named.
    """
    plain = name.strip().lower()
    if plain in _HUB_LICENSES or plain.startswith("none"):
        return (plain if plain in _HUB_LICENSES else "unknown"), None
    return "other", _to_identifier(plain)


def write_snippet(results: Results) -> str:
    """Python that loads the student from its folder and labels an image."""
    name = results.models["student"].name
    if _own(results):
        module, _, qualified = name.partition(":")
        arguments = ", ".join(
            f"{key}={value!r}"
            for key, value in (results.config["student"].get("kwargs") or {}).items()
        )
        handed_over = (
            "  # with the arguments that it was made with"
            if results.config["student"]["_target_"] == FACTORY
            else ""
        )
        return _OWN.format(
            module=module, name=qualified, arguments=arguments, handed_over=handed_over
        )
    return _TIMM.format(import_nets=_import_nets(name))


def _import_nets(name: str) -> str:
    """timm has to be told of the small nets, which are not its own."""
    from timm.models import is_model, model_entrypoint

    import kd_app.models.small  # noqa: F401

    architecture = name.split(".", maxsplit=1)[0]
    ours = is_model(architecture) and model_entrypoint(architecture).__module__.startswith(
        "kd_app."
    )
    return f"import kd_app.models.small  # tells timm of {architecture}\n" if ours else ""


def _own(results: Results) -> bool:
    """The student is a module of somebody's own, which timm does not know."""
    name = results.models["student"].name
    return results.config["student"]["_target_"] != FACTORY or (
        ":" in name and not name.startswith("hf-hub:")
    )


def _write_title(results: Results) -> str:
    return f"{_escape_text(results.models['student'].name)} for {_name_dataset(results)}"


def _name_dataset(results: Results) -> str:
    """The data's name."""
    assert results.data is not None
    return _escape_text(results.data.name or "images")


def _describe_student(results: Results, student: Model) -> str:
    assert results.data is not None
    teacher = results.models.get("teacher")
    taught = (
        f"distilled from {_escape_code(teacher.name)} ({count(teacher.params)} parameters)"
        if teacher
        else _describe_unmeasured_teacher(results)
    )
    return (
        f"An image classifier: {_escape_code(student.name)}, {count(student.params)} parameters,"
        f" {count(student.macs)} multiply-adds an image, {taught} on"
        f" {results.data.sizes['train']:,} images. It answers with one of"
        f" {_list_classes(results.data.classes)}."
    )


def _describe_unmeasured_teacher(results: Results) -> str:
    """What it was trained on, where no teacher was measured; whose license is known was
    there.
    """
    taught = results.license is not None and results.license.teacher is not None
    return (
        "distilled from a teacher that was not measured beside it,"
        if taught
        else "trained on labels"
    )


def _list_classes(names: list[str]) -> str:
    some = ", ".join(_escape_code(name) for name in names[:_NAMED_CLASSES])
    more = (
        f" and {len(names) - _NAMED_CLASSES} more, which `config.json` lists"
        if len(names) > _NAMED_CLASSES
        else ""
    )
    return f"{len(names)} classes: {some}{more}"


def _build_table(results: Results, split: Split) -> str:
    """One column a model, each figure with its interval."""
    roles = {role: figures for role, figures in split.by_model.items() if role in results.models}
    heads = {
        "teacher": "teacher",
        "labels_only": "the same net on labels alone",
        "student": "this model",
    }
    models = [results.models[role] for role in roles]
    rows = [
        ["", *(heads.get(role, role.replace("_", " ")) for role in roles)],
        ["---", *("---:" for _ in roles)],
        ["net", *(_escape_code(model.name) for model in models)],
        *(
            [
                spec.label,
                *(
                    _format_estimate(metrics.get(spec.name), spec.format)
                    for metrics in roles.values()
                ),
            ]
            for spec in MODEL_METRICS
            if "card" in spec.shown
        ),
        ["parameters", *(count(model.params) for model in models)],
        ["multiply-adds", *(count(model.macs) for model in models)],
        ["size on disk", *(f"{count(model.size_bytes)}B" for model in models)],
    ]
    return _to_markdown(rows)


def _to_markdown(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _format_estimate(estimate: Estimate, unit: Format) -> str:
    value, bounds = write(estimate, unit)
    return f"{value} ({bounds})" if bounds else value


def _format_pairs(split: Split) -> str:
    rows = [
        (name, f"{figure} ({bounds})" if bounds else figure, meaning)
        for name, figure, bounds, meaning in build_pair_rows(split, "card")
    ]
    return (
        _to_markdown([("this model", "", "what it is"), ("---", "---:", "---"), *rows])
        if rows
        else ""
    )


def _write_verdict(results: Results) -> list[str]:
    return [write_verdict(results.verdict)] if results.verdict else []


def _list_limits(results: Results, split: Split) -> list[str]:
    """What the figures warn of, and what no figure says."""
    assert results.data is not None
    student, pair, classes = split.student, split.pair, results.data.classes
    found = [
        f"Images of anything else: whatever it is shown it answers with one of these {len(classes)}"
        f" classes. It was trained on {results.data.sizes['train']:,} images, and measured on"
        " others of the same kind only."
    ]
    limited = [key for key in _LIMITS if results.config["trainer"].get(key) is not None]
    if limited:
        found.append(
            "Any use at all: it comes from a trial run that looked at a part of the images only"
            f" ({', '.join(map(_escape_code, limited))})."
        )
    if student.top1 is not None and student.top1 < 1:
        found.append(
            f"Where a wrong answer does harm: it is wrong on {format_percent(1 - student.top1)} of the"
            " images that it was measured on."
        )
    if pair and pair.negative_flips:
        found.append(
            f"Replacing its teacher unseen: {format_percent(pair.negative_flips)} of the images are right"
            " by the teacher and wrong by this model."
        )
    found += _list_weak_classes(split.per_class, classes)
    found += [
        f"Images of the group {_escape_code(name)}: {format_percent(group.accuracy['student'].value)} right, of"
        f" {group.num_images:,}."
        for name, group in sorted(
            split.groups.items(), key=lambda each: each[1].accuracy["student"].value or 0
        )[:1]
    ]
    damaged = [each for each in split.robustness if each.accuracy.get("student") is not None]
    if damaged:
        worst = min(damaged, key=lambda each: each.accuracy["student"] or 0)
        accuracy = format_percent(worst.accuracy["student"])
        found.append(
            f"Spoiled images: {accuracy} right under {_escape_text(worst.corruption)} of severity"
            f" {worst.severity}, the worst that was tried."
        )
    if student.ece is not None:
        found.append(
            "Reading its probabilities as chances: on average they are off by"
            f" {format_percent(student.ece)} (calibration error)."
        )
    return found


def _list_weak_classes(found: PerClass, classes: list[str]) -> list[str]:
    """The classes with the largest loss against the teacher, and those with the fewest
    right.
    """
    student, teacher = found.accuracy["student"], found.accuracy.get("teacher")
    known = [(number, right) for number, right in enumerate(student) if right is not None]
    said = []
    if teacher:
        losses = sorted((right - (teacher[number] or 0), number) for number, right in known)[
            :_WORST
        ]
        listed = [
            f"{_escape_code(classes[number])} ({format_points(loss)} points, {found.support[number]:,} images)"
            for loss, number in losses
            if loss < 0
        ]
        said += (
            [f"Classes where it lost most against its teacher: {', '.join(listed)}."]
            if listed
            else []
        )
    worst = sorted(known, key=lambda each: each[1])[:_WORST]
    listed = [
        f"{_escape_code(classes[number])} ({format_percent(right)} right, {found.support[number]:,} images)"
        for number, right in worst
        if right < 1
    ]
    return said + ([f"The classes that it finds hardest: {', '.join(listed)}."] if listed else [])


def _write_provenance(results: Results) -> list[str]:
    config, environment = redact(results.config), redact(results.environment)
    student, teacher = results.models["student"], results.models.get("teacher")
    assert results.data is not None
    sizes = ", ".join(f"{size:,} {name}" for name, size in results.data.sizes.items())
    terms = [
        f"{_escape_code(name)} ({_format_settings(node)})" for name, node in config["loss"].items()
    ]
    software = [
        f"{name} {environment[name]}"
        for name in ("kd_app", "torch", "lightning", "timm", "python")
        if name in environment
    ]
    return [
        *(
            [
                f"Teacher: {_escape_code(teacher.name)}, {_describe_source(teacher)}, sha256 `{teacher.sha256[:16]}`"
            ]
            if teacher
            else []
        ),
        f"Student: {_escape_code(student.name)}, {_describe_source(student)}, sha256 `{student.sha256[:16]}`",
        f"Loss: {' + '.join(terms)}",
        f"Optimizer: {_format_settings(config['optimizer'])}; schedule: {_format_settings(config['scheduler'])}",
        f"{config['trainer']['max_epochs']} epochs, seed {results.seed}",
        (
            f"Data: {_name_dataset(results)}; images: {sizes}; fingerprint"
            f" `{results.data.fingerprint[:16]}`"
        ),
        f"Software: {', '.join(map(_escape_text, software))}"
        + (f"; commit `{environment['commit']}`" if environment.get("commit") else ""),
        (
            f"Precision {_escape_text(environment.get('precision', 'unknown'))} on"
            f" {_escape_text(environment.get('device', 'an unknown device'))}"
        ),
    ]


def _describe_source(model: Model) -> str:
    source = _escape_text(redact(model.source))
    return f"{source} weights" if source.endswith(" random") else source


def _format_settings(node: Mapping[str, Any]) -> str:
    """'name adamw, lr 0.001' of a part's configuration."""
    return ", ".join(
        f"{_escape_text(key)} {_escape_text(value)}"
        for key, value in node.items()
        if key[:1] != "_" and value is not None
    )


def _write_licenses(results: Results) -> list[str]:
    found = results.license
    if found is None:
        return [f"This model: {_escape_text(_name_license(results))}"]
    made_of = {
        "the teacher's weights": found.teacher,
        "the student's starting weights": found.student_start,
        "the data": found.data,
    }
    said = (*found.forbidden, *found.accepted, *found.unknown, *found.notices)
    return [
        f"This model: {_escape_text(found.ships)}, the strictest of what it is made from",
        *(
            f"Made from {what}: {_escape_text(license)}"
            for what, license in made_of.items()
            if license is not None
        ),
        *map(_escape_text, said),
    ]


def _name_license(results: Results) -> str:
    """The license of what ships."""
    return results.license.ships if results.license else results.models["student"].license


def _to_list_items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _escape_code(text: str) -> str:
    """A name that somebody else gave, as it is and as nothing but text."""
    return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', '/')}`"


def _escape_text(value: object) -> str:
    """The same without the monospaced face."""
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", " ".join(str(value).split()))


def _to_identifier(text: str) -> str:
    """An identifier of letters, digits, dots and dashes."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-") or "unknown"
