"""The workspace of a run: its data, its models, and the cache of their outputs."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from kd_app.config import Decoding, RequestError, RunError, bound_side
from kd_app.config.memory import explain_memory_error
from kd_app.config.records import read_record
from kd_app.data.base import RunData
from kd_app.data.chained import Chained
from kd_app.data.corruptions import Corruption
from kd_app.data.fingerprint import use_digests
from kd_app.data.worker_loader import explain_lost_worker
from kd_app.deployment.logits import NonFiniteLogitsError, check_finite, name_images
from kd_app.deployment.predictions import predict
from kd_app.digest import hash_file, round_trip_json
from kd_app.metrics.record import Predictions
from kd_app.models.cost import count_params
from kd_app.models.create import create, measure_width, resolve_input
from kd_app.models.embedding_ensemble import EmbeddingEnsemble
from kd_app.models.spec import CompositeTeacher, ImageStats, ModelSpec
from kd_app.reporting.console import Console
from kd_app.run.cache_plan import CachePlan, choose_max_views, plan_cache
from kd_app.run.input_files import open_digests
from kd_app.run.member_moments import measure_moments
from kd_app.run.model import RunModel, mark_unmeasured
from kd_app.run.recorded_pixels import RecordedPixels
from kd_app.signals import check_stop
from kd_app.specs.controls import Control, select_nearest
from kd_app.specs.spec import RunSpec
from kd_app.specs.validation import check_scopes, check_teacher_logits
from kd_app.stages import Stage, StagePart, Stages, write_atomically
from kd_app.tasks.base import Task
from kd_app.training.record import RECORD

SPEED = "speed.json"
T = TypeVar("T", Stage, Stage | None)


class Workspace:
    """The data and the models of a run, and the cache of the models' outputs.

    `kd_app.run.train` trains a model; `kd_app.run.role_jobs` builds the job of each
    role.

    recorded: of the finished run that is opened; decides what its models see.
    """

    def __init__(
        self,
        spec: RunSpec,
        stages: Stages,
        console: Console,
        tracker: Any,
        *,
        recorded: RecordedPixels | None = None,
    ) -> None:
        self.spec = spec
        self.recorded = recorded or RecordedPixels()
        self.stages = stages
        self.console = console
        self.tracker = tracker
        self.used: list[Stage] = []
        self.data: RunData = spec.data
        self.task: Task = spec.task
        """With the width of the teacher's output once the teacher is loaded."""
        self.data_folder: Path | None = None
        self.max_views: int | None = None
        """The views of an image that fit into ``teacher.cache_gb``; None: no limit."""
        self._is_loaded = False
        self.resolved: dict[str, dict[str, Any]] = {}
        """By control, the settings that were resolved during the run, and the values
        that they depend on.
        """
        self._chosen: dict[str, ModelSpec] = {}

    def prepare_data(self) -> None:
        """List, decode and split the images, reading only files that are new."""
        digests = open_digests(self.stages.root, self.spec.config["data"])
        with use_digests(digests):
            self.data.list()
        scan = self.data.scan_job(self._decoded_side)
        if scan is not None:
            stage = self.find_or_build(
                "data", scan.config, scan.inputs, lambda folder: scan.run(folder, self._show_scan)
            )
            self.data_folder = stage.path
            digests.save()
        self.data.load(self.data_folder)
        self._is_loaded = True
        self._bind_models()
        self._limit_views()

    def _limit_views(self) -> None:
        """Use fewer views if those of the data do not fit into ``teacher.cache_gb``."""
        cache_gb = self.spec.teacher_outputs.cache_gb
        plan = None if cache_gb is None else self.cache_plan
        if cache_gb is not None and plan is not None:
            self.max_views = choose_max_views(plan, cache_gb)
            self.data.limit_views(self.max_views)

    @property
    def cache_plan(self) -> CachePlan | None:
        """See `plan_cache`."""
        return plan_cache(self.spec, self.data, self.compute_image_stats)

    def _bind_models(self) -> None:
        """Match the classes of all pretrained models to those of the data."""
        spec = self.spec
        students = [model for control in spec.controls.values() for model in control.students]
        if isinstance(spec.teacher, CompositeTeacher):
            spec.teacher.bind_images(self.compute_image_stats())
        teachers = [] if spec.teacher is None else [spec.teacher]
        for model in (spec.student, *students, *(each.spec for each in spec.assistants), *teachers):
            self.task.bind_model(model, self.classes)
        if isinstance(spec.teacher, EmbeddingEnsemble) and spec.teacher.moments is None:
            measure_moments(spec.teacher, self.cache_predictions, self.find_or_build)

    def check_losses(self) -> list[str]:
        """Return warnings of loss terms with a part that is void for the classes or the
        batch size. Raise `RequestError` if a term is void, or rejects the classes.
        """
        recipes = (self.spec.teacher_recipe, self.spec.recipe, *self.spec.controls.values())
        return check_scopes(
            (recipe.build_loss() for recipe in recipes if recipe),
            # terms that read no labels suit images without classes
            num_classes=max(len(self.classes), 1),
            batch_size=self.data.batch_size,
            world_size=self.spec.trainer.world_size,
        )

    def _show_scan(self, done: int, total: int) -> None:
        if self.console.live or done == total or done % max(1, total // 10) == 0:
            self.console.print_transient(f"  data: {done:,} of {total:,} images decoded")

    @cached_property
    def _decoded_side(self) -> int:
        """Enough for the crops of teacher and student, for images of any size; for a
        finished run as recorded.
        """
        if self.recorded.decoding is not None:
            return self.recorded.decoding.shorter_side
        unused = ImageStats(3, 1, (0.0,), (1.0,))
        models = [model for model in (self.spec.teacher, self.spec.student) if model]
        inputs = [resolve_input(model, unused) for model in models]
        sides = [max(each.height, each.width) for each in inputs]
        return bound_side([self.data.image_size or 0, *sides])

    @property
    def decoding(self) -> Decoding:
        """How the run decodes image files."""
        return Decoding(self.data.channels, self._decoded_side)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the data's classes."""
        return self.data.classes

    def compute_image_stats(self) -> ImageStats:
        """Channels, size, mean and standard deviation of the images for which models
        are made: of the data, or as a finished run recorded them.
        """
        if self.recorded.stats is not None:
            return self.recorded.stats
        mean, std = self.data.compute_pixel_statistics()
        return ImageStats(self.data.channels, self.data.size, mean, std, self.data.width)

    def count_outputs(self, model: ModelSpec) -> int:
        """The width of a model's output; see `Task.count_outputs`."""
        return self.task.count_outputs(self.classes, model.role)

    def load_model(self, spec: ModelSpec, *, seed: int) -> RunModel:
        """Load a model that is used without training."""
        input_spec = resolve_input(spec, self.compute_image_stats())
        outputs = self.task.count_own_outputs(self.classes)
        loaded = create(spec, input_spec, outputs, seed=seed)
        return RunModel(spec.role, spec, loaded, no_metrics_reason=spec.no_metrics_reason)

    def load_pretrained_teacher(self) -> RunModel | None:
        """The teacher if it is used without training; None if it is trained first.

        A teacher with other classes is not evaluated. Raises `RequestError` if the
        teacher has a random head that is not trained but read by a loss term.
        """
        teacher = self._load_untrained_teacher()
        if teacher is not None:
            self.task = self.task.bind_teacher(measure_width(teacher.loaded))
        if teacher is None or not teacher.no_metrics_reason:
            return teacher
        for name, control in self.spec.controls.items():
            if control.label_entropy_temperature is not None:
                raise RequestError(
                    f"The control {name} makes labels as soft as the teacher's logits, but the"
                    f" teacher {teacher.spec.name} has no logits for the data's classes before"
                    " training. Leave that control out of 'controls=[...]'."
                )
        return teacher

    def _load_untrained_teacher(self) -> RunModel | None:
        spec, recipe = self.spec.teacher, self.spec.teacher_recipe
        if spec is None:
            return None
        if isinstance(spec, CompositeTeacher):
            return self.load_model(spec, seed=0)
        origin, match = spec.origin, spec.match
        assert match is not None, "prepare_data binds the classes"
        teacher = self.load_model(spec, seed=0) if match.fits else None
        if teacher is not None and not teacher.loaded.weights.new_head:
            return teacher
        if recipe is not None and recipe.max_epochs > 0:
            return None
        if not origin.has_weights:
            raise RequestError(
                f"The teacher {spec.name} has random weights, the data have {len(self.classes)}"
                " classes, and teacher.max_epochs=0 forbids its training: its logits would be"
                " random. Set teacher.max_epochs to 1 or more, or name a teacher with these"
                " classes."
            )
        recipes = (self.spec.recipe, *self.spec.controls.values())
        losses = (recipe.build_loss() for recipe in recipes)
        check_teacher_logits(losses, spec, len(self.classes))
        return mark_unmeasured(teacher or self.load_model(spec, seed=0))

    def resolve_spec(self, role: str) -> ModelSpec:
        """The model of a role. Raises `RequestError` if a control chooses its model by
        cost and no candidate is suitable.
        """
        control = self.spec.controls.get(role)
        if control is None or not control.students:
            spec = self.spec.teacher if role == "teacher" else self.spec.student
            assert spec is not None
            return spec
        if role not in self._chosen:
            self._chosen[role] = (
                control.students[0] if control.named else self._select_nearest(role, control)
            )
        return self._chosen[role]

    def _select_nearest(self, role: str, control: Control) -> ModelSpec:
        nearest = select_nearest(
            control.students, self.spec.student, self.compute_image_stats(), len(self.classes)
        )
        self.resolved[role] = {"macs": nearest.macs, "student_macs": nearest.student_macs}
        return nearest.spec

    def resolve_license(self, role: str, *, uses_teacher: bool) -> str:
        """The license of a model that is trained in this run."""
        control = self.spec.controls.get(role)
        start = (
            self.resolve_spec(role).origin.license
            if control is not None and control.students
            else None
        )
        return self.spec.licenses.resolve_trained_license(role, distilled=uses_teacher, start=start)

    def load_predictions(self, model: RunModel, split: str) -> Predictions:
        """The predictions of a model on a split, computed once."""
        return Predictions.load(self.cache_predictions(model, split))

    def cache_predictions(self, model: RunModel, split: str) -> Path:
        """The folder with the predictions of a model on a split, computed once."""
        return self.cache_outputs(
            model,
            split,
            "answers",
            {"output": self.task.output},  # with a head or without one
            lambda folder: self.predict(model, split, embeddings=True, spool=folder).save(folder),
        ).path

    def cache_outputs(
        self,
        model: RunModel,
        split: str,
        name: str,
        settings: Mapping[str, Any],
        build: Callable[[Path], None],
    ) -> Stage:
        """The stage ``<name>-<role>-<split>`` with outputs of a model on a split.

        settings: everything else that decides the outputs.
        """
        config = {
            "model": model.spec.name,
            "pixels": vars(model.loaded.pixels),
            "split": split,
            "limit": self.limit,
            **settings,
        }
        inputs = {"data": self.data.fingerprint, "weights": model.loaded.weights.sha256}
        inputs |= {"program": hash_file(model.program)} if model.program else {}
        return self.find_or_build(f"{name}-{model.role}-{split}", config, inputs, build)

    def measure_speed(
        self,
        models: Mapping[str, RunModel],
        sweep: Path,
        measure: Callable[[], Mapping[str, float]],
    ) -> dict[str, float]:
        """Images per second by role, measured once in a `sweep` for each pair of
        architectures: the speed does not depend on the weights.
        """
        architectures = {
            role: [
                model.spec.name,
                model.spec.kwargs,
                vars(model.loaded.pixels),
                count_params(model.loaded.model),
            ]
            for role, model in models.items()
        }
        config = {
            "sweep": str(sweep.absolute()),
            "nets": architectures,
            "device": str(self.spec.trainer.device),
        }
        stage = self.find_or_build(
            "speed",
            config,
            {},
            lambda folder: write_atomically(folder / SPEED, json.dumps(measure())),
        )
        return read_record(
            stage.path / SPEED,
            dict[str, float],
            expected="Remove the folder of that stage to measure again.",
        )

    @contextmanager
    def keep_work(self) -> Iterator[None]:
        """Raise `RunError` in place of a `RequestError` once a model has been trained
        here: a refusal would undo the work.
        """
        try:
            yield
        except RequestError as error:
            if any(stage.is_new and (stage.path / RECORD).is_file() for stage in self.used):
                raise RunError(
                    f"{error} Completed work is kept: repeat the command to resume."
                ) from error
            raise

    @property
    def limit(self) -> float | None:
        """The number (or share) of batches of a split on which a model is measured."""
        return self.spec.trainer.limit_test_batches

    def predict(
        self,
        model: RunModel,
        split: str,
        *,
        embeddings: bool = False,
        spool: Path | None = None,
        corruption: Corruption | None = None,
    ) -> Predictions:
        """Compute the predictions of a model on a split, or on its corrupted images."""
        splits = ("train", "validation", "test") if split == "all" else (split,)
        loaders = [
            self.data.build_evaluation_loader(each, model.loaded.pixels, corruption=corruption)
            for each in splits
        ]
        if corruption is None:
            self.console.print_transient(f"  {model.role}: {split} images ...")
        predictions = predict(
            model.load_runner(),
            Chained(loaders),
            model.loaded.pixels,
            device=self.spec.trainer.device,
            limit=self.limit,
            embeddings=embeddings,
            spool=spool,
        )
        if corruption is None:
            self._check_finite(predictions, model)
        return predictions

    def _check_finite(self, predictions: Predictions, model: RunModel) -> None:
        try:
            with name_images(self.data.files):
                check_finite(predictions.logits, f"The {model.role}", predictions.index.tolist())
        except NonFiniteLogitsError as error:
            raise (RunError if model.record else RequestError)(str(error)) from None

    def find(self, name: str, config: dict[str, Any], inputs: dict[str, str]) -> Stage | None:
        """The stage with this name, configuration and inputs if it exists; not recorded
        as used.
        """
        return self.stages.find(name, config=round_trip_json(config), inputs=inputs)

    def find_or_build(
        self,
        name: str,
        config: dict[str, Any],
        inputs: dict[str, str],
        build: Callable[[Path], None],
    ) -> Stage:
        """The stage with this name, configuration and inputs, built if it does not
        exist; recorded as used.
        """
        return self._build(name, config, inputs, build, self.stages.find_or_build)

    def find_or_build_all(self, name: str, parts: Sequence[StagePart]) -> list[Stage]:
        """The stages of one name, in order. Several processes that need them share the
        work: each one builds what no other one is building, then waits for the rest,
        and takes over what a process left that ended.
        """
        stages: dict[int, Stage] = {}
        for method in (self.stages.build_unless_busy, self.stages.find_or_build):
            for number, part in enumerate(parts):
                if number not in stages:
                    stage = self._build(name, *part, method)
                    if stage is not None:
                        stages[number] = stage
        return [stages[number] for number in range(len(parts))]

    def _build(
        self,
        name: str,
        config: dict[str, Any],
        inputs: dict[str, str],
        build: Callable[[Path], None],
        method: Callable[..., T],
    ) -> T:
        check_stop()
        try:
            with explain_memory_error(f"the stage {name}", self.spec.config, self._count_images()):
                stage = method(name, config=round_trip_json(config), inputs=inputs, build=build)
        except PermissionError as error:
            if not str(error.filename).startswith(str(self.stages.root)):
                raise
            raise RunError(
                f"Permission denied: the stage {name} is not finished in"
                f" stages={str(self.stages.root)!r}, and this user may not write"
                f" {str(error.filename)!r}. Set stages= to another folder, or let the owner of the"
                " folder allow it: the files there have the rights of the umask of who wrote them."
            ) from None
        except RuntimeError as error:
            raise explain_lost_worker(error) or error from error
        if isinstance(stage, Stage):
            self.used.append(stage)
        return stage

    def _count_images(self) -> int | None:
        """The number of training images; None before the data are loaded."""
        return self.data.sizes["train"] if self._is_loaded else None
