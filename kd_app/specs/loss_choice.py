"""``loss=auto``: the rule that chooses the loss terms for a teacher, a student and the
data.

All numbers of the rule are in `RULE`. The rule reads the configuration alone, so that a
run is identified by the terms that it trains with before any image is read.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import timm
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.config.paths import list_choices, read_settings
from kd_app.config.targets import FACTORY
from kd_app.models.attention_layers import has_attention
from kd_app.models.weights_source import list_entries
from kd_app.specs.model_specs import build_model_spec
from kd_app.specs.task_choice import name_task
from kd_app.tasks.classification import CLASSIFICATION
from kd_app.tasks.embedding import Embedding

Config = dict[str, Any]
Kind = Literal["cnn", "vit", "other"]
Terms = Mapping[str, Mapping[str, Any]]

AUTO: Final = "auto"
"""The choice of ``loss=``, its marker in the composed group, and the value of settings
that the rule sets.
"""
_FEWEST_CONVOLUTIONS: Final = 3
"""Convolutions over several pixels; a Mixer has one, which cuts the image into
patches.
"""


@dataclass(frozen=True)
class Situation:
    """What the rule knows of a run.

    teacher: None without a teacher. student: the kind of network. has_features: the
    teacher's feature maps can be read, not only its logits. is_trained_here: the
    teacher is trained on the data's classes, unless its weights already have them.
    has_few_labels: the student also sees images without labels. task: what the student
    learns.
    """

    teacher: Kind | None
    student: Kind
    has_features: bool = True
    is_trained_here: bool = True
    has_few_labels: bool = False
    task: str = CLASSIFICATION.name


class RuleRow(NamedTuple):
    """A row of the rule.

    title: the row in the README's table. terms: the settings that differ from
    ``conf/loss/<term>.yaml``, or may be searched. reason: completes "because".
    """

    title: str
    applies: Callable[[Situation], bool]
    terms: Terms
    reason: str


_SOFT_TARGETS: Final[Terms] = {
    "cross_entropy": {"weight": 1.0},
    "soft_target": {"weight": 1.0, "temperature": 4.0},
}
"""The terms of all rows for which nothing better was measured."""
RULE: Final = (
    RuleRow(
        "no labels",
        lambda run: run.task == Embedding.name,
        {"embedding_cosine": {"weight": 1.0}},
        "the student learns the teacher's embedding",
    ),
    RuleRow(
        "no teacher",
        lambda run: run.teacher is None,
        {"cross_entropy": {"weight": 1.0}},
        "there is no teacher",
    ),
    RuleRow(
        "few labels, many images",
        lambda run: run.has_few_labels,
        _SOFT_TARGETS,
        "some images have no label, and the teacher's probabilities reach all of them",
    ),
    RuleRow(
        "CNN -> ViT",
        lambda run: (run.teacher, run.student) == ("cnn", "vit") and run.has_features,
        {
            "cross_entropy": {"weight": 1.0},
            "soft_target": {"weight": 1.0, "temperature": 1.0},
            "orthogonal_projection": {"weight": 1.0},
        },
        "the teacher is a CNN and the student has attention layers",
    ),
    RuleRow(
        "ViT -> ViT",
        lambda run: (run.teacher, run.student) == ("vit", "vit"),
        _SOFT_TARGETS,
        "teacher and student have attention layers",
    ),
    RuleRow(
        "ViT -> CNN or Mixer",
        lambda run: run.teacher == "vit",
        _SOFT_TARGETS,
        "the teacher has attention layers and the student has none",
    ),
    RuleRow(
        "any teacher used as it is",
        lambda run: not run.is_trained_here,
        _SOFT_TARGETS,
        "the teacher is used without training",
    ),
    RuleRow(
        "CNN -> CNN",
        lambda run: (run.teacher, run.student) == ("cnn", "cnn"),
        _SOFT_TARGETS,
        "teacher and student are CNNs",
    ),
    RuleRow(
        "all others",
        lambda run: True,
        _SOFT_TARGETS,
        "probabilities suit every pair",
    ),
)
"""The first row that applies decides. Every setting here is `AUTO` in
``conf/loss/auto.yaml``.
"""


def choose(situation: Situation) -> RuleRow:
    """The row of `RULE` for this run."""
    return next(choice for choice in RULE if choice.applies(situation))


class LossChoice(NamedTuple):
    """A configuration whose loss terms are chosen. sentence: what was chosen and why,
    for the plan; empty if the user chose the terms.
    """

    config: Config
    sentence: str = ""


def resolve_loss(
    config: Config, *, teacher: nn.Module | None = None, student: nn.Module | None = None
) -> LossChoice:
    """Replace ``loss=auto`` by the chosen terms, also in controls that train with the
    student's loss. teacher, student: modules passed from Python.

    Other configurations are returned unchanged. Raises `RequestError` for settings of a
    term that is not chosen.
    """
    loss = config.get("loss")
    if not isinstance(loss, Mapping) or loss.get(AUTO) is not True:
        return LossChoice(config)
    choice = choose(describe_situation(config, teacher=teacher, student=student))
    terms = _resolve_terms(loss, choice)
    controls = config.get("controls")
    if isinstance(controls, Mapping):
        controls = {
            name: {**node, "loss": terms} if _is_auto(node) else node
            for name, node in controls.items()
        }
    text = format_terms({name: _to_group(terms[name]) for name in choice.terms})
    sentence = f"Loss: {text}, chosen by loss=auto because {choice.reason}"
    return LossChoice({**config, "loss": terms, "controls": controls}, sentence)


def _is_auto(control: Any) -> bool:
    loss = control.get("loss") if isinstance(control, Mapping) else None
    return isinstance(loss, Mapping) and loss.get(AUTO) is True


def _resolve_terms(loss: Mapping[str, Any], choice: RuleRow) -> Config:
    """The chosen terms, with the user's settings of them; and terms that the user
    added.
    """
    terms: Config = {}
    candidates = list_candidates()
    for name, settings in choice.terms.items():
        node = loss.get(name, {})
        if isinstance(node, Mapping):
            own = {key: value for key, value in node.items() if value != AUTO}
            node = {**read_defaults(name), **settings, **own}
        terms[name] = node
    for name, node in loss.items():
        if name == AUTO or name in terms:
            continue
        if name not in candidates:
            terms[name] = node
        elif node != {**read_defaults(name), **candidates[name]}:
            raise RequestError(
                f"loss.{name} is set, but loss=auto trains with {' + '.join(choice.terms)} here,"
                f" because {choice.reason}. Remove the settings of {name}, or list the terms"
                f" yourself: 'loss=[{','.join([*choice.terms, name])}]'."
            )
    return terms


@lru_cache
def list_candidates() -> Terms:
    """The terms among which the rule chooses, with their settings in
    ``conf/loss/auto.yaml``.
    """
    content = read_settings(f"loss/{AUTO}")
    return {name: node for name, node in content.items() if name not in ("defaults", AUTO)}


@lru_cache
def read_defaults(term: str) -> Mapping[str, Any]:
    """The settings of a term in ``conf/loss/<term>.yaml``."""
    settings: Config = read_settings(f"loss/{term}")[term]
    return settings


def list_terms() -> list[str]:
    """The names of all loss terms: the choices of ``loss=`` without `AUTO`."""
    return [name for name in list_choices("loss") if name != AUTO]


def format_terms(terms: Terms) -> str:
    """'0.1 x cross_entropy + 0.9 x soft_target (temperature 4)'."""
    texts = []
    for name, settings in terms.items():
        weight, temperature = settings.get("weight", 1), settings.get("temperature")
        text = name if weight == 1 else f"{weight} x {name}"
        is_number = isinstance(temperature, int | float)
        value = f"{temperature:g}" if is_number else temperature
        texts.append(text if temperature is None else f"{text} (temperature {value})")
    return " + ".join(texts)


def describe_situation(
    config: Config, *, teacher: nn.Module | None = None, student: nn.Module | None = None
) -> Situation:
    """What the configuration says about teacher, student and data. Nothing is read but
    the architecture in a model's folder; wrong settings are left to `build_spec`.
    """
    node, task = _to_group(config.get("teacher")), name_task(config)
    student_kind = _find_kind("student", _to_group(config.get("student")), student)
    is_few = has_few_labels(config)
    if teacher is None and node.get("_target_") is None:
        return Situation(None, student_kind, has_few_labels=is_few, task=task)
    is_logits_only = (
        node.get("members") is not None
        or str(node.get("checkpoint") or "").endswith(".onnx")
        or bool(node.get("classes"))
        or bool(node.get("chain"))
        or node.get("outputs") == "cached"
    )
    kind = student_kind if "decay" in node else _find_kind("teacher", node, teacher)
    return Situation(
        kind,
        student_kind,
        has_features=teacher is not None or not is_logits_only,
        is_trained_here=teacher is None and not _is_ready(node),
        has_few_labels=is_few,
        task=task,
    )


def has_few_labels(config: Config) -> bool:
    """Whether the configuration gives the student images without labels."""
    data = _to_group(config.get("data"))
    fraction = data.get("label_fraction")
    return data.get("unlabeled") is not None or (isinstance(fraction, int | float) and fraction < 1)


def _is_ready(teacher: Mapping[str, Any]) -> bool:
    """Whether the configuration rules out a training of the teacher."""
    is_file = str(teacher.get("checkpoint") or "").endswith(".onnx")
    composite = teacher.get("members") is not None or "decay" in teacher
    return is_file or composite or bool(teacher.get("classes")) or teacher.get("max_epochs") == 0


def _to_group(node: Any) -> Mapping[str, Any]:
    return node if isinstance(node, Mapping) else {}


def _find_kind(role: str, node: Mapping[str, Any], module: nn.Module | None) -> Kind:
    if module is not None:
        return classify_entries(module.state_dict())
    if node.get("_target_") != FACTORY:
        return "other"  # not imported: it may be anybody's code
    try:
        spec = build_model_spec(role, dict(node), None)
    except RequestError:
        return "other"  # `build_spec` raises the error
    name = spec.name.split(".")[0]
    # the architecture of a hub's repository is not fetched
    return _classify_model(name, json.dumps(spec.kwargs)) if timm.is_model(name) else "other"


@lru_cache
def _classify_model(name: str, kwargs: str) -> Kind:
    return classify_entries(list_entries(name, json.loads(kwargs)))


def classify_entries(entries: Mapping[str, Tensor]) -> Kind:
    """Whether a state dict has attention layers ('vit', also hybrids), or else several
    convolutions over more than one pixel ('cnn').
    """
    if has_attention(entries):
        return "vit"
    convolutions = sum(entry.dim() == 4 and max(entry.shape[2:]) > 1 for entry in entries.values())
    return "cnn" if convolutions >= _FEWEST_CONVOLUTIONS else "other"
