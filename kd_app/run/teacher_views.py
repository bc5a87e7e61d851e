"""The stages that hold the teacher's outputs for the views of a run's trainings."""

import math
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from kd_app.config import InputSpec, RunError
from kd_app.data.base import ViewReplay
from kd_app.models.license import UNKNOWN
from kd_app.run.cache_plan import CachePlan, choose_cache_format, choose_max_views
from kd_app.run.model import RunModel
from kd_app.run.workspace import Workspace
from kd_app.stages import StagePart
from kd_app.teacher_outputs.cache import CACHE_STAGE, CachedTeacherModel, TeacherCache
from kd_app.teacher_outputs.choice import list_needs
from kd_app.teacher_outputs.filling import CacheFiller, check_space
from kd_app.teacher_outputs.format import (
    MAX_LOST_SHARE,
    CacheFormat,
    Int8Format,
    list_temperatures,
)
from kd_app.training.job import CachedOutputs, Recipe
from kd_app.training.timing import count_steps_per_epoch

_LEAST_BLOCK, _MOST_BLOCKS = 2**15, 8
"""Images of a shard at least, and shards of a view at most: the units that processes
share, in few files.
"""

Images = Int64[np.ndarray, " images"]


def cache_teacher_views(
    workspace: Workspace,
    teacher: RunModel,
    student_input: InputSpec,
    recipe: Recipe,
    *,
    sees_partners: bool,
) -> CachedOutputs:
    """The teacher's outputs for the views that trainings with this recipe and this
    student's input see, computed once.

    sees_partners: the teacher gets other images (a control). A sample of the
    outputs is inferred again and compared, whenever the cache is opened.

    Raises `RunError` if the disk is too small, a format loses too much, or the outputs
    are not those of this teacher.
    """
    replay = workspace.data.replay(student_input)
    assert replay is not None, "build_spec requires data with views"
    filler = _build_filler(workspace, teacher, student_input, replay)
    images = list_images_by_view(workspace, replay, recipe, sees_partners=sees_partners)
    format = choose_cache_format(workspace.spec, workspace.classes, lambda: teacher.loaded)
    cache = _ShardCache(workspace, teacher, filler, images)
    if not cache.is_whole(format):
        format = _choose_measured(workspace, filler, format, images)
    return cache.open(format)


def _build_filler(
    workspace: Workspace, teacher: RunModel, student_input: InputSpec, replay: ViewReplay
) -> CacheFiller:
    trainer, weights = workspace.spec.trainer, teacher.loaded.weights
    licenses = workspace.spec.licenses
    is_trained_here = bool(teacher.record)
    license = (
        licenses.resolve_trained_license("teacher", distilled=False)
        if is_trained_here
        else licenses.teacher or UNKNOWN
    )
    return CacheFiller(
        teacher.loaded,
        CachedTeacherModel(name=teacher.spec.name, sha256=weights.sha256, license=license),
        replay,
        student_input,
        trainer.device,
        channels_last=trainer.channels_last,
        say=workspace.console.print_transient,
    )


def list_images_by_view(
    workspace: Workspace, replay: ViewReplay, recipe: Recipe, *, sees_partners: bool
) -> dict[int, Images]:
    """By view, the ascending numbers of the images that the training reads.

    All images of a view, which other seeds share; only those of the first steps if the
    trainer limits the steps of an epoch. All views if epochs are timed.
    """
    spec, data = workspace.spec, workspace.data
    is_timed = any(control.match_wall_time for control in spec.controls.values())
    epochs = replay.views if is_timed else max(1, min(replay.views, recipe.max_epochs))
    views = dict.fromkeys(range(epochs), replay.rows)
    world = spec.trainer.world_size
    steps = count_steps_per_epoch(data, spec.trainer).training
    is_limited = steps < data.count_steps_per_epoch(world)[0]
    if not is_limited or is_timed or sees_partners or spec.trainer.limits["overfit_batches"]:
        return views
    images_a_step = min(data.batch_size * world, len(replay.rows))
    return replay.plan(recipe.seed, recipe.max_epochs, images_a_step, steps)


def _choose_measured(
    workspace: Workspace, filler: CacheFiller, format: CacheFormat, images: dict[int, Images]
) -> CacheFormat:
    """The format, or int8 in place of one that `auto` chose and that loses too much
    of the probabilities, if the task reads any.

    Raises `RunError` for a format that was chosen by name and loses too much.
    """
    settings = workspace.spec.teacher_outputs
    needs = list_needs(workspace.spec.build_teacher_losses(), workspace.task)
    if format.is_lossless or not workspace.task.reads_labels:
        return format
    shares = filler.measure_lost_shares(format, list_temperatures(needs))
    temperature, share = max(shares.items(), key=lambda item: item[1])
    if share <= MAX_LOST_SHARE:
        return format
    reason = (
        f"{format.name} loses {share:.1%} of the teacher's KL divergence from the uniform"
        f" distribution at temperature {temperature:g}, more than {MAX_LOST_SHARE:.0%}"
    )
    smaller = Int8Format(len(workspace.classes))
    if settings.cache != "auto" or format == smaller:
        raise RunError(
            f"teacher.cache={settings.cache}: {reason}. Set teacher.cache=exact, or"
            " teacher.outputs=live."
        )
    workspace.console.print(f"Note: teacher.cache=auto uses int8: {reason}.")
    if settings.cache_gb is not None:
        views = len(images)
        plan = CachePlan(smaller, views, max(len(each) for each in images.values()))
        if choose_max_views(plan, settings.cache_gb) < views:
            raise RunError(
                f"teacher.cache_gb={settings.cache_gb:g} is too little for int8"
                f" ({plan.describe()}), and {reason}. Set teacher.cache=int8, which uses fewer"
                " views, or raise teacher.cache_gb."
            )
    return smaller


@dataclass(frozen=True)
class _ShardCache:
    """The shards of the views `images` as stages."""

    workspace: Workspace
    teacher: RunModel
    filler: CacheFiller
    images: dict[int, Images]

    def is_whole(self, format: CacheFormat) -> bool:
        """Whether all shards are there."""
        return not self._list_missing(format)

    def _list_missing(self, format: CacheFormat) -> list[StagePart]:
        return [
            part
            for part in self._list_parts(format)
            if self.workspace.find(CACHE_STAGE, part.config, part.inputs) is None
        ]

    def open(self, format: CacheFormat) -> CachedOutputs:
        """Compute the shards that are missing, and check a sample of all."""
        missing = sum(part.config["images"] for part in self._list_missing(format))
        if missing:
            root = self.workspace.stages.root
            root.mkdir(parents=True, exist_ok=True)
            content = f"{missing:,} views of images"
            check_space(root, missing * format.bytes_per_view, content)
        stages = self.workspace.find_or_build_all(CACHE_STAGE, self._list_parts(format))
        folders = tuple(stage.path for stage in stages)
        self.filler.check(TeacherCache.load(folders))
        return CachedOutputs(format.name, folders)

    def _list_parts(self, format: CacheFormat) -> list[StagePart]:
        """The shards in the order in which a training reads them."""
        parts = []
        for view, images in self.images.items():
            blocks = _split_blocks(images)
            for number, block in enumerate(blocks, start=1):
                title = f", part {number} of {len(blocks)}" if len(blocks) > 1 else ""
                fill = partial(self._fill, format, view, block, title)
                parts.append(StagePart(self._describe(format, view, block), self._inputs, fill))
        return parts

    def _fill(
        self, format: CacheFormat, view: int, images: Images, title: str, folder: Path
    ) -> None:
        title = f" of {len(self.images)}{title}"
        self.filler.fill(format, view, images, folder, title=title)

    def _describe(self, format: CacheFormat, view: int, images: Images) -> dict[str, object]:
        return {
            "model": self.teacher.spec.name,
            "pixels": vars(self.teacher.loaded.pixels),
            "sees": vars(self.filler.student_input),
            "format": format.name,
            "number": view,
            "images": len(images),
            "rows": _hash_numbers(images),
            **self.filler.replay.identity,
        }

    @property
    def _inputs(self) -> dict[str, str]:
        weights = self.teacher.loaded.weights.sha256
        return {"data": self.workspace.data.fingerprint, "weights": weights}


def _split_blocks(images: Images) -> list[Images]:
    size = max(_LEAST_BLOCK, math.ceil(len(images) / _MOST_BLOCKS))
    return [images[start : start + size] for start in range(0, len(images), size)]


def _hash_numbers(images: Images) -> str:
    return sha256(np.ascontiguousarray(images, "<i8").tobytes()).hexdigest()
