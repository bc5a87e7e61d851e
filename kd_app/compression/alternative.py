"""What a compression has to beat: a smaller net of its cost, trained from scratch."""

from dataclasses import dataclass, replace
from typing import Any

from kd_app.config import RequestError
from kd_app.models.spec import ModelSpec
from kd_app.run.controls import list_candidates, select_closest
from kd_app.run.role_jobs import build_student_job
from kd_app.run.train import train
from kd_app.run.workspace import RunModel, Workspace

STAGE = "alternative"
_SLACK = 1.25
"""So many times the multiply-adds are still 'that cost'; more only where no net has
fewer.
"""


@dataclass(frozen=True)
class Alternative:
    """Which net: 'auto' for the one of `candidates` (nodes of name and kwargs) that is
    nearest in multiply-adds, or a name of timm.
    """

    name: str
    candidates: tuple[dict[str, Any], ...]

    def train(self, shop: Workspace, teacher: RunModel | None, macs: int) -> RunModel:
        """The net of about `macs` multiply-adds, trained on the run's own recipe from
        the same teacher, or found.

        Raises `RequestError` where none of `candidates` can take such images and starts as
        the student does.
        """
        request = self._request(shop, macs)
        shop.console.print(f"The alternative: {request.name}, trained on the run's recipe")
        job = build_student_job(shop, teacher, name=STAGE, model=request)
        return replace(train(shop, job, listener=shop.tracker), role="student")

    def _request(self, shop: Workspace, macs: int) -> ModelSpec:
        if self.name != "auto":
            return _parse_model({"name": self.name})
        found = list_candidates(
            [_parse_model(node) for node in self.candidates],
            shop.spec.student,
            shop.compute_image_stats(),
            len(shop.classes),
        )
        if not found:
            raise RequestError(
                "None of the nets in candidates can take images of"
                f" {shop.compute_image_stats().size}x{shop.compute_image_stats().size} and starts as the run's student does. Name"
                " one: alternative=<a timm model>, or leave it out: alternative=null."
            )
        cheap = [each for each in found if each[1] <= _SLACK * macs]
        return select_closest(cheap or found, macs).spec


def _parse_model(node: dict[str, Any]) -> ModelSpec:
    more: dict[str, Any] = {
        "kwargs": node.get("kwargs", {}),
        "image_size": None,
        "checkpoint": None,
        "factory": None,
    }
    return ModelSpec(role="student", name=node["name"], pretrained="auto", **more)
