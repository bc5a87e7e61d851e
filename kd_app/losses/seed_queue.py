"""SEED: match the student's similarities to a queue of the teacher's embeddings."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.base import Level, TermPart
from kd_app.losses.embedding import EmbeddingTerm
from kd_app.models.outputs import Outputs


class SeedQueue(EmbeddingTerm):
    """``mean_b -sum_k p_t(b, k) log p_s(b, k)`` with ``p_s(b, .) = softmax(r(f_s) D' /
    student_temperature)`` and ``p_t(b, .) = softmax(f_t D' / teacher_temperature)``,
    for embeddings f [B, D] of length 1.

    D holds the teacher's embeddings of the last `size` images before the batch, and
    those of the batch itself (in the paper of image b alone), so that an empty queue
    teaches, too. r = a linear map, or the identity if the widths are equal and
    `always_project` is false. After each call the batch replaces the oldest entries of
    the queue, which starts empty; checkpoints include it. Fang, Wang, Wang, Zhang,
    Yang, Liu, "SEED: Self-supervised Distillation For Visual Representation", ICLR
    2021, arXiv 2101.04731.
    """

    level: ClassVar[Level] = "relation"
    name: ClassVar[str] = "seed_queue"
    needs_global_batch: bool = True

    queue: Tensor
    count: Tensor

    def __init__(
        self,
        *,
        size: PositiveInt,
        teacher_temperature: PositiveFloat,
        student_temperature: PositiveFloat,
        always_project: bool,
    ) -> None:
        super().__init__(always_project=always_project)
        self.size = size
        self.keys_temperature = teacher_temperature
        self.student_temperature = student_temperature

    def list_parts(self) -> tuple[TermPart, ...]:
        # a single image has nothing to be compared with while the queue is empty
        return (TermPart(min_images=2),)

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the linear map and the empty queue. Raises `RequestError` if one of the
        models provides no embedding.
        """
        super().build(student, teacher)
        assert teacher.embedding is not None
        width, device = teacher.embedding.shape[1], teacher.embedding.device
        self.register_buffer("queue", torch.zeros(self.size, width, device=device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean over the batch, and add the batch to the queue."""
        ours, theirs = (F.normalize(each, dim=1) for each in self.pair_embeddings(student, teacher))
        # a copy: the queue changes before the backward pass
        keys = self.queue[: int(self.count.clamp(max=self.size))].to(theirs.dtype, copy=True)
        keys = torch.cat((keys, theirs))
        soft = (theirs @ keys.T / self.keys_temperature).softmax(dim=1)
        log = (ours @ keys.T / self.student_temperature).log_softmax(dim=1)
        self._append(theirs)
        return -(soft * log).sum(dim=1).mean()

    @torch.no_grad()
    def _append(self, embeddings: Float[Tensor, "batch width"]) -> None:
        last = embeddings[-self.size :].to(self.queue.dtype)
        places = (self.count + torch.arange(len(last), device=last.device)) % self.size
        self.queue[places] = last
        self.count += len(last)
