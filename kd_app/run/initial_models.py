"""The models of a run before its trainings, to describe and to check."""

from typing import NamedTuple

from kd_app.models.create import create, resolve_input
from kd_app.models.spec import LoadedModel, ModelSpec
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace


class InitialModels(NamedTuple):
    """Student and teacher before they are trained; no teacher with ``teacher=none``."""

    student: LoadedModel
    teacher: LoadedModel | None


def build_initial_models(workspace: Workspace, teacher: RunModel | None) -> InitialModels:
    """Build the models that the plan and the checks read, each once: a large one takes
    seconds. teacher: the loaded teacher if it is used without training.
    """
    spec, loaded = workspace.spec, None if teacher is None else teacher.loaded
    if loaded is None and spec.teacher is not None:
        loaded = load_untrained(workspace, spec.teacher)
    return InitialModels(load_untrained(workspace, spec.student), loaded)


def load_untrained(workspace: Workspace, model: ModelSpec) -> LoadedModel:
    """Build a model as it is before its training in this run."""
    input_spec = resolve_input(model, workspace.compute_image_stats())
    return create(model, input_spec, workspace.count_outputs(model), seed=0)
