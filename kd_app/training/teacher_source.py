"""Sources of the teacher's outputs for a training batch: a running model, a cache on
disk, or a moving average of the student.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import nn

from kd_app.data.batch import Batch
from kd_app.models.outputs import Outputs
from kd_app.models.teacher import FrozenTeacher
from kd_app.training.job import JobTeacher
from kd_app.training.teacher_cache import CachedTeacherLogits


class TeacherSource(nn.Module):
    """The teacher of a training, as a module without parameters and ``state_dict``
    entries, so that ``.to()`` of the training module moves the teacher.
    """

    starts_as_student = False
    """Whether the teacher equals the student before the first optimizer step, so that
    distillation terms may be zero.
    """

    @abstractmethod
    def compute_outputs(self, batch: Batch) -> Outputs:
        """The teacher's outputs for a batch of images normalized for the student."""

    def update_after_step(self, student: nn.Module, step: int) -> None:
        """Update the teacher after optimizer step `step` (the first is 1)."""

    def read_training_state(self) -> dict[str, Any]:
        """The state of the teacher for a training checkpoint."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore the state that `read_training_state` returned."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "TeacherSource":
        # a copy of the training module (an average of its weights) shares the teacher
        return self


class LiveTeacher(TeacherSource):
    """A frozen model that runs on every batch."""

    def __init__(self, teacher: FrozenTeacher) -> None:
        super().__init__()
        self.teacher = teacher

    def compute_outputs(self, batch: Batch) -> Outputs:
        """The outputs for the batch's images, or for its partner images."""
        outputs: Outputs = self.teacher(batch.image if batch.other is None else batch.other)
        return outputs


class CachedTeacher(TeacherSource):
    """The teacher's logits for every view, read from a cache instead of running the
    model.
    """

    def __init__(self, cache: CachedTeacherLogits) -> None:
        super().__init__()
        self.cache = cache

    def compute_outputs(self, batch: Batch) -> Outputs:
        """The cached logits, in float64 for float64 images, else in float32."""
        dtype = torch.float64 if batch.image.dtype == torch.float64 else torch.float32
        return Outputs(logits=self.cache.select(batch).to(dtype))


class StudentEma(LiveTeacher):
    """An exponential moving average of the student's weights (mean teacher).

    ``average = d * average + (1 - d) * student`` after optimizer step s, with ``d =
    min(decay, 1 - 1 / (s + 1))``; integer buffers are copied. `teacher` must contain a
    copy of the student.
    """

    starts_as_student = True

    def __init__(self, teacher: FrozenTeacher, *, decay: float) -> None:
        super().__init__(teacher)
        self.decay = decay

    @torch.no_grad()
    def update_after_step(self, student: nn.Module, step: int) -> None:
        """Move the average toward the student."""
        decay = min(self.decay, 1 - 1 / (step + 1))
        state = student.state_dict()
        for name, average in self.teacher.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(state[name].to(average.dtype), 1 - decay)
            else:
                average.copy_(state[name])

    def read_training_state(self) -> dict[str, Any]:
        """The averaged weights."""
        return self.teacher.model.state_dict()

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore the averaged weights."""
        self.teacher.model.load_state_dict(state)


def build_teacher_source(teacher: JobTeacher, frozen: FrozenTeacher) -> TeacherSource:
    """Build the source of a job's teacher. frozen: the model of the teacher."""
    if teacher.cached_logits is not None:
        return CachedTeacher(CachedTeacherLogits.load(teacher.cached_logits))
    if teacher.ema_decay is not None:
        return StudentEma(frozen, decay=teacher.ema_decay)
    return LiveTeacher(frozen)
