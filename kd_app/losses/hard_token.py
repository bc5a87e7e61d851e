"""DeiT: train a distillation token on the class that the teacher predicts."""

from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.two_heads import TwoHeads
from kd_app.models.outputs import Outputs


class HardToken(TwoHeads):
    """``label x CE(z_class, y) + (1 - label) x CE(z_distilled, argmax z_t)``, means
    over the batch.

    The teacher predicts the class of the image that the student gets, mixed or not; the
    label may be mixed. The term includes the labels: do not combine it with
    cross_entropy. Touvron et al., "Training data-efficient image transformers &
    distillation through attention", ICML 2021, arXiv 2012.12877.
    """

    name: ClassVar[str] = "hard_token"

    @property
    def teacher_temperature(self) -> float:
        return 1.0  # the largest probability is that of the largest logit

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        assert teacher.logits is not None
        ours, distilled = self.select_heads(student)
        return self.label * self.compute_label_loss(ours, batch) + (
            1 - self.label
        ) * F.cross_entropy(distilled, teacher.logits.argmax(dim=1))
