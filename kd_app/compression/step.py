"""The interface of a compression step: a student in, a smaller student out."""

from abc import abstractmethod
from typing import Any, ClassVar

from kd_app.config import Typed
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace


class Step(Typed):
    """A step, as a block of ``conf/compress.yaml`` names it by ``_target_``. The
    block's other keys are the arguments of ``__init__``.
    """

    recovers: ClassVar[bool] = False
    """Whether the step recovers accuracy that the step before lost. The two are then
    judged together.
    """

    is_final: ClassVar[bool] = False
    """Whether no other step can follow."""

    @abstractmethod
    def take(
        self, name: str, workspace: Workspace, student: RunModel, teacher: RunModel | None
    ) -> RunModel:
        """Compute the student after this step in the stage `name`, or reuse that stage.

        The stage's folder holds ``model/`` in timm's layout. Raises `RequestError` if
        the step can't be applied, and `RunError` if it fails.
        """

    def describe(self, model: RunModel) -> dict[str, Any]:
        """Details of the step for ``results.json``, besides the metrics."""
        return {}
