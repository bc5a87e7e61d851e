"""Frozen parts of a student: neither trained nor changed by a training."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from kd_app.config import RequestError, suggest_closest
from kd_app.models.heads import find_classifiers

BACKBONE = "backbone"


def freeze_layers(student: nn.Module, names: Sequence[str]) -> None:
    """Freeze the parameters in the layers `names`: a module (``layer1``), a parameter,
    a pattern (``blocks.[0-3].*``), or 'backbone' for all but the classifier.

    Raises `RequestError` for a name without a parameter, and if nothing is left to
    train.
    """
    parameters = dict(student.named_parameters())
    frozen: set[str] = set()
    for name in names:
        matches = _list_backbone(student) if name == BACKBONE else _match(name, parameters)
        if not matches:
            modules = [path for path, _ in student.named_modules() if path]
            tops = [path for path, _ in student.named_children()]
            raise RequestError(
                f"student.freeze={name} matches no parameter of the student."
                f" {suggest_closest(name, modules)}Expected: {BACKBONE}, one of"
                f" {', '.join(tops)}, a part of these (a.b), or a pattern (a.*)."
            )
        frozen |= matches
    if names and frozen == set(parameters):
        raise RequestError(
            f"student.freeze={list(names)} freezes the whole student, so nothing is left to train."
            " Leave the classifier out: student.freeze=backbone."
        )
    for name in frozen:
        parameters[name].requires_grad_(False)


def fix_frozen_modes(student: nn.Module) -> None:
    """Put the modules without a trainable parameter into eval mode, so that the
    statistics of their BatchNorm layers stay.
    """
    if all(parameter.requires_grad for parameter in student.parameters()):
        return
    for module in student.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _match(name: str, parameters: dict[str, nn.Parameter]) -> set[str]:
    return {
        path
        for path in parameters
        if path == name or path.startswith(f"{name}.") or fnmatchcase(path, name)
    }


def _list_backbone(student: nn.Module) -> set[str]:
    """All parameters but those of the classifier; of a module without
    ``get_classifier()`` the last linear layer is the classifier.
    """
    linear = [module for module in student.modules() if isinstance(module, nn.Linear)]
    classifiers = find_classifiers(student) or tuple(linear[-1:])
    head = {id(parameter) for module in classifiers for parameter in module.parameters()}
    return {path for path, parameter in student.named_parameters() if id(parameter) not in head}
