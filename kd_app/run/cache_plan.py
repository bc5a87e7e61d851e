"""The size of a run's teacher cache: its format, its views, and its bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kd_app.config import RequestError
from kd_app.data.base import RunData
from kd_app.models.create import create, measure_width, resolve_input
from kd_app.models.spec import ImageStats, LoadedModel
from kd_app.specs.spec import RunSpec
from kd_app.teacher_outputs.choice import choose_embedding_format, choose_format, list_needs
from kd_app.teacher_outputs.filling import measure_embedding_width
from kd_app.teacher_outputs.format import CacheFormat


@dataclass(frozen=True)
class CachePlan:
    """The cached outputs of one teacher: `views` of `images` training images."""

    format: CacheFormat
    views: int
    images: int

    @property
    def size(self) -> int:
        """Bytes of the rows."""
        return self.format.bytes_per_view * self.views * self.images

    def describe(self) -> str:
        """'int8, 1,008 bytes a view, 4 views of 50,000 images, 0.20 GB'."""
        return (
            f"{self.format.name}, {self.format.bytes_per_view:,} bytes a view, {self.views} views"
            f" of {self.images:,} images, {self.size / 1e9:.2g} GB"
        )


def plan_cache(
    spec: RunSpec, data: RunData, compute_stats: Callable[[], ImageStats]
) -> CachePlan | None:
    """The cache for the student of a run, before the teacher is trained; None if the
    teacher runs at every step. The data must be loaded.

    Raises `RequestError` for a format that can't serve a loss term.
    """
    if not spec.teacher_outputs.is_cached or spec.teacher is None:
        return None
    teacher, stats = spec.teacher, compute_stats()
    replay = data.replay(resolve_input(spec.student, stats))
    assert replay is not None, "build_spec requires data with views"

    def build() -> LoadedModel:
        outputs = spec.task.count_own_outputs(data.classes)
        return create(teacher, resolve_input(teacher, stats), outputs, seed=0)

    format = choose_cache_format(spec, data.classes, build)
    return CachePlan(format, min(replay.views, spec.recipe.max_epochs), len(replay.rows))


def choose_cache_format(
    spec: RunSpec, classes: Sequence[str], build: Callable[[], LoadedModel]
) -> CacheFormat:
    """The format that serves all loss terms of the run; build: returns the teacher,
    whose embedding is measured if its width matters.
    """
    if not spec.task.reads_labels:
        return choose_embedding_format(spec.teacher_outputs.cache, measure_width(build()))

    def measure_embedding() -> int | None:
        try:
            return measure_embedding_width(build())
        except RequestError:  # the model has no embedding
            return None

    needs = list_needs(spec.build_teacher_losses(), spec.task)
    return choose_format(spec.teacher_outputs.cache, needs, len(classes), measure_embedding)


def choose_max_views(plan: CachePlan, cache_gb: float) -> int:
    """The number of views that fit into `cache_gb`. Raises `RequestError` if none
    does.
    """
    bytes_a_view = plan.format.bytes_per_view * plan.images
    views = int(cache_gb * 1e9 // bytes_a_view)
    if views < 1:
        raise RequestError(
            f"teacher.cache_gb={cache_gb:g} is too little for one view of {plan.images:,} images,"
            f" which takes {bytes_a_view / 1e9:.2g} GB ({plan.format.name}). Raise"
            " teacher.cache_gb, choose a smaller format with teacher.cache, or use"
            " teacher.outputs=live."
        )
    return views
