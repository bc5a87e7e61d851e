"""Whether the loss terms suit the teacher and the classes, refused (`RequestError`) as
soon as it is known: nothing is trained by then.
"""

from collections.abc import Iterable

import torch

from kd_app.config import RequestError, unknown
from kd_app.models.composed import Several
from kd_app.models.outputs import Outputs
from kd_app.models.request import ModelRequest
from kd_app.training.loss import DistillationLoss


def check_teacher(terms: DistillationLoss, teacher: ModelRequest | None, *, chained: bool) -> None:
    """Refuse terms that need a teacher where there is none, or read one of several
    where it is none of them, or links of a chain stand between.
    """
    for name, member in terms.members.items():
        if not isinstance(teacher, Several) or chained or not terms.chosen[name].needs_teacher:
            raise RequestError(
                f"loss.{name}.teacher={member} names one of several teachers for a term to read. It"
                " is for terms that read a teacher, with teacher=several and without"
                " teacher.chain. Leave it out."
            )
        if member not in teacher.members:
            raise unknown("member of the teacher", member, list(teacher.members))
    for name, term in terms.chosen.items():
        if term.needs_teacher and teacher is None:
            raise RequestError(
                f"The loss term {name} needs a teacher and there is none here. Leave it out, or"
                " choose a teacher (teacher=timm)."
            )


def check_answers(
    trainings: Iterable[DistillationLoss], teacher: ModelRequest, num_classes: int
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
