"""Measurement of a finished run's embeddings on its own images, or on others."""

from collections.abc import Mapping

from kd_app.config import RequestError
from kd_app.measurement.builder import ResultsBuilder
from kd_app.measurement.classification import add_data, describe_model, measure_speed
from kd_app.measurement.embedding import (
    compare,
    describe_labels,
    describe_split,
    judge,
    load_untrained,
)
from kd_app.measurement.embedding_map import write_embedding_map
from kd_app.measurement.member_overlap import measure_members
from kd_app.measurement.neighbor_images import write_neighbor_images
from kd_app.metrics.embedding_report import GALLERY, STUDENT, TEACHER
from kd_app.reporting.results import Results
from kd_app.run.known_images import list_measured
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace
from kd_app.run_files import EMBEDDING_MAP, NEIGHBORS
from kd_app.specs.task_choice import NeighborSettings


def measure_embeddings_again(
    builder: ResultsBuilder,
    workspace: Workspace,
    models: Mapping[str, RunModel],
    split: str,
    *,
    before: Results,
    is_own: bool,
) -> None:
    """Measure teacher, student and untrained models on a split.

    Held-out images of the run are compared with its training images. Other images, and
    a split that holds training images, are compared with each other: each image with
    all others of the split.

    Raises `RequestError` if the teacher is gone, or for too few images.
    """
    assert before.embedding is not None
    for role in (TEACHER, STUDENT):
        if role not in models:
            raise RequestError(
                f"The {role} of the run is gone, and an embedding is measured by the teacher's"
                " neighbors. Expected: the weights that the run used. Bring them back, or repeat"
                " the run's kd-distill command."
            )
    neighbors = NeighborSettings(**workspace.spec.config["neighbors"])
    gallery = GALLERY if is_own and split in ("validation", "test") else split
    others = len(list_measured(workspace.data, gallery)) - (gallery == split)
    if others < neighbors.k:
        raise RequestError(
            f"neighbors.k={neighbors.k} neighbors of each image are compared, and there are only"
            f" {max(others, 0)} other images. Expected: more images that differ from each other."
        )
    add_data(builder, workspace)
    # a control may have been measured without its projector, which its stage still has
    models = {role: models[role] for role in (TEACHER, STUDENT)}
    for role, model in models.items():
        builder.models[role] = describe_model(workspace, model, before.models[role].license)
    comparison = compare(
        workspace,
        {**models, **load_untrained(workspace)},
        split,
        neighbors.k,
        builder.rule.confidence,
        is_same=gallery == split,
    )
    builder.embedding = before.embedding.model_copy(
        update={
            "validation": None,
            "test": describe_split(comparison),
            "verdict": judge(comparison, neighbors.margin, split),
            "controls": {},
            "members": measure_members(models[TEACHER].spec, comparison),
        }
    )
    builder.notes += describe_labels(comparison)
    write_neighbor_images(builder.out / NEIGHBORS, workspace, comparison, gallery, split)
    write_embedding_map(builder.out / EMBEDDING_MAP, workspace, comparison, split)
    builder.speed = measure_speed(workspace, models)
