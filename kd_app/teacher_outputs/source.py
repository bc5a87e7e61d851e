"""Sources of the teacher's outputs for a training batch: a running model, a cache on
disk, a moving average of the student, or the student itself in another view.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kd_app.data.batch import Batch
from kd_app.losses.adapters import apply_classifier
from kd_app.models.outputs import Outputs
from kd_app.models.taps import Taps
from kd_app.models.teacher import FrozenTeacher
from kd_app.teacher_outputs.cache import TeacherCache


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
    """The teacher's outputs for every view, read from a cache instead of running the
    model.

    teacher: the model whose classifier computes the logits of cached embeddings; it
    must read the classifier.
    """

    def __init__(self, cache: TeacherCache, teacher: FrozenTeacher) -> None:
        super().__init__()
        self.cache = cache
        # the model itself is not needed on the device of the training
        self.teacher = teacher if cache.format.replays_with else None
        # in a tuple, because nn.Module would register the classifier's parameters
        self._classifier: tuple[Callable[[Tensor], Tensor], ...] = ()

    @torch.no_grad()
    def compute_outputs(self, batch: Batch) -> Outputs:
        """The cached outputs, in float64 for float64 images, else in float32."""
        outputs = self.cache.select(batch)
        if batch.image.dtype == torch.float64:
            parts = {name: getattr(outputs, name) for name in ("logits", "embedding")}
            doubles = {name: part.double() for name, part in parts.items() if part is not None}
            outputs = replace(outputs, **doubles)
        if self.teacher is None:
            return outputs
        if not self._classifier:
            # the classifier is known after a forward pass
            classifier = self.teacher(batch.image[:1]).classifier
            assert classifier is not None
            self._classifier = (classifier,)
        assert outputs.embedding is not None
        with torch.autocast(batch.image.device.type, enabled=False):
            logits = apply_classifier(self._classifier[0], outputs.embedding)
        return replace(outputs, logits=logits, classifier=self._classifier[0])


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


class SecondView(TeacherSource):
    """The student itself on a second view of each image, with its gradient, in place of
    a teacher (self-supervised training). taps: of the student.
    """

    def __init__(self, taps: Taps) -> None:
        super().__init__()
        self.taps = taps

    def compute_outputs(self, batch: Batch) -> Outputs:
        """The student's outputs for the batch's second views."""
        assert batch.other is not None, "the data are bound with second views"
        return self.taps(batch.other)


def build_teacher_source(
    teacher: FrozenTeacher | None,
    cache: TeacherCache | None,
    decay: float | None,
    itself: Taps | None = None,
) -> TeacherSource | None:
    """The source of a teacher that reads a cache, is the average of the student with
    this decay, or runs; or of a student that takes its place, by its taps `itself`.
    None without either.
    """
    if itself is not None:
        return SecondView(itself)
    if teacher is None:
        return None
    if cache is not None:
        return CachedTeacher(cache, teacher)
    return LiveTeacher(teacher) if decay is None else StudentEma(teacher, decay=decay)
