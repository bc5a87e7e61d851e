"""The loss of a training: the weighted sum of the configured terms."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.distributed.collectives import (
    gather_batch,
    gather_outputs,
    is_distributed,
)
from kd_app.losses.base import LossTerm
from kd_app.models.outputs import EnsembleOutputs, Outputs
from kd_app.schedules import Schedule


class DistillationLoss(nn.Module):
    """``sum_i weight_i * schedule_i(batch.progress) * term_i(student, teacher,
    batch)``, where a term without a schedule has the factor 1.

    The adapters of the terms are parameters of this module: they are trained with the
    student and saved in training checkpoints.
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
                "The loss has no term. Choose at least one, for example"
                " 'loss=[cross_entropy,soft_target]'."
            )
        self.terms = nn.ModuleDict(terms)
        self.weights = dict(weights)
        self.schedules = dict(schedules or {})
        self.members = dict(members or {})
        """Maps a term's name to the ensemble member that the term reads. Other terms
        read the joint outputs of the ensemble.
        """

    @property
    def reads(self) -> frozenset[str]:
        """The fields that the terms read, and the logits, for the metrics."""
        return frozenset({"logits"}).union(*(term.reads for term in self.chosen.values()))

    @property
    def teacher_reads(self) -> frozenset[str]:
        """The fields that the terms read of the teacher (of an ensemble's joint
        outputs); empty if no term needs a teacher.
        """
        return self._collect_teacher_reads(None)

    @property
    def member_reads(self) -> dict[str, frozenset[str]]:
        """The fields that the terms read of single members of a teacher ensemble."""
        return {member: self._collect_teacher_reads(member) for member in self.members.values()}

    def _collect_teacher_reads(self, member: str | None) -> frozenset[str]:
        terms = (
            term
            for name, term in self.chosen.items()
            if term.needs_teacher and self.members.get(name) == member
        )
        return frozenset[str]().union(*(term.teacher_reads for term in terms))

    @property
    def attention_blocks(self) -> int:
        """The number of last teacher blocks whose attention the terms read."""
        return max(term.attention_blocks for term in self.chosen.values())

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads a teacher."""
        return any(term.needs_teacher for term in self.chosen.values())

    @property
    def label_temperatures(self) -> list[float]:
        """The temperatures of the terms that soften class probabilities."""
        temperatures = (term.label_temperature for term in self.chosen.values())
        return [temperature for temperature in temperatures if temperature is not None]

    @property
    def chosen(self) -> dict[str, LossTerm]:
        """The terms by name."""
        return dict(self.terms.items())  # type: ignore[arg-type]

    def build(self, student: Outputs, teacher: Outputs, images: Tensor | None = None) -> None:
        """Build the adapters of every term from both models' outputs for one real
        batch.

        images: the numbers of the training images, see `LossTerm.images`.
        """
        for name, term in self.chosen.items():
            term.images = images
            term.build(student, _select_teacher(self.members.get(name), teacher))

    def wrap_student(self, student: nn.Module) -> nn.Module:
        """The student, with the adapters that are exported with the student."""
        for term in self.chosen.values():
            student = term.wrap_student(student)
        return student

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and the unweighted value of each term, both in float32 or
        float64, whatever the precision of the models.
        """
        device = student.logits.device.type if student.logits is not None else "cpu"
        with torch.autocast(device, enabled=False):
            values = self._compute_terms(student.to_float32(), teacher.to_float32(), batch)
        weighted = [
            self.compute_weight(name, batch.progress) * value for name, value in values.items()
        ]
        total = weighted[0]
        for part in weighted[1:]:
            total = total + part
        return total, values

    def _compute_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        # a dict, so that the collectives run in the same order on every rank
        teachers = {
            member: _select_teacher(member, teacher) for member in (None, *self.members.values())
        }
        global_terms = self._select_global_terms(batch) if is_distributed() else frozenset[str]()
        global_student, global_batch, global_teachers = student, batch, teachers
        if global_terms:
            reads = frozenset[str]().union(*(self.chosen[name].reads for name in global_terms))
            members = dict.fromkeys(
                self.members.get(name) for name in self.chosen if name in global_terms
            )
            global_teachers = {
                member: gather_outputs(teachers[member], reads) for member in members
            }
            global_student, global_batch = gather_outputs(student, reads), gather_batch(batch)
        values = {}
        for name, term in self.chosen.items():
            member = self.members.get(name)
            if name in global_terms:
                values[name] = term(global_student, global_teachers[member], global_batch)
            else:
                values[name] = term(student, teachers[member], batch)
        return values

    def compute_weight(self, name: str, progress: float) -> float:
        """The factor of a term after this share (0..1) of the training."""
        schedule = self.schedules.get(name)
        return (
            self.weights[name]
            if schedule is None
            else self.weights[name] * schedule.compute_factor(progress)
        )

    def compute_label_loss(self, values: Mapping[str, Tensor], progress: float) -> Tensor | None:
        """The weighted sum of the terms without teacher; None if no term or every term
        is one of them.
        """
        weighted = [
            self.compute_weight(name, progress) * value
            for name, value in values.items()
            if not self.chosen[name].needs_teacher
        ]
        return torch.stack(weighted).sum() if 0 < len(weighted) < len(values) else None

    def _select_global_terms(self, batch: Batch) -> frozenset[str]:
        """The terms that need the images of all ranks: terms that compare images, and,
        if some images have no label, terms that read labels.
        """
        # Ranks differ in their number of labeled images, so the mean of the ranks'
        # means would weight the images unequally.
        return frozenset(
            name
            for name, term in self.chosen.items()
            if term.needs_global_batch or (term.uses_labels and batch.labeled is not None)
        )


def _select_teacher(member: str | None, teacher: Outputs) -> Outputs:
    """The outputs of one ensemble member, or (None) the joint outputs."""
    if member is None:
        return teacher
    assert isinstance(teacher, EnsembleOutputs)
    return teacher.members[member]
