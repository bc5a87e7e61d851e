"""Self-attention relations of vision transformers: similarities of tokens in queries,
keys and values.
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
_ALTERNATIVES = "Terms that can compare this pair: soft_target, feature_hint, attention_transfer."


class AttentionRelation(LossTerm):
    """``sum over relations XY of weight x mean KL(R_t || R_s)`` with ``R = softmax(X
    Y^T / sqrt(d))``, mean over batch, relation heads and tokens.

    X and Y are queries, keys or values [B, N, width], split into `relation_heads` heads
    of d = width / heads features. Widths and head counts of the two models may differ;
    the number of tokens must be the same. Prefix tokens (class, distillation,
    registers) are included if both models have the same number, otherwise both sides
    drop them. The student's last block is compared with the teacher's block
    `teacher_block`, counted from the last. Wang et al., "MiniLMv2", Findings of ACL
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
        return -self.teacher_block

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Raises `RequestError` if a model has no queries, keys and values, if the
        number of tokens differs, or if `relation_heads` does not divide the widths.
        """
        for name, outputs in (("student", student), ("teacher", teacher)):
            if not outputs.attention:
                raise RequestError(
                    "attention_relation compares queries, keys and values of two vision"
                    f" transformers, but the {name} provides none (a CNN, or another kind of"
                    f" attention). {_ALTERNATIVES}"
                )
        if -self.teacher_block > len(teacher.attention):
            raise RequestError(
                f"attention_relation: teacher_block={self.teacher_block} counts from the teacher's"
                f" last block, but the teacher has {len(teacher.attention)} readable blocks."
                f" Expected -1 to -{len(teacher.attention)}."
            )
        ours, theirs = self._select_blocks(student, teacher)
        for part in sorted(set("".join(self.relations))):
            self._check(_select_part(ours, part), _select_part(theirs, part), _PART[part])

    def _check(self, ours: Tensor, theirs: Tensor, part: str) -> None:
        if ours.shape[2] != theirs.shape[2]:
            raise RequestError(
                f"attention_relation compares token by token, but the {part} of the student has"
                f" {ours.shape[2]} tokens, and that of the teacher {theirs.shape[2]}. Expected the"
                " same number: give both models the same image size / patch size."
                f" {_ALTERNATIVES}"
            )
        widths = [x.shape[1] * x.shape[3] for x in (ours, theirs)]
        if any(width % self.relation_heads for width in widths):
            common = math.gcd(*widths)
            valid = [heads for heads in range(1, common + 1) if common % heads == 0]
            raise RequestError(
                f"attention_relation: relation_heads={self.relation_heads} does not divide the"
                f" widths of both models' {part} (student {widths[0]}, teacher {widths[1]}). Set"
                f" loss.attention_relation.relation_heads to one of {valid}. {_ALTERNATIVES}"
            )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted sum over the relations; 0 if both models relate the
        tokens in the same way.
        """
        ours, theirs = self._select_blocks(student, teacher)
        return torch.stack(
            [
                weight * self._compute_divergence(ours, theirs, relation)
                for relation, weight in self.relations.items()
            ]
        ).sum()

    def _select_blocks(self, student: Outputs, teacher: Outputs) -> tuple[Attention, Attention]:
        """Return the two blocks to compare. Prefix tokens are dropped if their numbers
        differ.
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
        x, y = (self._split_heads(_select_part(block, part)) for part in relation)
        return F.log_softmax((x * x.shape[-1] ** -0.5) @ y.transpose(-1, -2), dim=-1)

    def _split_heads(
        self, x: Float[Tensor, "batch heads tokens d"]
    ) -> Float[Tensor, "batch relation_heads tokens features"]:
        """Concatenate the heads and split them into relation heads."""
        batch, _, tokens, _ = x.shape
        return x.transpose(1, 2).reshape(batch, tokens, self.relation_heads, -1).transpose(1, 2)


def _select_part(block: Attention, letter: str) -> Tensor:
    part = getattr(block, _PART[letter])
    assert isinstance(part, Tensor)
    return part


def _drop_prefix(block: Attention) -> Attention:
    query, key, value = (x[:, :, block.num_prefix :] for x in (block.query, block.key, block.value))
    return Attention(query, key, value, 0)
