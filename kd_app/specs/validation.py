"""Checks across groups of the configuration, before anything is read: data, loss terms,
controls and the teacher's outputs.
"""

from collections.abc import Collection, Iterable, Mapping

import torch

from kd_app.config import RequestError, build_unknown_error
from kd_app.data.base import Capability, RunData, require
from kd_app.data.partners import PartnerKind
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.models.composite import TeacherEnsemble
from kd_app.models.outputs import Outputs
from kd_app.models.spec import ModelSpec
from kd_app.specs.schema import TeacherOutputs
from kd_app.tasks.base import Task
from kd_app.tasks.classification import CLASSIFICATION
from kd_app.teacher_outputs.choice import check_format, check_task_format, list_needs


def check_data_use(
    data: RunData,
    teacher_outputs: TeacherOutputs,
    losses: Mapping[str, DistillationLoss],
    partners: Mapping[str, PartnerKind | None],
    labeling: Collection[str] = (),
    *,
    task: Task = CLASSIFICATION,
) -> None:
    """Raise `RequestError` if the data lack a capability that the run needs.

    losses: by role, the losses that read the teacher. partners: by control, the other
    images of its batches. labeling: the controls that label images by
    themselves.
    """
    if teacher_outputs.is_cached:
        require(
            data,
            "views",
            because="teacher.outputs=cached",
            instead="use teacher.outputs=live",
        )
        check_task_format(teacher_outputs.cache, task)
        check_format(teacher_outputs.cache, list_needs(losses, task))
    needs: tuple[tuple[Iterable[str], Capability], ...] = (
        ([name for name, kind in partners.items() if kind == "class"], "partners"),
        ([name for name, kind in partners.items() if kind in ("all", "view")], "options"),
        (labeling, "unlabeled"),
    )
    for names, capability in needs:
        for name in names:
            require(
                data,
                capability,
                because=f"The control {name}",
                instead="leave that control out of 'controls=[...]'",
            )
    for name in labeling:
        if name in losses:
            raise RequestError(
                f"The control {name} trains on its own labels (pseudo_label_confidence), but its"
                " loss reads the teacher, so it would not show what training without a teacher"
                f" reaches. Leave controls.{name}.loss at the loss of labels_only."
            )


def check_teacher(loss: DistillationLoss, teacher: ModelSpec | None, *, chained: bool) -> None:
    """Raise `RequestError` if a loss term needs a teacher that does not exist.

    A term can read one member of an ensemble only. chained: assistants stand between
    teacher and student, so that no term reads the ensemble itself.
    """
    for name, member in loss.members.items():
        if (
            not isinstance(teacher, TeacherEnsemble)
            or chained
            or not loss.chosen[name].needs_teacher
        ):
            raise RequestError(
                f"loss.{name}.teacher={member} selects one member of an ensemble. This works only"
                " for loss terms that read a teacher, with teacher=several and without"
                f" teacher.chain. Remove loss.{name}.teacher."
            )
        if member not in teacher.members:
            raise build_unknown_error("member of the teacher", member, list(teacher.members))
    for name, term in loss.chosen.items():
        if term.needs_teacher and teacher is None:
            raise RequestError(
                f"The loss term {name} needs a teacher and there is none. Remove the term, or"
                " choose a teacher (teacher=timm)."
            )


def check_teacher_logits(
    losses: Iterable[DistillationLoss], teacher: ModelSpec, num_classes: int
) -> None:
    """Raise `RequestError` if a loss term reads the logits of a teacher that has no
    logits for the data's classes.
    """
    match = teacher.match
    detail = f" {match.detail}" if match and match.detail else ""
    if match is None or match.fits or not teacher.record.classes.count:
        reason = "has no classifier"
        ways = "train a classifier with teacher.max_epochs=1 or more, name weights with one"
    else:
        reason = match.reason
        ways = (
            "train a classifier with teacher.max_epochs=1 or more, map the teacher's classes"
            " (teacher.classes=<a CSV file>)"
        )
    for loss in losses:
        for name, term in loss.chosen.items():
            if term.needs_teacher and term.teacher_reads & {"logits", "classifier"}:
                raise RequestError(
                    f"The teacher {teacher.name} {reason}, the data have"
                    f" {num_classes} classes, and teacher.max_epochs=0"
                    " forbids its training: its head would be random, but the loss term"
                    f" {name} reads the logits. You can {ways}, or choose loss terms that do not"
                    " read logits (embedding_mse, review, sp), for example"
                    f" 'loss=[cross_entropy,embedding_mse]'.{detail}"
                )


def check_scopes(
    losses: Iterable[DistillationLoss], *, num_classes: int, batch_size: int, world_size: int
) -> list[str]:
    """Return a warning for each loss term of which a part is void for these numbers.

    Raises `RequestError` if a whole term is void, or if a term that reads only logits
    does not support the number of classes.
    """
    outputs = Outputs(logits=torch.zeros(1, num_classes))
    warnings = []
    for loss in losses:
        for term in loss.chosen.values():
            num_images = batch_size * (world_size if term.needs_global_batch else 1)
            warnings.append(term.check_scope(num_classes=num_classes, num_images=num_images))
            if term.reads == {"logits"}:
                term.build(outputs, outputs)
    return [text for text in dict.fromkeys(warnings) if text]
