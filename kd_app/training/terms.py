"""The chosen loss terms, their weights, and their sum."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kd_app.config import RequestError, RunError
from kd_app.config.schedule import Schedule
from kd_app.data.batch import Batch
from kd_app.losses.base import LossTerm
from kd_app.models.outputs import Outputs, Panel
from kd_app.training.ranks.gather import several_ranks, whole_batch, whole_outputs


@dataclass(frozen=True)
class Fault:
    """What is wrong with a term, and in which way."""

    term: str
    kind: Literal["not-finite", "zero", "no-gradient"]
    text: str


class WeightedTerms(nn.Module):
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
        """Of several teachers the one that a term reads, by the term's name; the others
        read what all say together.
        """

    @property
    def reads(self) -> frozenset[str]:
        """What the terms read of student and teacher; logits always, for the metrics."""
        return frozenset({"logits"}).union(*(term.reads for term in self.chosen.values()))

    @property
    def teacher_reads(self) -> frozenset[str]:
        """What the terms read of the teacher, of several of all together; empty where
        none needs one.
        """
        return self._read_of(None)

    @property
    def member_reads(self) -> dict[str, frozenset[str]]:
        """What the terms read of each of several teachers by itself."""
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
        """Of how many of the teacher's last blocks the attention is read."""
        return max(term.attention_blocks for term in self.chosen.values())

    @property
    def needs_teacher(self) -> bool:
        """At least one term is distillation."""
        return any(term.needs_teacher for term in self.chosen.values())

    @property
    def chosen(self) -> dict[str, LossTerm]:
        """The terms by name."""
        return dict(self.terms.items())  # type: ignore[arg-type]

    def build(self, student: Outputs, teacher: Outputs, images: Tensor | None = None) -> None:
        """Make the adapters of every term from one measured pass; `images`: see
        `LossTerm`.
        """
        for name, term in self.chosen.items():
            term.images = images
            term.build(student, _heard(self.members.get(name), teacher))

    def deployed(self, student: nn.Module) -> nn.Module:
        """The student with the adapters that are a part of it."""
        for term in self.chosen.values():
            student = term.deployed(student)
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
            student, teacher = student.at_least_float32(), teacher.at_least_float32()
            together = self._together(batch) if several_ranks() else frozenset[str]()
            reads = frozenset[str]().union(*(self.chosen[name].reads for name in together))
            own = {member: _heard(member, teacher) for member in (None, *self.members.values())}
            gathered = dict.fromkeys(
                self.members.get(name) for name in self.chosen if name in together
            )
            theirs = {member: whole_outputs(own[member], reads) for member in gathered}
            ours, whole = (
                (whole_outputs(student, reads), whole_batch(batch))
                if together
                else (student, batch)
            )
            values = {
                name: (
                    term(ours, theirs[self.members.get(name)], whole)
                    if name in together
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
        """What a term is multiplied with when this share of the training is done."""
        schedule = self.schedules.get(name)
        return (
            self.weights[name]
            if schedule is None
            else self.weights[name] * schedule.factor(progress)
        )

    def from_labels(self, values: Mapping[str, Tensor], progress: float) -> Tensor | None:
        """The weighted sum of the terms that read no teacher; None where there is none
        of these, or no other.
        """
        own = [
            self.weight(name, progress) * value
            for name, value in values.items()
            if not self.chosen[name].needs_teacher
        ]
        return torch.stack(own).sum() if 0 < len(own) < len(values) else None

    def _together(self, batch: Batch) -> frozenset[str]:
        """The terms that are given the images of all ranks: those that compare images,
        and where some have no label those that read it. How many have one differs from
        rank to rank, and a mean of means would count the images of one more than those
        of another.
        """
        return frozenset(
            name
            for name, term in self.chosen.items()
            if term.whole_batch or (term.uses_labels and batch.labeled is not None)
        )

    def gradient_norms(self, values: Mapping[str, Tensor], student: nn.Module) -> dict[str, float]:
        """``|weight * d term / d student|_2`` of each term, at the top of its schedule;
        0 where it has no gradient.
        """
        parameters = [p for p in student.parameters() if p.requires_grad]
        return {
            name: self.weights[name] * _norm(_gradient(values[name], parameters)) for name in values
        }

    def gradients(
        self, values: Mapping[str, Tensor], student: nn.Module, progress: float
    ) -> dict[str, float]:
        """``<term>_share``, ``|g_i|_2 / sum_j |g_j|_2`` for the gradients g_i of the
        weighted terms for the student (all 0 where none has any), and of each term that
        distills ``<term>_cosine``: that of g_i and the sum of the gradients of terms
        that read no teacher, 0 where one is zero.

        Of the images of this process. The graph is still there afterwards, and no
        parameter has a gradient by it.
        """
        parameters = [p for p in student.parameters() if p.requires_grad]
        found = {
            name: self.weight(name, progress) * _flat(values[name], parameters) for name in values
        }
        norms = {name: float(gradient.norm()) for name, gradient in found.items()}
        total = sum(norms.values())
        shares = {f"{name}_share": norm / total if total else 0.0 for name, norm in norms.items()}
        labels = [
            gradient for name, gradient in found.items() if not self.chosen[name].needs_teacher
        ]
        if not labels:
            return shares
        task = torch.stack(labels).sum(dim=0)
        distills = [name for name, term in self.chosen.items() if term.needs_teacher]
        return {
            **shares,
            **{
                f"{name}_cosine": float(torch.cosine_similarity(found[name], task, dim=0))
                for name in distills
            },
        }

    def check(self, values: Mapping[str, Tensor], student: nn.Module, batch: Batch) -> None:
        """Refuse a distillation term that is exactly zero, not finite, or without
        gradient for the student (`RunError`, by name).
        """
        for fault in self.faults(values, student, batch):
            raise RunError(fault.text)

    def faults(
        self, values: Mapping[str, Tensor], student: nn.Module, batch: Batch
    ) -> Iterator[Fault]:
        """What is wrong with the values of each term for one of the first batches: any
        that is not finite; of those that distill, zero ones and those that teach
        nothing, unless they read labels and some image has none.
        """
        parameters = [p for p in student.parameters() if p.requires_grad]
        for name, term in self.chosen.items():
            if not torch.isfinite(values[name]):
                yield Fault(
                    name,
                    "not-finite",
                    f"The loss term {name} is {values[name].item()} in the first steps. Lower"
                    " optimizer.lr, or use trainer.precision=32-true.",
                )
                continue
            if (
                not term.needs_teacher
                or self.weights[name] == 0
                or (term.uses_labels and batch.labeled is not None)
            ):
                continue
            if values[name].item() == 0:
                yield Fault(
                    name,
                    "zero",
                    f"The loss term {name} is exactly zero in the first steps: student and teacher"
                    " already agree on what it reads. Leave it out.",
                )
            elif not any(bool(grad.any()) for grad in _gradient(values[name], parameters)):
                yield Fault(
                    name,
                    "no-gradient",
                    f"The loss term {name} gives the student no gradient in the first steps, so it"
                    " teaches nothing. Leave it out, or change it.",
                )


def _heard(member: str | None, teacher: Outputs) -> Outputs:
    """What a term hears: all teachers together, or one of them."""
    if member is None:
        return teacher
    assert isinstance(teacher, Panel)
    return teacher.members[member]


def _gradient(value: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The gradients of one term, of the parameters that have any."""
    if not value.requires_grad:
        return []
    return [
        grad
        for grad in torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        if grad is not None
    ]


def _flat(value: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """``[P]``: the gradient of one term of all parameters, 0 where there is none, in
    float32 or better.
    """
    asked = (
        torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        if value.requires_grad
        else [None] * len(parameters)
    )
    parts = [
        torch.zeros_like(p) if grad is None else grad
        for p, grad in zip(parameters, asked, strict=True)
    ]
    return torch.cat(
        [part.flatten().to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
    )


def _norm(gradient: Sequence[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(gradient)) if gradient else 0.0
