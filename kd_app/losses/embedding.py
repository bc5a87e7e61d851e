"""Base class of the terms on embeddings after a linear map."""

from typing import ClassVar

from torch import Tensor, nn

from kd_app.losses.base import Level, LossTerm
from kd_app.losses.pairing import require_embeddings
from kd_app.models.outputs import Outputs


class EmbeddingTerm(LossTerm):
    """A term on the embeddings [B, D] before the classifier. The student's embedding
    passes a linear map, or none if the widths are equal and `always_project` is false.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"embedding"})
    name: ClassVar[str]
    """Name in ``loss=[...]``."""

    adapter: nn.Module

    def __init__(self, *, always_project: bool) -> None:
        super().__init__()
        self.always_project = always_project

    def build(self, student: Outputs, teacher: Outputs) -> None:
        """Build the linear map. Raises `RequestError` if one of the models provides no
        embedding.
        """
        ours, theirs = require_embeddings(self.name, student, teacher)
        if self.always_project or ours.shape[1] != theirs.shape[1]:
            self.adapter = nn.Linear(ours.shape[1], theirs.shape[1]).to(ours.device)
        else:
            self.adapter = nn.Identity()

    def pair_embeddings(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Return the mapped embedding of the student, and the teacher's embedding."""
        ours, theirs = require_embeddings(self.name, student, teacher)
        return self.adapter(ours), theirs
