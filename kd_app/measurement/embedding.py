"""Measurement of a run's embeddings: teacher, student and the models beside them."""

import shutil
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from kd_app.callbacks.curve_log import FILE
from kd_app.config import RequestError, RunError
from kd_app.measurement.builder import ResultsBuilder, SplitName
from kd_app.measurement.classification import add_data, describe_model, find_license, measure_speed
from kd_app.measurement.embedding_map import write_embedding_map
from kd_app.measurement.member_overlap import measure_members
from kd_app.measurement.neighbor_images import write_neighbor_images
from kd_app.metrics.embedding_report import (
    GALLERY,
    OF_QUERIES,
    STUDENT,
    TEACHER,
    UNTOUCHED,
    EmbeddingComparison,
    cut_width,
    load_embeddings,
)
from kd_app.metrics.neighbors import compute_overlap, find_neighbors
from kd_app.models.create import create, measure_width, resolve_input
from kd_app.models.save import EMBEDDING, save_model
from kd_app.models.spec import ModelSpec
from kd_app.reporting.embedding_results import (
    EmbeddingMetrics,
    EmbeddingRecord,
    EmbeddingSplit,
    EmbeddingVerdict,
)
from kd_app.reporting.metrics import Estimate
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace
from kd_app.run_files import EMBEDDING_MAP, NEIGHBORS
from kd_app.specs.task_choice import EmbeddingSettings, NeighborSettings
from kd_app.tasks.embedding import RANDOM
from kd_app.training.fit import MODEL, build_trained_spec
from kd_app.training.record import RECORD, describe_outcome

Ships = Literal["projector", "backbone"]
PCA: Final = "pca"
_WHOLE: Final = 0.995
"""Limits of the purity above this are not worth a note."""


def check_queries(workspace: Workspace) -> None:
    """Raise `RequestError` for too few images to have `neighbors.k` neighbors."""
    k, sizes = NeighborSettings(**workspace.spec.config["neighbors"]).k, workspace.data.sizes
    if sizes[GALLERY] <= k:
        raise RequestError(
            f"neighbors.k={k} neighbors are compared, and {sizes[GALLERY]} training image(s) are"
            f" the gallery. Expected: more than {k} images that differ from each other. Add images,"
            " or lower neighbors.k."
        )


def measure_embeddings(
    builder: ResultsBuilder,
    workspace: Workspace,
    models: dict[str, RunModel],
    splits: Mapping[SplitName, str],
    *,
    sweep: Path | None = None,
    selected: Mapping[str, RunModel] | None = None,
) -> None:
    """Measure the embeddings of teacher, controls, student and untrained models on
    `splits`, and put the model that ships into `models`. selected: not read, because no
    student is trained again.

    Raises `RunError` for a student that gives all images nearly the same embedding.
    """
    add_data(builder, workspace)
    settings = EmbeddingSettings.read(workspace.spec.config)
    neighbors = NeighborSettings(**workspace.spec.config["neighbors"])
    trained = [role for role in models if role != TEACHER]
    outputs = {
        role: choose_output(workspace, models[TEACHER], models[role], neighbors.k, settings)
        for role in trained
    }
    for role, (ships, _) in outputs.items():
        if ships == "backbone":
            models[role] = build_backbone(workspace, models[role])
    for role in (TEACHER, *trained):
        license = find_license(workspace, models[role])
        builder.models[role] = describe_model(workspace, models[role], license)
        builder.notes += [f"{role}: {each}" for each in describe_outcome(models[role].record)]
    others = load_untrained(workspace)
    ships, candidates = outputs.pop(STUDENT)
    record = EmbeddingRecord(
        teacher_embedding=models[TEACHER].spec.describe_embedding(),
        ships=ships,
        candidates=candidates,
        controls={role: output for role, (output, _) in outputs.items()},
        untouched=others[UNTOUCHED].loaded.weights.source,
    )
    builder.embedding = record
    for part, split in splits.items():
        comparison = compare(
            workspace, {**models, **others}, split, neighbors.k, builder.rule.confidence
        )
        setattr(record, part, describe_split(comparison))
        record.verdict = judge(comparison, neighbors.margin, split)
        _check_collapse(comparison)
    builder.notes += describe_labels(comparison)
    record.members = measure_members(models[TEACHER].spec, comparison)
    write_neighbor_images(builder.out / NEIGHBORS, workspace, comparison, GALLERY, split)
    write_embedding_map(builder.out / EMBEDDING_MAP, workspace, comparison, split)
    builder.speed = measure_speed(workspace, models, sweep)


def choose_output(
    workspace: Workspace, teacher: RunModel, student: RunModel, k: int, settings: EmbeddingSettings
) -> tuple[Ships, dict[str, float | None]]:
    """Choose on validation whether the projector of a student or control ships; the
    overlap with the teacher's neighbors of both outputs.
    """
    splits = (GALLERY, "validation")
    gallery, queries = (workspace.load_predictions(teacher, split).logits for split in splits)
    ours = [workspace.load_predictions(student, split) for split in splits]
    outputs: dict[Ships, list[np.ndarray]] = {"projector": [each.logits for each in ours]}
    is_whole = all(
        each.embedding is not None and len(each.embedding) == len(each.index) for each in ours
    )
    can_cut = hasattr(student.loaded.model, "reset_classifier")
    if is_whole and can_cut and settings.keep_projector is not True:
        outputs["backbone"] = [each.embedding for each in ours if each.embedding is not None]
    theirs = find_neighbors(queries, gallery, k).rows
    overlaps: dict[str, float | None] = {
        name: float(compute_overlap(find_neighbors(near, far, k).rows, theirs).mean())
        for name, (far, near) in outputs.items()
    }
    if settings.keep_projector is False and "backbone" in outputs:
        return "backbone", overlaps
    best = max(outputs, key=lambda name: overlaps[name] or 0.0)
    return best, overlaps


def build_backbone(workspace: Workspace, student: RunModel) -> RunModel:
    """A student or control without its projector, saved as a stage."""
    assert student.folder is not None
    source, config = student.folder, {"model": student.spec.name}

    def build(folder: Path) -> None:
        model: Any = student.loaded.model
        model.reset_classifier(0)
        save_model(
            model.cpu().eval(),
            folder / MODEL,
            pixels=student.loaded.pixels,
            classes=(),
            license=find_license(workspace, student),
            entries={EMBEDDING: {"width": measure_width(student.loaded)}},
        )
        for name in (RECORD, FILE):
            shutil.copyfile(source / name, folder / name)

    inputs = {"weights": student.loaded.weights.sha256}
    stage = workspace.find_or_build(f"backbone-{student.role}", config, inputs, build)
    spec = build_trained_spec(student.spec, stage.path)
    loaded = create(spec, student.loaded.pixels, 0, seed=0)
    return replace(student, spec=spec, loaded=loaded, folder=stage.path)


def load_untrained(workspace: Workspace) -> dict[str, RunModel]:
    """The student before its training, without a projector; and the same net with
    random weights, if the student starts from others.
    """
    student = workspace.spec.student
    untouched = copy(student)
    untouched.role = UNTOUCHED
    specs = {UNTOUCHED: untouched}
    if student.origin.has_weights and student.factory is None:
        random = ModelSpec(
            role=RANDOM,
            name=student.origin.name.split(".")[0],
            pretrained=False,
            checkpoint=None,
            kwargs=student.kwargs,
            image_size=student.image_size,
            factory=None,
        )
        specs[RANDOM] = random
    pixels = resolve_input(student, workspace.compute_image_stats())
    seed = workspace.spec.recipe.seed
    models = {}
    for role, spec in specs.items():
        workspace.task.bind_model(spec, workspace.classes)
        # a module of one's own has no form without its projector
        outputs = workspace.count_outputs(student if spec.factory else spec)
        loaded = create(spec, pixels, outputs, seed=seed)
        models[role] = RunModel(role, spec, loaded)
    return models


def compare(
    workspace: Workspace,
    loaded: Mapping[str, RunModel],
    split: str,
    k: int,
    confidence: float,
    *,
    is_same: bool = False,
) -> EmbeddingComparison:
    """The embeddings of all models, the queries those of a split; and the teacher's cut
    to the student's width, if that is smaller. is_same: the split is the gallery, too.
    """
    loads = {role: partial(workspace.load_predictions, model) for role, model in loaded.items()}
    embeddings, labels = load_embeddings(loads, split, len(workspace.classes), is_same=is_same)
    teacher, width = embeddings[TEACHER], measure_width(loaded[UNTOUCHED].loaded)
    if width < min(teacher.gallery.shape):
        embeddings[PCA] = cut_width(teacher, width)
    first = (TEACHER, PCA, RANDOM, UNTOUCHED)
    controls = (role for role in loaded if role not in (*first, STUDENT))
    order = [role for role in (*first, *controls, STUDENT) if role in embeddings]
    models = {role: embeddings[role] for role in order}
    return EmbeddingComparison(models, labels, k, confidence, is_same=is_same)


def describe_split(comparison: EmbeddingComparison) -> EmbeddingSplit:
    """The part of the results about one split."""
    metrics = {}
    for role, scores in comparison.scores.items():
        values = {
            name: _bound(*comparison.estimate(role, name))
            for name in OF_QUERIES
            if name in scores.columns
        }
        metrics[role] = EmbeddingMetrics(
            width=comparison.models[role].queries.shape[1],
            cka=scores.cka,
            uniformity=scores.uniformity,
            effective_rank=scores.effective_rank,
            **values,
        )
    measured = comparison.scores[STUDENT].columns
    first = comparison.models[TEACHER]
    return EmbeddingSplit(
        num_queries=len(first.queries),
        num_gallery=len(first.gallery) - comparison.is_same,
        gallery="others" if comparison.is_same else "train",
        num_labeled=comparison.num_labeled,
        k=comparison.k,
        confidence=comparison.confidence,
        models=metrics,
        gap_closed={name: _bound(*comparison.estimate_gap_closed(name)) for name in measured},
        gains={
            role: {
                name: _bound(*comparison.estimate_difference(STUDENT, role, name))
                for name in measured
            }
            for role in comparison.models
            if role != STUDENT
        },
    )


def describe_labels(comparison: EmbeddingComparison) -> list[str]:
    """Return a note if no embedding can have a purity of 1."""
    if not comparison.num_labeled or (limit := comparison.purity_limit) > _WHOLE:
        return []
    return [
        f"The purity of a perfect embedding would be {limit:.1%}, because some labels have fewer"
        f" than {comparison.k} images among those that are compared. Lower neighbors.k, or label"
        " more images."
    ]


def _bound(value: float, interval: tuple[float, float]) -> Estimate:
    return Estimate(value=value, low=interval[0], high=interval[1])


def judge(comparison: EmbeddingComparison, margin: float, split: str) -> EmbeddingVerdict:
    """Compare the interval of the student's overlap with ``1 - margin``. Nothing is
    kept where chance finds as much.
    """
    value, (low, high) = comparison.estimate(STUDENT, "overlap")
    if not (low <= high):
        # no resample differs, which does not show that the share is exact
        low, high = 0.0, 1.0
    limit = 1 - margin
    outcome: Literal["kept", "lost", "not shown"] = (
        "lost" if high < limit else "kept" if low >= limit > comparison.chance else "not shown"
    )
    return EmbeddingVerdict(
        outcome=outcome,
        margin=margin,
        confidence=comparison.confidence,
        overlap=value,
        low=low,
        high=high,
        num_images=len(comparison.models[STUDENT].queries),
        split=split,
    )


def _check_collapse(comparison: EmbeddingComparison) -> None:
    if comparison.is_collapsed:
        ranks = comparison.gallery_ranks
        raise RunError(
            "The student's embedding has collapsed: it gives all images nearly the same direction"
            f" (effective rank {ranks[STUDENT]:.1f} on training images, the teacher's is"
            f" {ranks[TEACHER]:.1f}). Lower optimizer.lr, train for more"
            " epochs, or choose another loss ('loss=[embedding_cosine]')."
        )
