"""DeiT with soft targets: train a distillation token on the teacher's probabilities."""

from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kd_app.data.batch import Batch
from kd_app.losses.soft_target import SoftTarget
from kd_app.losses.two_heads import Share, TwoHeads
from kd_app.models.outputs import Outputs


class SoftToken(TwoHeads):
    """``label x CE(z_class, y) + (1 - label) x T^2 mean_b KL(softmax(z_t / T) ||
    softmax(z_distilled / T))``.

    The authors' code divides the second part by batch x classes, which is K times
    smaller than the formula; here it is divided by the batch. The term includes the
    labels: do not combine it with cross_entropy. Touvron et al., "Training
    data-efficient image transformers & distillation through attention", ICML 2021,
    arXiv 2012.12877.
    """

    name: ClassVar[str] = "soft_token"

    def __init__(
        self, *, label: Share, temperature: Annotated[float, Field(ge=0.01, le=1000)]
    ) -> None:
        super().__init__(label=label)
        self.temperature = temperature
        self.label_temperature = temperature
        self._soft_target = SoftTarget(temperature=temperature, standardize=False)

    @property
    def teacher_temperature(self) -> float | None:
        return self.label_temperature

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Float[Tensor, ""]:
        ours, distilled = self.select_heads(student)
        divergence: Tensor = self._soft_target(Outputs(logits=distilled), teacher, batch)
        return self.label * self.compute_label_loss(ours, batch) + (1 - self.label) * divergence
