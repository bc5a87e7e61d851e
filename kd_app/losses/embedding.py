"""What the terms on embeddings through a linear map share."""

from typing import ClassVar

from torch import Tensor, nn

from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import require_embeddings
from kd_app.models.outputs import Outputs


class EmbeddingTerm(LossTerm):
    """A term on the embeddings [B, D] before the classifier, the student's through a
    linear map, or through nothing where the widths are equal and `always_project` is
    false.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"embedding"})
    name: ClassVar[str]
    """As in ``loss=[...]``."""

    adapter: nn.Module

    def __init__(self, *, always_project: bool) -> None:
        super().__init__()
        self.always_project = always_project

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Make the linear map. Raises `RequestError` when one of the models gives no
        embedding.
        """
        ours, theirs = require_embeddings(self.name, student, teacher)
        needed = self.always_project or ours.shape[1] != theirs.shape[1]
        self.adapter = (
            nn.Linear(ours.shape[1], theirs.shape[1]).to(ours.device) if needed else nn.Identity()
        )

    def pair_embeddings(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """The student's embedding behind the map, and the teacher's."""
        ours, theirs = require_embeddings(self.name, student, teacher)
        return self.adapter(ours), theirs
