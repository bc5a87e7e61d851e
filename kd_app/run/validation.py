"""What data, terms, controls and the way the teacher is asked allow of each other,
checked before anything is read.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch

from kd_app.config import RequestError, build_unknown_error
from kd_app.data.base import RunData, require
from kd_app.models.composite import TeacherEnsemble
from kd_app.models.outputs import Outputs
from kd_app.models.spec import ModelSpec
from kd_app.training.loss import DistillationLoss


def check_data_use(
    data: RunData,
    teacher_outputs: Literal["live", "cached"],
    taught: Mapping[str, DistillationLoss],
    shuffled: Iterable[str],
) -> None:
    """Refuse what does not go together (`RequestError`).

    taught: the terms of each training that listens to the teacher; shuffled: the
    controls that pair images of a class.
    """
    if teacher_outputs == "cached":
        require(
            data,
            "views",
            because="teacher.outputs=cached",
            instead="use teacher.outputs=live",
        )
        _check_cacheable(taught)
    for name in shuffled:
        require(
            data,
            "partners",
            because=f"The control {name}",
            instead="leave that control out of 'controls=[...]'",
        )


def _check_cacheable(taught: Mapping[str, DistillationLoss]) -> None:
    for role, terms in taught.items():
        for name, term in terms.chosen.items():
            more = sorted(term.reads - {"logits"}) if term.needs_teacher else []
            if name in terms.members:
                raise RequestError(
                    "teacher.outputs=cached keeps what several teachers say together, and the loss"
                    f" term {name} of the {role} reads {terms.members[name]} by itself. Use"
                    " teacher.outputs=live."
                )
            if more:
                raise RequestError(
                    f"teacher.outputs=cached keeps the teacher's logits, and the loss term {name}"
                    f" of the {role} reads its {', '.join(more)} as well. Use teacher.outputs=live,"
                    " or terms that read logits alone: soft_target, dist or nkd."
                )


def check_teacher(terms: DistillationLoss, teacher: ModelSpec | None, *, chained: bool) -> None:
    """Refuse terms that need a teacher where there is none, or read one of several
    where it is none of them, or links of a chain stand between.
    """
    for name, member in terms.members.items():
        if (
            not isinstance(teacher, TeacherEnsemble)
            or chained
            or not terms.chosen[name].needs_teacher
        ):
            raise RequestError(
                f"loss.{name}.teacher={member} names one of several teachers for a term to read. It"
                " is for terms that read a teacher, with teacher=several and without"
                " teacher.chain. Leave it out."
            )
        if member not in teacher.members:
            raise build_unknown_error("member of the teacher", member, list(teacher.members))
    for name, term in terms.chosen.items():
        if term.needs_teacher and teacher is None:
            raise RequestError(
                f"The loss term {name} needs a teacher and there is none here. Leave it out, or"
                " choose a teacher (teacher=timm)."
            )


def check_answers(
    trainings: Iterable[DistillationLoss], teacher: ModelSpec, num_classes: int
) -> None:
    """Refuse terms that read the answers of a teacher which has none in the data's
    classes.
    """
    for terms in trainings:
        for name, term in terms.chosen.items():
            if term.needs_teacher and term.teacher_reads & {"logits", "classifier"}:
                raise RequestError(
                    f"The teacher {teacher.name} has {teacher.origin.num_classes or 'other'}"
                    f" classes, the data have {num_classes} classes, and teacher.max_epochs=0"
                    " forbids its training: it would answer with a random head, which the loss"
                    f" term {name} reads. Choose terms that read no answers (embedding_mse, review,"
                    " sp), map its classes (teacher.classes=<a CSV file>), or set"
                    " teacher.max_epochs to 1 or more."
                )


def check_classes(trainings: Iterable[DistillationLoss], num_classes: int) -> None:
    """Let the terms that read logits alone look at logits of so many classes; they
    refuse them where they can't.
    """
    answer = Outputs(logits=torch.zeros(1, num_classes))
    for terms in trainings:
        for term in terms.chosen.values():
            if term.reads == {"logits"}:
                term.build(answer, answer)
