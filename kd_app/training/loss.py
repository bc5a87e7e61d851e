"""The loss of a training: the weighted sum of the chosen terms."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.losses.base import LossTerm
from kd_app.models.outputs import Outputs, Panel
from kd_app.schedules import Schedule
from kd_app.training.distributed.collectives import (
    all_gather_batch,
    all_gather_outputs,
    is_distributed,
)


class DistillationLoss(nn.Module):
    """``sum_i weight_i * schedule_i(batch.progress) * term_i(student, teacher,
    batch)``, each term also by name; without a schedule it is 1.

    Adapters of the terms are parameters of this module: trained with the student and
    saved in training checkpoints.
    """

    def __init__(
        self,
        terms: Mapping[str, LossTerm],
        weights: Mapping[str, float],
        schedules: Mapping[str, Schedule] | None = None,
        members: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if not terms:
            raise RequestError(
                "No loss term is chosen. Choose at least one, for example"
                " 'loss=[cross_entropy,soft_target]'."
            )
        self.terms = nn.ModuleDict(terms)
        self.weights = dict(weights)
        self.schedules = dict(schedules or {})
        self.members = dict(members or {})
        """The one of several teachers that a term reads, by the term's name. Other terms
        read the joint outputs.
        """

    @property
    def reads(self) -> frozenset[str]:
        """What the terms read of student and teacher; logits always, for the metrics."""
        return frozenset({"logits"}).union(*(term.reads for term in self.chosen.values()))

    @property
    def teacher_reads(self) -> frozenset[str]:
        """What the terms read of the teacher (of several teachers, their joint outputs);
        empty if no term needs one.
        """
        return self._read_of(None)

    @property
    def member_reads(self) -> dict[str, frozenset[str]]:
        """What the terms read of single members of a teacher ensemble."""
        return {member: self._read_of(member) for member in dict.fromkeys(self.members.values())}

    def _read_of(self, member: str | None) -> frozenset[str]:
        reading = (
            term
            for name, term in self.chosen.items()
            if term.needs_teacher and self.members.get(name) == member
        )
        return frozenset[str]().union(*(term.teacher_reads for term in reading))

    @property
    def attention_blocks(self) -> int:
        """Number of the teacher's last blocks whose attention is read."""
        return max(term.attention_blocks for term in self.chosen.values())

    @property
    def needs_teacher(self) -> bool:
        """At least one term is distillation."""
        return any(term.needs_teacher for term in self.chosen.values())

    @property
    def label_temperatures(self) -> list[float]:
        """The temperatures of the terms that soften class probabilities."""
        temperatures = (term.label_temperature for term in self.chosen.values())
        return [each for each in temperatures if each is not None]

    @property
    def chosen(self) -> dict[str, LossTerm]:
        """The terms by name."""
        return dict(self.terms.items())  # type: ignore[arg-type]

    def build(self, student: Outputs, teacher: Outputs, images: Tensor | None = None) -> None:
        """Build the adapters of every term from the outputs of one real batch; `images`:
        see `LossTerm`.
        """
        for name, term in self.chosen.items():
            term.images = images
            term.build(student, _select_teacher(self.members.get(name), teacher))

    def wrap_student(self, student: nn.Module) -> nn.Module:
        """The student with the adapters that become part of it."""
        for term in self.chosen.values():
            student = term.wrap_student(student)
        return student

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum and the terms without their weights; computed in float32 or
        better, whatever the models' precision.
        """
        with torch.autocast(
            student.logits.device.type if student.logits is not None else "cpu", enabled=False
        ):
            student, teacher = student.to_float32(), teacher.to_float32()
            global_terms = (
                self._select_global_terms(batch) if is_distributed() else frozenset[str]()
            )
            reads = frozenset[str]().union(*(self.chosen[name].reads for name in global_terms))
            own = {
                member: _select_teacher(member, teacher)
                for member in (None, *self.members.values())
            }
            gathered = dict.fromkeys(
                self.members.get(name) for name in self.chosen if name in global_terms
            )
            theirs = {member: all_gather_outputs(own[member], reads) for member in gathered}
            ours, whole = (
                (all_gather_outputs(student, reads), all_gather_batch(batch))
                if global_terms
                else (student, batch)
            )
            values = {
                name: (
                    term(ours, theirs[self.members.get(name)], whole)
                    if name in global_terms
                    else term(student, own[self.members.get(name)], batch)
                )
                for name, term in self.chosen.items()
            }
        weighted = [self.weight(name, batch.progress) * value for name, value in values.items()]
        total = weighted[0]
        for part in weighted[1:]:
            total = total + part
        return total, values

    def weight(self, name: str, progress: float) -> float:
        """The factor of a term when this share of the training is done."""
        schedule = self.schedules.get(name)
        return (
            self.weights[name]
            if schedule is None
            else self.weights[name] * schedule.compute_factor(progress)
        )

    def label_loss(self, values: Mapping[str, Tensor], progress: float) -> Tensor | None:
        """The weighted sum of the terms that read no teacher; None if no term or every
        term does so.
        """
        own = [
            self.weight(name, progress) * value
            for name, value in values.items()
            if not self.chosen[name].needs_teacher
        ]
        return torch.stack(own).sum() if 0 < len(own) < len(values) else None

    def _select_global_terms(self, batch: Batch) -> frozenset[str]:
        """The terms that get the images of all ranks: those that compare images, and, if
        some images have no label, those that read labels. The number of labeled images
        differs between ranks, so a mean of the ranks' means would weigh images unequally.
        """
        return frozenset(
            name
            for name, term in self.chosen.items()
            if term.needs_global_batch or (term.uses_labels and batch.labeled is not None)
        )


def _select_teacher(member: str | None, teacher: Outputs) -> Outputs:
    """The outputs of one of several teachers, or of all together."""
    if member is None:
        return teacher
    assert isinstance(teacher, Panel)
    return teacher.members[member]
