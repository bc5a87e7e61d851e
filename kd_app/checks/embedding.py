"""Checks of a teacher whose embedding a student learns, and of the images that judge
it.
"""

from collections.abc import Iterator
from copy import copy
from typing import Final

import numpy as np
from jaxtyping import Bool
from torch import nn

from kd_app.checks.alternative import InputAlternative, compute_p_value
from kd_app.checks.context import CheckContext
from kd_app.checks.finding import Finding, note, refuse, warn
from kd_app.checks.teacher_input import PixelChange, iterate_pixel_changes
from kd_app.config import InputSpec
from kd_app.deployment.predictions import predict
from kd_app.metrics.embedding_report import COLLAPSED_RANK, COLLAPSED_SPREAD, FEWEST_TO_SPREAD
from kd_app.metrics.embedding_shape import compute_effective_rank, compute_spread
from kd_app.metrics.neighbors import classify_by_neighbors, compute_overlap, find_neighbors
from kd_app.metrics.record import Predictions
from kd_app.models.composite import RuntimeModel
from kd_app.models.create import create, resolve_input
from kd_app.models.weights_source import load_timm_config

_FEW_QUERIES: Final = 200
"""Held-out images below which an interval of the overlap is wider than the differences
between methods.
"""
_LOW_RANK: Final = 8.0
_FEWEST_LABELS: Final = 100
_FEWEST_IMAGES: Final = 64
"""Images that are shown to a teacher at another size, at least."""


def check_teacher_embedding(context: CheckContext) -> Iterator[Finding]:
    """Find a teacher that gives all images nearly the same embedding."""
    if context.teacher is None:
        return
    embeddings = context.judged.logits
    if len(embeddings) < FEWEST_TO_SPREAD:
        return
    rank, name = compute_effective_rank(embeddings), context.teacher.spec.name
    measured = (
        f"the effective rank of its embedding is {rank:.1f} on {len(embeddings):,} images, of at"
        f" most {min(embeddings.shape)}"
    )
    if rank < COLLAPSED_RANK or compute_spread(embeddings) < COLLAPSED_SPREAD:
        yield refuse(
            "collapsed-teacher",
            f"The teacher {name} gives all images nearly the same embedding: {measured}. Expected:"
            " weights that tell these images apart. Check the weights, their normalization and"
            " teacher.image_size, or choose another teacher.",
        )
    elif rank < _LOW_RANK:
        yield warn(
            "flat-teacher",
            f"The teacher {name} hardly tells the images apart: {measured}. Its neighbors teach"
            " little. Larger images (teacher.image_size) or another teacher may help.",
        )


def check_num_queries(context: CheckContext) -> Iterator[Finding]:
    """Find a test set that is too small to judge by."""
    queries = context.workspace.data.sizes["test"]
    if queries < _FEW_QUERIES:
        yield warn(
            "few-queries",
            f"{queries:,} test images are few to judge an embedding by: intervals will be wide."
            f" Add images, or raise data.split.test; {_FEW_QUERIES} or more are better.",
        )


def check_teacher_pixels(context: CheckContext) -> Iterator[Finding]:
    """Show how other pixels (normalization, channel order, crop, size) change the
    teacher's neighbors; with labels, warn of pixels whose neighbors are better.

    Each image of the sample is compared with all others.
    """
    # a file for another runtime normalizes by itself
    if context.teacher is None or isinstance(context.teacher.loaded.model, RuntimeModel):
        return
    kept, k = [], int(context.workspace.spec.config["neighbors"]["k"])
    before = context.predictions
    changes = [(each, before) for each in iterate_pixel_changes(context)]
    for each, own in [*changes, *_change_size(context)]:
        near, far = (_find_own_neighbors(one, k) for one in (own, each.predictions))
        kept.append(f"{each.change} {compute_overlap(far, near).mean():.0%}")
        known = own.target >= 0
        if known.sum() < _FEWEST_LABELS:
            continue
        hits, after = (_classify(one, k) for one in (own, each.predictions))
        if InputAlternative(each.name, each.change, each.fix, hits, after).is_better(
            context.limits
        ):
            yield warn(
                each.name,
                f"The nearest images of the teacher {context.teacher.spec.name} have the label of"
                f" {hits.mean():.1%} of {len(hits):,} images with its configured input, and of"
                f" {after.mean():.1%} with {each.change} (p = {compute_p_value(hits, after):.1g},"
                f" exact McNemar test), so it was probably trained like that. {each.fix}",
            )
    if kept:
        pixels = context.teacher.loaded.pixels
        mean, std = (
            ", ".join(f"{value:.3g}" for value in each) for each in (pixels.mean, pixels.std)
        )
        yield note(
            "teacher-pixels",
            f"The teacher sees {pixels.height}x{pixels.width} pixels with mean [{mean}] and std"
            f" [{std}]. Of its {k} nearest of {len(before.index):,} images, other pixels keep:"
            f" {'; '.join(kept)}. Only labels, or its authors, say which ones are right.",
        )


def _find_own_neighbors(predictions: Predictions, k: int) -> np.ndarray:
    rows = predictions.logits
    return find_neighbors(rows, rows, min(k, len(rows) - 1), is_same=True).rows


def _classify(predictions: Predictions, k: int) -> Bool[np.ndarray, " labeled"]:
    """Whether the nearest labeled images have the label of each labeled image."""
    known = predictions.target >= 0
    rows, labels = predictions.logits[known], predictions.target[known]
    near = find_neighbors(rows, rows, min(k, len(rows) - 1), is_same=True).rows
    right: np.ndarray = classify_by_neighbors(labels[near], int(labels.max()) + 1) == labels
    return right


def _change_size(context: CheckContext) -> Iterator[tuple[PixelChange, Predictions]]:
    """The outputs for images of the size in timm's configuration of the weights, if the
    teacher sees another one; and those for the same images at its configured size.
    """
    teacher, data = context.teacher, context.workspace.data
    assert teacher is not None
    own = load_timm_config(teacher.spec.origin).get("input_size")
    configured = teacher.loaded.pixels
    has_other = own is not None and tuple(own[1:]) != (configured.height, configured.width)
    if own is None or not has_other or context.is_quick or "uint8" not in data.capabilities:
        return
    spec = copy(teacher.spec)
    spec.image_size = [own[1], own[2]]
    pixels = resolve_input(spec, context.workspace.compute_image_stats())
    cost = max(1.0, pixels.height * pixels.width / (configured.height * configured.width))
    images = max(_FEWEST_IMAGES, int(context.num_images / cost))
    other = create(spec, pixels, 0, seed=0)

    def embed(module: nn.Module, input_spec: InputSpec) -> Predictions:
        batches = context.load_batches(input_spec, images)
        return predict(module, batches, input_spec, device=context.workspace.spec.trainer.device)

    change = f"images of {own[1]}x{own[2]}, the size in timm's configuration of the weights,"
    fix = f"Set teacher.image_size={own[1] if own[1] == own[2] else f'[{own[1]},{own[2]}]'}."
    outputs = embed(other.model, pixels)
    yield (
        PixelChange("teacher-size", change, fix, outputs),
        embed(teacher.loaded.model, configured),
    )
