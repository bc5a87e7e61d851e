"""What a run works on: its data, its models and their answers, each made once, as
stages.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from kd_app.config import RequestError, RunError
from kd_app.data.base import RunData
from kd_app.data.batch import Batch
from kd_app.data.corruptions import Corruption
from kd_app.deployment.predictions import predict
from kd_app.deployment.xnnpack import Lowered
from kd_app.metrics.record import Predictions
from kd_app.models.cost import count_params
from kd_app.models.create import LoadedModel, create, resolve_input
from kd_app.models.spec import CompositeTeacher, ImageStats, ModelSpec
from kd_app.reporting.console import Console
from kd_app.run.controls import Control, select_nearest
from kd_app.run.spec import RunSpec
from kd_app.run.validation import check_answers, check_classes
from kd_app.stages import Stage, Stages, hash_file, write_atomically
from kd_app.training.job import describe_source

SPEED = "speed.json"
DECODED = 320
"""Shorter side (pixels) of the largest images that are kept, where no model needs more.
"""


def decode_size(heights: Sequence[int]) -> int:
    """Shorter side up to which the pixels of an image file are kept for models of these
    input heights.
    """
    return max(DECODED, math.ceil(1.15 * max(heights)))


@dataclass(frozen=True)
class RunModel:
    """A model of the run that is ready to answer: its role, how to make it again, what
    it expects, and the record of its training, if it had one.

    program: where it is quantized, the file that answers in the place of the module.
    unmeasured: why its answers have no figures, for a sentence whose subject it is;
    empty where they have. A teacher that answers in other classes has none, nor has one
    that is made by the training itself.
    """

    role: str
    spec: ModelSpec
    loaded: LoadedModel
    record: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    program: Path | None = None
    no_metrics_reason: str = ""

    def load_runner(self) -> nn.Module:
        """What answers: an int8 program in its own runtime, or the module."""
        return Lowered(self.program) if self.program else self.loaded.model


class Workspace:
    """The data and the models that a run's configuration names, what the models answer,
    and the stages that this took.

    How a model is trained is in `kd_app.run.train`, and what each role's training
    is in `kd_app.run.role_jobs`.
    """

    def __init__(self, parts: RunSpec, stages: Stages, console: Console, tracker: Any) -> None:
        self.spec = parts
        self.stages = stages
        self.console = console
        self.tracker = tracker
        self.used: list[Stage] = []
        self.data: RunData = parts.data
        self.data_folder: Path | None = None
        self.resolved: dict[str, dict[str, Any]] = {}
        """Of a control, what its configuration leaves open: from which figures, and
        how.
        """
        self._chosen: dict[str, ModelSpec] = {}

    def prepare_data(self) -> None:
        """List the images, look at each once where they are files, and split them."""
        self.data.list()
        scan = self.data.scan_job(self._decode_size())
        if scan is not None:
            stage = self.find_or_build(
                "data", scan.config, scan.inputs, lambda folder: scan.run(folder, self._show_scan)
            )
            self.data_folder = stage.path
        self.data.load(self.data_folder)
        self._tell_teacher()

    def check_losses(self) -> None:
        """Refuse loss terms that do not suit the number of classes (`RequestError`)."""
        recipes = (self.spec.teacher_recipe, self.spec.recipe, *self.spec.controls.values())
        check_classes((recipe.build_loss() for recipe in recipes if recipe), len(self.classes))

    def _tell_teacher(self) -> None:
        """A teacher that is made of other things has to know what it answers in and
        sees.
        """
        if isinstance(self.spec.teacher, CompositeTeacher):
            self.spec.teacher.bind_data(self.classes, self.image_stats())

    def _show_scan(self, done: int, total: int) -> None:
        if self.console.live or done == total or done % max(1, total // 10) == 0:
            self.console.print_transient(f"  data: {done:,} of {total:,} images looked at")

    def _decode_size(self) -> int:
        """Enough for both models' crops, whatever the images' own size."""
        asked = [self.data.image_size or 0]
        asked += [
            resolve_input(request, ImageStats(3, 1, (0.0,), (1.0,))).height
            for request in (self.spec.teacher, self.spec.student)
            if request
        ]
        return decode_size(asked)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the data's classes."""
        return self.data.classes

    def image_stats(self) -> ImageStats:
        """What models that start from random weights will see."""
        mean, std = self.data.compute_pixel_statistics()
        return ImageStats(self.data.channels, self.data.size, mean, std)

    def load_model(self, request: ModelSpec, *, seed: int) -> RunModel:
        """A model that is used as it is."""
        pixels = resolve_input(request, self.image_stats())
        created = create(request, pixels, len(self.classes), seed=seed)
        return RunModel(request.role, request, created, no_metrics_reason=request.unmeasured)

    def load_pretrained_teacher(self) -> RunModel | None:
        """The teacher, where it is used without any training; None where it is trained
        first. One that answers in other classes is not measured.

        Raises `RequestError` for one with a random head that nothing would train and
        some term reads.
        """
        found = self._as_it_is()
        if found is None or not found.no_metrics_reason:
            return found
        for name, control in self.spec.controls.items():
            if control.label_entropy_temperature is not None:
                raise RequestError(
                    f"The control {name} has labels as soft as the teacher's answers, and the"
                    f" teacher {found.spec.name} has none in the data's classes before the"
                    " training. Leave that control out of 'controls=[...]'."
                )
        return found

    def _as_it_is(self) -> RunModel | None:
        request, recipe = self.spec.teacher, self.spec.teacher_recipe
        if request is None:
            return None
        if isinstance(request, CompositeTeacher):
            return self.load_model(request, seed=0)
        member = (
            self.load_model(request, seed=0)
            if request.origin.matches_classes(self.classes)
            else None
        )
        if member is not None and not member.loaded.weights.new_head:
            return member
        if recipe is None or recipe.max_epochs == 0:
            origin = request.origin
            if origin.has_weights:
                recipes = (self.spec.recipe, *self.spec.controls.values())
                check_answers(
                    (recipe.build_loss() for recipe in recipes), request, len(self.classes)
                )
                return _mark_unmeasured(member or self.load_model(request, seed=0))
            raise RequestError(
                f"The teacher {request.name} has random weights, the data have {len(self.classes)}"
                " classes, and teacher.max_epochs=0 forbids its training: it would answer with a"
                " random head. Set teacher.max_epochs to 1 or more, or name a teacher of these"
                " classes."
            )
        return None

    def resolve_spec(self, role: str) -> ModelSpec:
        """The model of a role. Raises `RequestError` where a control's is to be chosen
        and none fits.
        """
        control = self.spec.controls.get(role)
        if control is None or not control.students:
            asked = self.spec.teacher if role == "teacher" else self.spec.student
            assert asked is not None
            return asked
        if role not in self._chosen:
            self._chosen[role] = (
                control.students[0] if control.named else self._select_nearest(role, control)
            )
        return self._chosen[role]

    def _select_nearest(self, role: str, control: Control) -> ModelSpec:
        found = select_nearest(
            control.students, self.spec.student, self.image_stats(), len(self.classes)
        )
        self.resolved[role] = {"macs": found.macs, "student_macs": found.student_macs}
        return found.request

    def resolve_license(self, role: str, *, taught: bool) -> str:
        """What the weights of a model are under that is trained here."""
        control = self.spec.controls.get(role)
        start = (
            self.resolve_spec(role).origin.license
            if control is not None and control.students
            else None
        )
        return self.spec.licenses.resolve_trained_license(role, taught=taught, start=start)

    def load_predictions(self, member: RunModel, split: str) -> Predictions:
        """A member's answers on a split, computed once."""
        return Predictions.load(self.cache_predictions(member, split))

    def cache_predictions(self, member: RunModel, split: str) -> Path:
        """The folder of the stage that holds `predictions`."""
        return self.cache_outputs(
            member,
            split,
            "answers",
            {"embedding": True},
            lambda folder: self.predict(member, split, embeddings=True).save(folder),
        ).path

    def cache_outputs(
        self,
        member: RunModel,
        split: str,
        name: str,
        settings: Mapping[str, Any],
        build: Callable[[Path], None],
    ) -> Stage:
        """The stage ``<name>-<role>-<split>`` of what a member answers to a split under
        these `settings`.
        """
        config = {
            "model": member.spec.name,
            "pixels": vars(member.loaded.pixels),
            "split": split,
            "limit": self.limit,
            **settings,
        }
        inputs = {"data": self.data.fingerprint, "weights": member.loaded.weights.sha256}
        inputs |= {"program": hash_file(member.program)} if member.program else {}
        return self.find_or_build(f"{name}-{member.role}-{split}", config, inputs, build)

    def measure_speed(
        self,
        members: Mapping[str, RunModel],
        sweep: Path,
        measure: Callable[[], Mapping[str, float]],
    ) -> dict[str, float]:
        """Images per second by role, measured once in a `sweep` for each pair of nets:
        its trials differ in weights, which are as fast as others.
        """
        nets = {
            role: [
                m.spec.name,
                m.spec.kwargs,
                vars(m.loaded.pixels),
                count_params(m.loaded.model),
            ]
            for role, m in members.items()
        }
        config = {
            "sweep": str(sweep.absolute()),
            "nets": nets,
            "device": str(self.spec.trainer.device),
        }
        stage = self.find_or_build(
            "speed",
            config,
            {},
            lambda folder: write_atomically(folder / SPEED, json.dumps(measure())),
        )
        found: dict[str, float] = json.loads((stage.path / SPEED).read_text(encoding="utf-8"))
        return found

    @property
    def limit(self) -> float | None:
        """How much of a split is looked at when a model is measured."""
        return self.spec.trainer.limit_test_batches

    def predict(
        self,
        member: RunModel,
        split: str,
        *,
        embeddings: bool = False,
        corruption: Corruption | None = None,
    ) -> Predictions:
        """A member's answers on a split, or on its images corrupted."""
        splits = ("train", "validation", "test") if split == "all" else (split,)
        batches = Chained(
            [
                self.data.build_evaluation_loader(each, member.loaded.pixels, corruption=corruption)
                for each in splits
            ]
        )
        if corruption is None:
            self.console.print_transient(f"  {member.role}: {split} images ...")
        device = self.spec.trainer.device
        return predict(
            member.load_runner(),
            batches,
            member.loaded.pixels,
            device=device,
            limit=self.limit,
            embeddings=embeddings,
        )

    def find(self, name: str, config: dict[str, Any], inputs: dict[str, str]) -> Stage | None:
        """The stage `name` of this configuration and these inputs, if it was made; it
        is not counted as used.
        """
        return self.stages.find(name, config=_round_trip_json(config), inputs=inputs)

    def find_or_build(
        self,
        name: str,
        config: dict[str, Any],
        inputs: dict[str, str],
        build: Callable[[Path], None],
    ) -> Stage:
        """The stage `name` of this configuration and these inputs, made or found, and
        counted as used.
        """
        try:
            stage = self.stages.find_or_build(
                name, config=_round_trip_json(config), inputs=inputs, build=build
            )
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunError(
                f"{str(error).strip()} It read images; a machine without memory left kills such"
                " processes. What was trained is kept: the same command goes on from here, with"
                " data.num_workers=0 in this process alone."
            ) from error
        self.used.append(stage)
        return stage


def _round_trip_json(config: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(config))
    return found


def _mark_unmeasured(teacher: RunModel) -> RunModel:
    known = teacher.loaded.weights
    return replace(
        teacher,
        no_metrics_reason=(
            f"from {known.source} (sha256 {known.sha256[:16]}), answers in other classes than the"
            " data's"
        ),
    )


def describe_reference(member: RunModel) -> dict[str, Any]:
    """Where a model is to be found: name, source, sha256, and the stage that made it or
    the folder it came from.
    """
    return describe_source(member.spec, member.loaded, member.folder)


class Chained:
    """Several loaders, one after the other."""

    def __init__(self, loaders: list[Any]) -> None:
        self._loaders = loaders

    def __len__(self) -> int:
        return sum(len(loader) for loader in self._loaders)

    def __iter__(self) -> Iterator[Batch]:
        for loader in self._loaders:
            yield from loader
