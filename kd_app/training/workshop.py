"""The stages of a run: what each is made of, which earlier ones it needs, and what it leaves behind."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_app.config import Pixels, RequestError, RunError
from kd_app.data.batch import Batch
from kd_app.data.corruptions import Corruption
from kd_app.deployment.measure import Predictions, predict
from kd_app.deployment.xnnpack import Lowered
from kd_app.models.composed import OwnAverage
from kd_app.models.cost import count_params
from kd_app.models.create import Created, create, expected_pixels
from kd_app.models.outputs import Outputs
from kd_app.models.request import Composed, ModelRequest, Seen
from kd_app.reporting.console import Console
from kd_app.stages import Stage, Stages, file_sha256, write_atomically
from kd_app.training.controls import mean_entropy, nearest
from kd_app.training.curves import points
from kd_app.training.fit import RECORD, Taught, build, fit, resumed, trained
from kd_app.training.module import Answers
from kd_app.training.pace import FILE as EPOCHS
from kd_app.training.pace import as_long
from kd_app.training.parts import Control, Parts, Recipe
from kd_app.training.ranks.start import fit_on_ranks
from kd_app.training.stored import STORED, StoredAnswers, store

SPEED = "speed.json"
DECODED = 320
"""Shorter side (pixels) of the largest images that are kept, where no model needs more."""


def decode_size(heights: Sequence[int]) -> int:
    """Shorter side up to which the pixels of an image file are kept for models of these input heights."""
    return max(DECODED, math.ceil(1.15 * max(heights)))


@dataclass(frozen=True)
class Member:
    """A model of the run that is ready to answer: its role, how to make it again, what it expects, and the record of its training, if it had one.

    program: where it is quantized, the file that answers in the place of the module.
    unmeasured: why its answers have no figures, for a sentence whose subject it is; empty where they have. A teacher that answers in other classes
    has none, nor has one that is made by the training itself.
    """

    role: str
    request: ModelRequest
    created: Created
    record: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    program: Path | None = None
    unmeasured: str = ""

    def answering(self) -> nn.Module:
        """What answers: an int8 program in its own runtime, or the module."""
        return Lowered(self.program) if self.program else self.created.model


class Workshop:
    """Makes what a run asks for, each thing once, and remembers which stages that took."""

    def __init__(self, parts: Parts, stages: Stages, console: Console, tracker: Any, watch: Any = None) -> None:
        self.parts = parts
        self.stages = stages
        self.console = console
        self.tracker = tracker
        self.watch = watch
        self.used: list[Stage] = []
        self.data = parts.data
        self.data_folder: Path | None = None
        self.decided: dict[str, dict[str, Any]] = {}
        """Of a control, what its configuration leaves open: from which figures, and how."""
        self._chosen: dict[str, ModelRequest] = {}

    def prepare_data(self) -> None:
        """List the images, look at each once where they are files, and split them; the labels' own loss terms have to suit the classes."""
        self.data.list()
        if self.data.needs_scan:
            decode_size = self._decode_size()
            inputs = {"listing": self.data.listing.fingerprint}
            stage = self.make("data", self.data.scan_config(decode_size), inputs, lambda folder: self._scan(folder, decode_size))
            self.data_folder = stage.path
        self.data.load(self.data_folder)
        self._tell_teacher()
        self._check_terms()

    def _check_terms(self) -> None:
        """Terms that read logits alone can be checked before anything is trained."""
        answer = Outputs(logits=torch.zeros(1, len(self.classes)))
        for recipe in (self.parts.teacher_recipe, self.parts.recipe, *self.parts.controls.values()):
            for term in recipe.terms().chosen.values() if recipe else ():
                if term.reads == {"logits"}:
                    term.build(answer, answer)

    def check_pair(self) -> None:
        """Let the student's terms look at both models before either is trained. Raises `RequestError` where a term can't compare them."""
        if self.parts.teacher is not None:
            teacher, student = (
                create(request, expected_pixels(request, self.seen()), len(self.classes), seed=0)
                for request in (self.parts.teacher, self.parts.student)
            )
            taught = Taught("student", self.parts.student, student.pixels, self.parts.recipe, teacher)
            build(taught, student, self.data, self.parts.trainer)

    def load_data(self, folder: Path | None) -> None:
        """Take the data as another process prepared them."""
        self.data.list()
        self.data_folder = folder
        self.data.load(folder)
        self._tell_teacher()

    def _tell_teacher(self) -> None:
        """A teacher that is made of other things has to know what it answers in and sees."""
        if isinstance(self.parts.teacher, Composed):
            self.parts.teacher.know(self.classes, self.seen())

    def _scan(self, folder: Path, decode_size: int) -> None:
        def progress(done: int, of: int) -> None:
            if self.console.live or done == of or done % max(1, of // 10) == 0:
                self.console.line(f"  data: {done:,} of {of:,} images looked at")

        self.data.scan(folder, decode_size=decode_size, progress=progress)

    def _decode_size(self) -> int:
        """Enough for both models' crops, whatever the images' own size."""
        asked = [self.parts.config["data"].get("image_size") or 0]
        asked += [expected_pixels(request, Seen(3, 1, (0.0,), (1.0,))).height for request in (self.parts.teacher, self.parts.student) if request]
        return decode_size(asked)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the data's classes."""
        return tuple(self.data.classes)

    def seen(self) -> Seen:
        """What models that start from random weights will see."""
        mean, std = self.data.pixel_statistics()
        return Seen(self.data.channels, self.data.size, mean, std)

    def ready(self, request: ModelRequest, *, seed: int) -> Member:
        """A model that is used as it is."""
        pixels = expected_pixels(request, self.seen())
        created = create(request, pixels, len(self.classes), seed=seed)
        return Member(request.role, request, created, unmeasured=request.unmeasured)

    def as_it_is(self) -> Member | None:
        """The teacher, where it is used without any training; None where it is trained first. One that answers in other classes is not measured.

        Raises `RequestError` for one with a random head that nothing would train and some term reads.
        """
        found = self._as_it_is()
        if found is None or not found.unmeasured:
            return found
        for name, control in self.parts.controls.items():
            if control.entropy_at is not None:
                raise RequestError(
                    f"The control {name} has labels as soft as the teacher's answers, and the teacher {found.request.name} has none in the data's "
                    "classes before the training. Leave that control out of 'controls=[...]'."
                )
        return found

    def _as_it_is(self) -> Member | None:
        request, recipe = self.parts.teacher, self.parts.teacher_recipe
        if request is None:
            return None
        if isinstance(request, Composed):
            return self.ready(request, seed=0)
        member = self.ready(request, seed=0) if request.origin.fits(self.classes) else None
        if member is not None and not member.created.weights.new_head:
            return member
        if recipe is None or recipe.max_epochs == 0:
            origin = request.origin
            if origin.has_weights:
                self._check_reads_no_answers(request)
                return _of_other_classes(member or self.ready(request, seed=0))
            raise RequestError(
                f"The teacher {request.name} has random weights, the data have {len(self.classes)} classes, and teacher.max_epochs=0 forbids its "
                "training: it would answer with a random head. Set teacher.max_epochs to 1 or more, or name a teacher of these classes."
            )
        return None

    def _check_reads_no_answers(self, teacher: ModelRequest) -> None:
        """Refuse terms that read the answers of a teacher which has none in the data's classes."""
        for recipe in (self.parts.recipe, *self.parts.controls.values()):
            for name, term in recipe.terms().chosen.items():
                if term.needs_teacher and term.teacher_reads & {"logits", "classifier"}:
                    raise RequestError(
                        f"The teacher {teacher.name} has {teacher.origin.num_classes or 'other'} classes, the data have {len(self.classes)} classes, "
                        "and teacher.max_epochs=0 forbids its training: it would answer with a random head, which the loss term "
                        f"{name} reads. Choose terms that read no answers (embedding_mse, review, sp), map its classes "
                        "(teacher.classes=<a CSV file>), or set teacher.max_epochs to 1 or more."
                    )

    def going_on(self, student: ModelRequest, node: Mapping[str, Any], recipe: Recipe) -> "Workshop":
        """This workshop for the training of another student (`node` is its configuration); data, stages and what was used are shared."""
        other = copy(self)
        other.parts = replace(self.parts, student=student, recipe=recipe, config={**self.parts.config, "student": dict(node)})
        return other

    def train(self, role: str, teacher: Member | None = None, *, stage: str | None = None) -> Member:
        """Train the teacher, a control or the student, or find the one that was trained in the same way; `stage` is its name if not the role."""
        recipe = self.settled(role, teacher)
        teacher = teacher if recipe.terms().needs_teacher else None
        taught = self.taught(role, teacher, recipe)
        identity, inputs = self._identity(taught, teacher), self._inputs(taught, teacher)
        made = self.make(stage or role, identity, inputs, lambda folder: self._fit(taught, teacher, folder, stage or role))
        member = self._trained(taught, made.path)
        self.tracker.ready(stage or role, told(member), told(teacher) if teacher else None, lambda: points(made.path))
        return member

    def found(self, role: str) -> Member | None:
        """The teacher, or a control that needs none, as an earlier run left it; None where `train` may have to train it."""
        taught = self.taught(role, None, self.plain(role))
        stage = self.stages.find(role, config=_plain(self._identity(taught, None)), inputs=self._inputs(taught, None))
        return self._trained(taught, stage.path) if stage else None

    def _inputs(self, taught: Taught, teacher: Member | None) -> dict[str, str]:
        """Hashes of data, start and teacher."""
        start = create(taught.request, taught.pixels, len(self.classes), seed=taught.recipe.seed)
        inputs = {"data": self.data.fingerprint, "start": start.weights.sha256}
        return {**inputs, "teacher": teacher.created.weights.sha256} if teacher else inputs

    def _trained(self, taught: Taught, folder: Path) -> Member:
        """What a training left in `folder`."""
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        again = trained(taught.request, folder)
        return Member(taught.role, again, create(again, taught.pixels, len(self.classes), seed=taught.recipe.seed), record, folder)

    def request(self, role: str) -> ModelRequest:
        """The model of a role. Raises `RequestError` where a control's is to be chosen and none fits."""
        control = self.parts.controls.get(role)
        if control is None or not control.students:
            asked = self.parts.teacher if role == "teacher" else self.parts.student
            assert asked is not None
            return asked
        if role not in self._chosen:
            self._chosen[role] = control.students[0] if control.named else self._nearest(role, control)
        return self._chosen[role]

    def _nearest(self, role: str, control: Control) -> ModelRequest:
        found = nearest(control.students, self.parts.student, self.seen(), len(self.classes))
        self.decided[role] = {"macs": found.macs, "student_macs": found.student_macs}
        return found.request

    def settled(self, role: str, teacher: Member | None) -> Recipe:
        """How a role is trained. What a control leaves open is computed once, and found again: from the teacher's answers, or from the clock."""
        control = self.parts.controls.get(role)
        if control is None:
            recipe = self.parts.teacher_recipe if role == "teacher" else self.parts.recipe
            assert recipe is not None
            return recipe
        assert teacher is not None
        recipe = control.plain()
        if control.entropy_at is not None:
            entropy = mean_entropy(self.predictions(teacher, "train").logits, control.entropy_at)
            recipe = control.smoothed(entropy, len(self.classes))
            self.decided.setdefault(role, {}).update(teacher_entropy=entropy, temperature=control.entropy_at, loss=recipe.loss)
        if control.as_long:
            found = self._epochs(role, teacher, recipe)
            recipe = replace(recipe, max_epochs=found["max_epochs"])
            self.decided.setdefault(role, {}).update(found)
        return recipe

    def plain(self, role: str) -> Recipe:
        """How a role is trained, as far as it is known before there is a teacher."""
        control = self.parts.controls.get(role)
        return control.plain() if control else self.settled(role, None)

    def _epochs(self, role: str, teacher: Member, recipe: Recipe) -> dict[str, Any]:
        """How many epochs of `recipe` last as long as the student's training. Seeds of one recipe share the answer."""
        listening = teacher if recipe.terms().needs_teacher else None
        student = self.taught("student", teacher, self.parts.recipe)
        both = {"student": (student, teacher), role: (self.taught(role, listening, recipe), listening)}
        config = {name: {key: value for key, value in self._identity(*each).items() if key != "seed"} for name, each in both.items()}
        inputs = {"data": self.data.fingerprint, "teacher": teacher.created.weights.sha256}
        trainings = {name: taught for name, (taught, _) in both.items()}
        epochs = self.parts.recipe.max_epochs

        def measure(folder: Path) -> None:
            self.console.line(f"  {role}: measuring how long an epoch takes ...")
            as_long(epochs, trainings, self.data, self.parts.trainer, folder)

        stage = self.make(f"epochs-{role}", config, inputs, measure)
        return dict(json.loads((stage.path / EPOCHS).read_text(encoding="utf-8")))

    def taught(self, role: str, teacher: Member | None, recipe: Recipe | None = None) -> Taught:
        """What a role's training is made of."""
        request, control = self.request(role), self.parts.controls.get(role)
        return Taught(
            role=role,
            request=request,
            pixels=expected_pixels(request, self.seen()),
            recipe=recipe or self.settled(role, teacher),
            teacher=teacher.created if teacher else None,
            answers=self._answers(teacher) if teacher and not teacher.unmeasured else None,
            decay=self.parts.teacher.decay if isinstance(self.parts.teacher, OwnAverage) else None,
            license=self.license(role, taught=teacher is not None),
            shuffled=control is not None and control.shuffled,
            stored=self._stored(teacher, expected_pixels(request, self.seen())) if teacher and self.parts.answers == "stored" else None,
        )

    def license(self, role: str, *, taught: bool) -> str:
        """What the weights of a model are under that is trained here."""
        control = self.parts.controls.get(role)
        start = self.request(role).origin.license if control is not None and control.students else None
        return self.parts.licenses.trained(role, taught=taught, start=start)

    def _fit(self, taught: Taught, teacher: Member | None, folder: Path, stage: str) -> None:
        resumed(folder, self.console.say)
        before = points(folder)
        listen = self.tracker.start(stage, told(teacher) if teacher else None, before)
        if self.watch is not None and taught.role == "student":
            for row, step in before:
                self.watch(row, step)
            listen = _both(listen, self.watch)
        settings = self.parts.trainer
        if settings.world_size > 1:
            fit_on_ranks(self._job(taught, teacher, folder), folder, settings.world_size, listen=listen)
        else:
            fit(taught, self.data, settings, folder, console=self.console, listen=listen)

    def _job(self, taught: Taught, teacher: Member | None, folder: Path) -> dict[str, Any]:
        """The same training as plain data, for other processes."""
        return {
            "config": {**self.parts.config, "trainer": {**self.parts.config["trainer"], **self.parts.trainer.place()}},
            "stages": str(self.stages.root),
            "role": taught.role,
            "recipe": vars(taught.recipe),
            "folder": str(folder),
            "data": str(self.data_folder) if self.data_folder else None,
            "listens": teacher is not None,
            "teacher": str(teacher.folder) if teacher and teacher.folder else None,
            "unmeasured": teacher.unmeasured if teacher else "",
        }

    def _identity(self, taught: Taught, teacher: Member | None) -> dict[str, Any]:
        """All that decides the trained weights, beside the hashes of data, teacher and start."""
        recipe = taught.recipe
        return {
            "model": {"name": taught.request.name, "kwargs": taught.request.kwargs, "pixels": vars(taught.pixels), "classes": list(self.classes)},
            "loss": recipe.loss,
            "optimizer": recipe.optimizer,
            "scheduler": recipe.scheduler,
            "callbacks": recipe.callbacks,
            "seed": recipe.seed,
            "trainer": {**self.parts.trainer.identity(), "max_epochs": recipe.max_epochs},
            "data": self._views(taught.role),
            "teacher": {"name": teacher.request.name, "pixels": vars(teacher.created.pixels)} if teacher else None,
            **({"shuffled": True} if taught.shuffled else {}),
            **({"answers": "stored"} if taught.stored else {}),
        }

    def _views(self, role: str) -> dict[str, Any]:
        """What decides the batches beside the data."""
        if self.parts.own.data is not None:
            return {"module": type(self.parts.own.data).__qualname__, "batch_size": self.data.batch_size}
        node = self.parts.config["data"]
        more = {**self._changes(), "views": node.get("views") if role != "teacher" else None, "labels": getattr(self.data, "labels", None)}
        return {"view": node.get("view"), "batch_size": node.get("batch_size"), **{key: value for key, value in more.items() if value is not None}}

    def _changes(self) -> dict[str, Any]:
        """What is done to images after their view, where anything is."""
        done = {key: getattr(self.data, key, None) for key in ("mix", "augment")}
        return {key: vars(part) for key, part in done.items() if part is not None}

    def predictions(self, member: Member, split: str) -> Predictions:
        """A member's answers on a split, computed once."""
        stage = self.asked(member, split, "answers", {"embedding": True}, lambda folder: self.predict(member, split, embeddings=True).save(folder))
        return Predictions.load(stage.path)

    def asked(self, member: Member, split: str, name: str, settings: Mapping[str, Any], build: Callable[[Path], None]) -> Stage:
        """The stage ``<name>-<role>-<split>`` of what a member answers to a split under these `settings`."""
        config = {"model": member.request.name, "pixels": vars(member.created.pixels), "split": split, "limit": self.limit, **settings}
        inputs = {"data": self.data.fingerprint, "weights": member.created.weights.sha256}
        inputs |= {"program": file_sha256(member.program)} if member.program else {}
        return self.make(f"{name}-{member.role}-{split}", config, inputs, build)

    def speed(self, members: Mapping[str, Member], sweep: Path, measure: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """Images per second by role, measured once in a `sweep` for each pair of nets: its trials differ in weights, which are as fast as others."""
        nets = {role: [m.request.name, m.request.kwargs, vars(m.created.pixels), count_params(m.created.model)] for role, m in members.items()}
        config = {"sweep": str(sweep.absolute()), "nets": nets, "device": str(self.parts.trainer.device)}
        stage = self.make("speed", config, {}, lambda folder: write_atomically(folder / SPEED, json.dumps(measure())))
        found: dict[str, float] = json.loads((stage.path / SPEED).read_text(encoding="utf-8"))
        return found

    @property
    def limit(self) -> float | None:
        """How much of a split is looked at when a model is measured."""
        return self.parts.trainer.limit_test_batches

    def predict(self, member: Member, split: str, *, embeddings: bool = False, corruption: Corruption | None = None) -> Predictions:
        """A member's answers on a split, or on its images corrupted."""
        spoiled = {"corruption": corruption} if corruption else {}
        splits = ("train", "validation", "test") if split == "all" else (split,)
        batches = Chained([self.data.evaluation(each, member.created.pixels, **spoiled) for each in splits])
        if corruption is None:
            self.console.line(f"  {member.role}: {split} images ...")
        device = self.parts.trainer.device
        return predict(member.answering(), batches, member.created.pixels, device=device, limit=self.limit, embeddings=embeddings)

    def _answers(self, teacher: Member) -> Answers | None:
        """The teacher's answers on validation; none where only a part of it was looked at."""
        if self.limit is not None:
            return None
        found = self.predictions(teacher, "validation")
        order = found.index.argsort()
        return Answers(torch.from_numpy(found.index[order]), torch.from_numpy(found.logits[order]))

    def _stored(self, teacher: Member, sees: Pixels) -> StoredAnswers:
        """The teacher's answers to every view that a student who expects these pixels is shown, computed once."""
        config = {
            "model": teacher.request.name,
            "pixels": vars(teacher.created.pixels),
            "sees": vars(sees),
            "view": self.parts.config["data"]["view"],
            "views": self.data.views,
            **self._changes(),
            **({"labels": self.data.labels} if self.data.mix else {}),
        }
        inputs = {"data": self.data.fingerprint, "weights": teacher.created.weights.sha256}
        trainer = self.parts.trainer
        place: dict[str, Any] = {"device": trainer.device, "channels_last": trainer.channels_last, "say": self.console.line}
        stage = self.make(STORED, config, inputs, lambda folder: store(teacher.created, self.data, sees, folder, **place))
        return StoredAnswers.load(stage.path)

    def make(self, name: str, config: dict[str, Any], inputs: dict[str, str], build: Callable[[Path], None]) -> Stage:
        """The stage `name` of this configuration and these inputs, made or found, and counted as used."""
        try:
            stage = self.stages.make(name, config=_plain(config), inputs=inputs, build=build)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunError(
                f"{str(error).strip()} It read images; a machine without memory left kills such processes. What was trained is kept: "
                "the same command goes on from here, with data.num_workers=0 in this process alone."
            ) from error
        self.used.append(stage)
        return stage


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(config))
    return found


def _of_other_classes(teacher: Member) -> Member:
    known = teacher.created.weights
    return replace(teacher, unmeasured=f"from {known.source} (sha256 {known.sha256[:16]}), answers in other classes than the data's")


def told(member: Member) -> dict[str, Any]:
    """Where a model is to be found: name, source, sha256, and the stage that made it or the folder it came from."""
    weights, path = member.created.weights, member.request.origin.path
    return {
        "name": member.request.name,
        "source": weights.source,
        "sha256": weights.sha256,
        "stage": str(member.folder) if member.folder else None,
        "path": str(path) if path else None,
    }


def _both(first: Callable[..., None] | None, second: Callable[..., None]) -> Callable[..., None]:
    def listen(row: dict[str, float], step: int) -> None:
        if first is not None:
            first(row, step)
        second(row, step)

    return listen


class Chained:
    """Several loaders, one after the other."""

    def __init__(self, loaders: list[Any]) -> None:
        self._loaders = loaders

    def __len__(self) -> int:
        return sum(len(loader) for loader in self._loaders)

    def __iter__(self) -> Iterator[Batch]:
        for loader in self._loaders:
            yield from loader
