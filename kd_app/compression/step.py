"""What a step of a compression is: one student in, another one out."""

from abc import abstractmethod
from typing import Any, ClassVar

from kd_app.config import Typed
from kd_app.run.workspace import RunModel, Workspace


class Step(Typed):
    """A step as a block of ``conf/compress.yaml`` names it by ``_target_``; the block's
    other keys are the arguments of its ``__init__``.
    """

    recovers: ClassVar[bool] = False
    """It is there to win back what the step before it lost, so that one is judged after
    it.
    """

    ends: ClassVar[bool] = False
    """No other step can go on from its student."""

    @abstractmethod
    def take(
        self, name: str, shop: Workspace, student: RunModel, teacher: RunModel | None
    ) -> RunModel:
        """The student after this step, made or found as the stage `name` of `shop`: its
        folder holds ``model/``, in timm's layout.

        Raises `RequestError` where the step can't be taken, `RunError` where it fails.
        """

    def describe(self, member: RunModel) -> dict[str, Any]:
        """What ``results.json`` says of the step beside its figures."""
        return {}
