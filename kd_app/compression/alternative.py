"""The baseline of a compression: a smaller model of the same cost, trained from
scratch.
"""

from dataclasses import dataclass, replace
from typing import Any

from kd_app.config import RequestError
from kd_app.models.spec import ModelSpec
from kd_app.run.model import RunModel
from kd_app.run.role_jobs import build_student_job
from kd_app.run.train import train
from kd_app.run.workspace import Workspace
from kd_app.specs.controls import list_candidates, select_closest

STAGE = "alternative"
_SLACK = 1.25
"""Candidates of up to this many times the multiply-adds count as no larger."""


@dataclass(frozen=True)
class Alternative:
    """A smaller model. name: a timm model, or 'auto' for the one of `candidates` (dicts
    with name and kwargs) that is closest in multiply-adds.
    """

    name: str
    candidates: tuple[dict[str, Any], ...]

    def train(self, workspace: Workspace, teacher: RunModel | None, macs: int) -> RunModel:
        """Train a model of about `macs` multiply-adds with the run's recipe and
        teacher, or reuse one.

        Raises `RequestError` if no candidate fits the images and starts like the
        student.
        """
        spec = self._select_spec(workspace, macs)
        workspace.console.print(f"The alternative: {spec.name}, trained with the run's recipe")
        job = build_student_job(workspace, teacher, name=STAGE, model=spec)
        return replace(train(workspace, job, listener=workspace.tracker), role="student")

    def _select_spec(self, workspace: Workspace, macs: int) -> ModelSpec:
        if self.name != "auto":
            return parse_model({"name": self.name})
        stats = workspace.compute_image_stats()
        candidates = list_candidates(
            [parse_model(node) for node in self.candidates],
            workspace.spec.student,
            stats,
            len(workspace.classes),
        )
        if not candidates:
            raise RequestError(
                f"None of the models in candidates accepts images of {stats.size}x{stats.size} and"
                " starts like the run's student. Set alternative=<a timm model>, or"
                " alternative=null for none."
            )
        # A larger model is used only if no candidate is small enough.
        cheap = [each for each in candidates if each[1] <= _SLACK * macs]
        return select_closest(cheap or candidates, macs).spec


def parse_model(node: dict[str, Any]) -> ModelSpec:
    """The model of one entry of ``candidates``."""
    return ModelSpec(
        role="student",
        name=node["name"],
        pretrained="auto",
        kwargs=node.get("kwargs", {}),
        image_size=None,
        checkpoint=None,
        factory=None,
    )
