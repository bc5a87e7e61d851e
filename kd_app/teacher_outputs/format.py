"""Formats of cached teacher outputs: what a row keeps of one view of an image, in how
many bytes, and what it loses.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from kd_app.models.outputs import Outputs

Rows = UInt8[Tensor, "rows bytes"]

MAX_LOST_SHARE: Final = 0.02
"""The largest share of the teacher's KL divergence from the uniform distribution that a
format may lose, at each temperature in use."""
_TOP = 10
_MANY_CLASSES = 2**16
_SMALLEST = 1e-12
_FLOAT32: Final = 2e-3
"""Two float32 forward passes differ by up to this share of the range of a row: other
batch sizes take other kernels, and TF32 rounds to 10 bits."""


class TermNeed(NamedTuple):
    """What one loss term reads of the teacher: `reads` and `temperature` are
    `LossTerm.teacher_reads` and `LossTerm.teacher_temperature`; softened:
    `LossTerm.label_temperature`; member: of an ensemble.
    """

    role: str
    term: str
    reads: frozenset[str]
    temperature: float | None
    softened: float | None = None
    member: str | None = None


@dataclass(frozen=True)
class CacheFormat:
    """How the outputs of one view of an image are stored as a row of bytes.

    width: number of values that the teacher returns for an image: the classes, or the
    embedding's width.
    """

    width: int

    name: ClassVar[str]
    serves: ClassVar[frozenset[str]] = frozenset({"logits"})
    """Fields of `Outputs` that a loss term can read from the cache."""
    computes: ClassVar[frozenset[str]] = frozenset({"logits"})
    """Fields that the teacher computes to fill the cache."""
    is_lossless: ClassVar[bool] = False
    replays_with: ClassVar[frozenset[str]] = frozenset()
    """Fields of the teacher itself that are needed to read the cache."""
    tolerance: ClassVar[float] = _FLOAT32
    """The largest `measure_distance` between a row and the same view inferred again."""

    @property
    @abstractmethod
    def bytes_per_view(self) -> int:
        """Bytes of one row."""

    @abstractmethod
    def encode(self, outputs: Outputs) -> Rows:
        """Return one row per image."""

    @abstractmethod
    def decode(self, rows: Rows) -> Outputs:
        """Return the outputs that the rows hold, in float32, on their device."""

    def measure_distance(self, rows: Rows, outputs: Outputs) -> float:
        """The largest difference between stored and fresh values of an image, as a
        share of the range of its values or, if that is larger, of the largest value.
        """
        stored, fresh = (
            self.read_values(self.decode(each)) for each in (rows, self.encode(outputs))
        )
        # rounding errors are relative to the values, also if these are almost equal
        span = torch.maximum(fresh.amax(dim=1) - fresh.amin(dim=1), fresh.abs().amax(dim=1))
        span = span.clamp(min=_SMALLEST)
        return float(((stored - fresh).abs().amax(dim=1) / span).max())

    @staticmethod
    def read_values(outputs: Outputs) -> Float[Tensor, "rows width"]:
        """The values that the format stores."""
        assert outputs.logits is not None
        return outputs.logits

    @classmethod
    def explain_refusal(cls, need: TermNeed) -> str:
        """Why the format can't serve a term, as a clause about the term; "" if it
        can.
        """
        if need.member is not None:
            return f"reads the member {need.member} of the ensemble, and only the whole is stored"
        fields = sorted(need.reads - cls.serves)
        return f"also reads {', '.join(fields)}, which {cls.name} does not store" if fields else ""


class ExactFormat(CacheFormat):
    """The logits in float32: 4 bytes per class. The student is bit for bit the one that
    the running teacher gives.

    A smaller float would change the student: bfloat16 has 8 bits of precision, so the
    error of a logit of 20 is up to 0.06, and that of a probability at temperature 1 up
    to 6 %.
    """

    name: ClassVar[str] = "exact"
    is_lossless: ClassVar[bool] = True

    @property
    def bytes_per_view(self) -> int:
        return 4 * self.width

    def encode(self, outputs: Outputs) -> Rows:
        return self.read_values(outputs).float().contiguous().view(torch.uint8)

    def decode(self, rows: Rows) -> Outputs:
        return Outputs(logits=rows.view(torch.float32))


class Int8Format(CacheFormat):
    """``z = low + step * q`` with q in 0..255, and low and step in float32 per row: one
    byte per class and 8 more, for terms at any temperature. The error of a logit is
    at most half a step, 1/510 of the range of the row.
    """

    name: ClassVar[str] = "int8"
    tolerance: ClassVar[float] = _FLOAT32 + 1.01 / 255

    @property
    def bytes_per_view(self) -> int:
        return 8 + self.width

    def encode(self, outputs: Outputs) -> Rows:
        logits = self.read_values(outputs).float()
        low, high = logits.amin(dim=1, keepdim=True), logits.amax(dim=1, keepdim=True)
        step = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
        levels = ((logits - low) / step).round().clamp(0, 255).to(torch.uint8)
        return torch.cat((torch.cat((low, step), dim=1).view(torch.uint8), levels), dim=1)

    def decode(self, rows: Rows) -> Outputs:
        low, step = _read_part(rows, 0, 8, torch.float32).split(1, dim=1)
        # in place: three times as fast as torch.addcmul
        return Outputs(logits=rows[:, 8:].float().mul_(step).add_(low))


class TopTenFormat(CacheFormat):
    """The ten largest probabilities at temperature 1 in float16, their class numbers,
    and the mass of all other classes, which is spread evenly over them: 44 bytes.

    For terms that read nothing but the probabilities at temperature 1. At higher ones
    the others hold most of the mass. Logits are returned up to a constant per image.
    """

    name: ClassVar[str] = "top10"
    tolerance: ClassVar[float] = 0.005
    """Absolute, of a probability."""

    @property
    def bytes_per_view(self) -> int:
        return 4 * _TOP + 4

    def encode(self, outputs: Outputs) -> Rows:
        p = F.softmax(super().read_values(outputs).float(), dim=1)
        top = p.topk(_TOP, dim=1)
        kept = top.values.half()
        rest = (1 - kept.float().sum(dim=1, keepdim=True)).clamp(min=_SMALLEST)
        numbers = top.indices.to(torch.int32).to(torch.int16)  # wraps, as uint16 has no kernels
        parts = (rest, kept, numbers)
        return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)

    def decode(self, rows: Rows) -> Outputs:
        rest = _read_part(rows, 0, 4, torch.float32)
        kept = _read_part(rows, 4, 4 + 2 * _TOP, torch.float16).float()
        numbers = _read_part(rows, 4 + 2 * _TOP, 4 + 4 * _TOP, torch.int16).long() & 0xFFFF
        # rows may come from somebody else, and a GPU does not survive a wrong number
        numbers = numbers.clamp(max=self.width - 1)
        others = (rest / (self.width - _TOP)).log().expand(-1, self.width)
        return Outputs(logits=others.scatter(1, numbers, kept.clamp(min=6e-8).log()))

    def measure_distance(self, rows: Rows, outputs: Outputs) -> float:
        """The largest difference of a probability."""
        fresh = self.decode(self.encode(outputs))
        stored, again = (F.softmax(self.read_values(x), dim=1) for x in (self.decode(rows), fresh))
        return float((stored - again).abs().max())

    @classmethod
    def explain_refusal(cls, need: TermNeed) -> str:
        if refusal := super().explain_refusal(need):
            return refusal
        if need.temperature == 1:
            return ""
        if need.temperature is None:
            return "reads the logits themselves, or probabilities at several temperatures"
        return f"reads the probabilities at temperature {need.temperature:g}, and top10 keeps T=1"


class Float16Format(CacheFormat):
    """``z = scale * h`` with h in float16 and scale in float32 per row: 2 bytes for
    each value and 4 more. The error of a value is at most 1/4096 of the largest one.
    For what ``task=embedding`` reads, and for terms at any temperature.
    """

    name: ClassVar[str] = "float16"
    tolerance: ClassVar[float] = _FLOAT32 + 2**-10

    @property
    def bytes_per_view(self) -> int:
        return 4 + 2 * self.width

    def encode(self, outputs: Outputs) -> Rows:
        values = self.read_values(outputs).float()
        scale = values.abs().amax(dim=1, keepdim=True).clamp(min=_SMALLEST)
        parts = (scale, (values / scale).half())
        return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)

    def decode(self, rows: Rows) -> Outputs:
        return Outputs(logits=self._read_rows(rows))

    @staticmethod
    def _read_rows(rows: Rows) -> Float[Tensor, "rows width"]:
        scale = _read_part(rows, 0, 4, torch.float32)
        return _read_part(rows, 4, rows.shape[1], torch.float16).float().mul_(scale)


class EmbeddingFormat(Float16Format):
    """The embedding in `Float16Format`. The teacher's classifier computes the
    logits.
    """

    name: ClassVar[str] = "embedding"
    serves: ClassVar[frozenset[str]] = frozenset({"logits", "embedding", "classifier"})
    computes: ClassVar[frozenset[str]] = frozenset({"logits", "embedding", "classifier"})
    replays_with: ClassVar[frozenset[str]] = frozenset({"classifier"})

    def decode(self, rows: Rows) -> Outputs:
        return Outputs(embedding=self._read_rows(rows))

    @staticmethod
    def read_values(outputs: Outputs) -> Float[Tensor, "rows width"]:
        assert outputs.embedding is not None
        return outputs.embedding


def _read_part(rows: Rows, start: int, end: int, dtype: torch.dtype) -> Tensor:
    """The bytes from `start` to `end` of each row as numbers."""
    # contiguous() would not copy the part of a single row
    part = rows[:, start:end].clone(memory_format=torch.contiguous_format)
    return part.view(dtype)


FORMATS: Final[Mapping[str, type[CacheFormat]]] = {
    each.name: each
    for each in (ExactFormat, Int8Format, Float16Format, TopTenFormat, EmbeddingFormat)
}
"""All formats by name."""


def explain_width(name: str, classes: int) -> str:
    """Why a format is useless for this number of classes; "" if it is not."""
    if name != TopTenFormat.name:
        return ""
    if Int8Format(classes).bytes_per_view <= TopTenFormat(classes).bytes_per_view:
        return (
            f"stores {TopTenFormat(classes).bytes_per_view} bytes a view, and int8 stores all"
            f" {classes} classes in {Int8Format(classes).bytes_per_view}"
        )
    if classes > _MANY_CLASSES:
        return f"numbers at most {_MANY_CLASSES:,} classes, and the data have {classes:,}"
    return ""


def measure_lost_share(
    exact: Float[Tensor, "rows classes"],
    replayed: Float[Tensor, "rows classes"],
    temperature: float,
) -> float:
    """``mean KL(p || q) / mean KL(p || uniform)`` for the probabilities p of the exact
    and q of the replayed logits at a temperature: the share of what the teacher says
    that a format loses.
    """
    log_p, log_q = (F.log_softmax(z.double() / temperature, dim=1) for z in (exact, replayed))
    lost = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    uniform = torch.full_like(log_p, -torch.tensor(log_p.shape[1]).double().log().item())
    whole = F.kl_div(uniform, log_p, reduction="sum", log_target=True)
    return float(lost / whole.clamp(min=_SMALLEST))


def list_temperatures(needs: Iterable[TermNeed]) -> list[float]:
    """The temperatures at which terms read the teacher's probabilities; 1 for a term
    that names none.
    """
    return sorted({need.temperature or need.softened or 1.0 for need in needs})
