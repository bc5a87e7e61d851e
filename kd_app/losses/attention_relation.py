"""Self-attention relations of vision transformers: which tokens are like which, in
queries, keys and values.
"""

import math
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.models.outputs import Attention, Outputs

Relation = Literal["qq", "kk", "vv", "qk"]
_PART = {"q": "query", "k": "key", "v": "value"}
_INSTEAD = "Terms that can compare this pair: soft_target, feature_hint, attention_transfer."


class AttentionRelation(LossTerm):
    """``sum over relations XY of weight x mean KL(R_t || R_s)`` with ``R = softmax(X
    Y^T / sqrt(d))``, mean over batch, relation heads and tokens.

    X and Y are queries, keys or values [B, N, width], cut anew into `relation_heads`
    heads of d = width / heads features; so the widths and head counts of the two models
    are free, and only the tokens must be the same. Prefix tokens (class, distillation,
    registers) take part when both models have equally many of them, and are dropped on
    both sides otherwise. The student's last block is compared with the teacher's block
    `teacher_block`, counted from its last. Wang et al., "MiniLMv2", Findings of ACL
    2021, arXiv 2012.15828; with the relations qk and vv and the models' own heads:
    MiniLM, NeurIPS 2020, arXiv 2002.10957.
    """

    level: ClassVar[Level] = "attention"
    reads: frozenset[str] = frozenset({"attention"})

    def __init__(
        self,
        *,
        relation_heads: PositiveInt,
        relations: Annotated[dict[Relation, PositiveFloat], Field(min_length=1)],
        teacher_block: NegativeInt,
    ) -> None:
        super().__init__()
        self.relation_heads = relation_heads
        self.relations = relations
        self.teacher_block = teacher_block

    @property
    def attention_blocks(self) -> int:
        """As many as `teacher_block` counts."""
        return -self.teacher_block

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` when a model has no queries, keys and values, when
        tokens differ in number, or when the heads divide no width.
        """
        for name, outputs in (("student", student), ("teacher", teacher)):
            if not outputs.attention:
                raise RequestError(
                    "attention_relation compares queries, keys and values of two vision"
                    f" transformers, and the {name} has none that can be read (a CNN, or another"
                    f" kind of attention). {_INSTEAD}"
                )
        if -self.teacher_block > len(teacher.attention):
            raise RequestError(
                f"attention_relation: teacher_block={self.teacher_block} counts from the teacher's"
                f" last block, and it has {len(teacher.attention)}. Expected -1 to"
                f" -{len(teacher.attention)}."
            )
        ours, theirs = self._select_blocks(student, teacher)
        for part in sorted(set("".join(self.relations))):
            self._check(_select_part(ours, part), _select_part(theirs, part), _PART[part])

    def _check(self, ours: Tensor, theirs: Tensor, part: str) -> None:
        if ours.shape[2] != theirs.shape[2]:
            raise RequestError(
                f"attention_relation compares token with token, and the {part} of the student has"
                f" {ours.shape[2]} tokens, that of the teacher {theirs.shape[2]}. Expected the same"
                f" number: give both models the same image size / patch size. {_INSTEAD}"
            )
        widths = [x.shape[1] * x.shape[3] for x in (ours, theirs)]
        if any(width % self.relation_heads for width in widths):
            common = math.gcd(*widths)
            fitting = [heads for heads in range(1, common + 1) if common % heads == 0]
            raise RequestError(
                f"attention_relation: relation_heads={self.relation_heads} does not divide the"
                f" widths of both models' {part} (student {widths[0]}, teacher {widths[1]}). Set"
                f" loss.attention_relation.relation_heads to one of {fitting}. {_INSTEAD}"
            )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The weighted sum over the relations; 0 when both models relate the tokens in
        the same way.
        """
        ours, theirs = self._select_blocks(student, teacher)
        return torch.stack(
            [
                weight * self._compute_divergence(ours, theirs, relation)
                for relation, weight in self.relations.items()
            ]
        ).sum()

    def _select_blocks(self, student: Outputs, teacher: Outputs) -> tuple[Attention, Attention]:
        """The two blocks that are compared, without the prefix tokens where these are
        not equally many.
        """
        ours, theirs = student.attention[-1], teacher.attention[self.teacher_block]
        return (
            (ours, theirs)
            if ours.num_prefix == theirs.num_prefix
            else (_drop_prefix(ours), _drop_prefix(theirs))
        )

    def _compute_divergence(
        self, ours: Attention, theirs: Attention, relation: Relation
    ) -> Float[Tensor, ""]:
        log_s, log_t = self._log_relation(ours, relation), self._log_relation(theirs, relation)
        return F.kl_div(log_s, log_t, reduction="sum", log_target=True) / log_s[..., 0].numel()

    def _log_relation(
        self, block: Attention, relation: Relation
    ) -> Float[Tensor, "batch relation_heads tokens others"]:
        x, y = (self._cut(_select_part(block, part)) for part in relation)
        return F.log_softmax((x * x.shape[-1] ** -0.5) @ y.transpose(-1, -2), dim=-1)

    def _cut(
        self, x: Float[Tensor, "batch heads tokens d"]
    ) -> Float[Tensor, "batch relation_heads tokens features"]:
        """The heads side by side, cut anew into relation heads."""
        batch, _, tokens, _ = x.shape
        return x.transpose(1, 2).reshape(batch, tokens, self.relation_heads, -1).transpose(1, 2)


def _select_part(block: Attention, letter: str) -> Tensor:
    part = getattr(block, _PART[letter])
    assert isinstance(part, Tensor)
    return part


def _drop_prefix(block: Attention) -> Attention:
    query, key, value = (x[:, :, block.num_prefix :] for x in (block.query, block.key, block.value))
    return Attention(query, key, value, 0)
