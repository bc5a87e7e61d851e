"""One training, in one process or as one rank of several: build, resume, train, and
write the model folder.
"""

import json
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from zipfile import ZipFile

import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from torch import Tensor

from kd_app.callbacks.averaging import EMA
from kd_app.callbacks.curve_log import FILE, CurveLogger, drop_points_after
from kd_app.callbacks.non_finite_steps import SkipNonFiniteSteps
from kd_app.callbacks.progress import Progress
from kd_app.callbacks.resumable_checkpoint import (
    BEST,
    LAST,
    ResumableCheckpoint,
    TrainingInterrupted,
    is_best_intact,
    remove_state,
    restore_best,
)
from kd_app.config import RequestError, RunError
from kd_app.config.own_code import describe_own_error
from kd_app.data.base import RunData
from kd_app.data.batch import Batch
from kd_app.data.normalize import normalize
from kd_app.data.pseudo_labels import read_pseudo_labels
from kd_app.distributed.consistency import RankConsistency
from kd_app.losses.distillation_loss import DistillationLoss
from kd_app.models.create import create
from kd_app.models.outputs import Outputs
from kd_app.models.save import save_model
from kd_app.models.spec import LoadedModel, ModelSpec
from kd_app.models.taps import Taps
from kd_app.models.teacher import FrozenTeacher
from kd_app.reporting.console import Console
from kd_app.signals import STOP_SIGNALS, raise_stop
from kd_app.stages import hash_content, write_atomically
from kd_app.teacher_outputs.cache import TeacherCache, TeacherLogits
from kd_app.teacher_outputs.source import build_teacher_source
from kd_app.training.cpu_convolutions import prepare_cpu
from kd_app.training.failures import explain_failures
from kd_app.training.freeze import freeze_layers
from kd_app.training.job import TrainingJob
from kd_app.training.module import NOT_FINITE, Distillation, StepOptions
from kd_app.training.record import RECORD, describe_outcome, read_training
from kd_app.training.trainer import PROFILE, TrainerSettings, silence_lightning

MODEL = "model"


def fit(
    job: TrainingJob,
    data: RunData,
    settings: TrainerSettings,
    folder: Path,
    *,
    console: Console,
    listen: Callable[..., None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train `job` on `data` in `folder`, resuming an earlier attempt.

    Writes ``model/`` (the trained model), ``training.json`` and ``curves.jsonl``, and
    during the training ``last.ckpt``. `callbacks` are added to those of the recipe.
    """
    if _is_finished(folder, console.print):
        # an earlier attempt was stopped between writing the record and this clean-up
        _tidy(folder)
        return
    created = create(job.model, job.input, job.count_outputs(data), seed=job.recipe.seed)
    data.bind(
        job.input,
        order_seed=job.recipe.seed,
        partners=job.partners,
        pseudo_labels=read_pseudo_labels(job.pseudo_labels, len(data.files), len(data.classes))
        if job.pseudo_labels
        else None,
        labeled_only=not job.recipe.needs_teacher,
        fresh_views=job.fresh_views,
        with_validation=job.refit_weights is not None,
    )
    module = build(job, created, data, settings)
    own = _build_callbacks(job, created, data, settings, folder=folder, console=console)
    with silence_lightning():
        trainer = settings.make(
            max_epochs=job.recipe.max_epochs,
            validate=job.refit_weights is None,
            folder=folder,
            callbacks=own.list_in_order(callbacks),
            loggers=[CurveLogger(folder, listen)],
        )
    if settings.compile:
        # `check_terms` goes backward through the graph once for each term
        torch._functorch.config.donated_buffer = False
        module.student.compile()
    step = prepare_resume(folder, console.print)
    if step is not None:
        console.print(f"  {job.name}: resumes at step {step}")
    with explain_failures(trainer, own.recipe, job.name, first_step=step or 0):
        _run(trainer, module, data, own.checkpoints, settings, is_resumed=step is not None)
    if settings.profiler:
        profiles = sorted(folder.glob(f"*{PROFILE}*.txt"))
        console.print("\n".join(path.read_text(encoding="utf-8") for path in profiles))
    if num_skipped := own.skip.skipped:
        console.print(
            f"Note: {job.name}: {num_skipped} steps with a non-finite gradient were skipped"
        )
    if trainer.is_global_zero:
        best = own.checkpoints.best
        module.student.load_state_dict(_load_best(folder, own.checkpoints.sha256))
        save_model(
            module.student.cpu().eval(),
            folder / MODEL,
            pixels=job.input,
            classes=list(data.classes),
            license=job.license,
            widths=created.widths,
            label=f"{job.name} after epoch {int(best['epoch']) + 1}",
            entries=job.task.describe_model(),
        )
        record = {
            "best": best,
            "epochs": trainer.fit_loop.epoch_progress.current.completed,
            "max_epochs": job.recipe.max_epochs,
            "images_per_second": own.progress.images_per_second or None,
            "weights": vars(created.weights),
            "precision": settings.precision,
            "skipped_steps": own.skip.skipped,
            "ranks": own.consistency.ranks if own.consistency else [],
            "files": _hash_files(folder / MODEL),
        }
        write_atomically(folder / RECORD, json.dumps(record, indent=1))
        for sentence in describe_outcome(record):
            console.print(f"  {job.name}: {sentence}")
        _tidy(folder)


@dataclass(frozen=True)
class _Callbacks:
    """The callbacks of a training.

    recipe: the user's. consistency: None in a single process.
    """

    recipe: Mapping[str, Callback]
    progress: Progress
    skip: SkipNonFiniteSteps
    skips_steps: bool
    consistency: RankConsistency | None
    checkpoints: ResumableCheckpoint

    def list_in_order(self, more: Sequence[Callback]) -> list[Callback]:
        """All callbacks, and `more` after those of the recipe. A checkpoint comes last:
        it holds the state of the others.
        """
        optional = [self.skip if self.skips_steps else None, self.consistency]
        others = [each for each in optional if each is not None]
        return [*self.recipe.values(), *more, self.progress, *others, self.checkpoints]


def _build_callbacks(
    job: TrainingJob,
    created: LoadedModel,
    data: RunData,
    settings: TrainerSettings,
    *,
    folder: Path,
    console: Console,
) -> _Callbacks:
    recipe = job.recipe.make_callbacks(job.task)
    # without replay the loader can't continue within an epoch
    has_replay = "replay" in data.capabilities
    consistency = None
    if settings.world_size > 1:
        consistency = RankConsistency(_describe_training(job, created, data, settings))
    return _Callbacks(
        recipe,
        Progress(job.name, console, metrics=job.task.progress),
        SkipNonFiniteSteps(),
        settings.on_nan == "skip",
        consistency,
        ResumableCheckpoint(
            folder,
            average=next((each for each in recipe.values() if isinstance(each, EMA)), None),
            minutes=settings.checkpoint_minutes if has_replay else None,
            steps=settings.checkpoint_steps if has_replay else None,
            last=job.refit_weights,
            selection=job.task.selection,
        ),
    )


def _load_best(folder: Path, sha256: str) -> dict[str, Tensor]:
    if not is_best_intact(folder, sha256):
        raise RunError(
            f"{folder / BEST} is damaged or missing, so the best weights of this training are lost."
            " Repeat the command: the training starts again."
        )
    return load_file(folder / BEST)


def _describe_training(
    job: TrainingJob, created: LoadedModel, data: RunData, settings: TrainerSettings
) -> dict[str, Any]:
    """Everything that must be equal on all ranks of a training, as plain data."""
    teacher = job.teacher.created.weights.sha256 if job.teacher else None
    return {
        "role": job.name,
        "identity": job.describe_identity(data, settings),
        "student": created.weights.sha256,
        "teacher": teacher,
        "data": data.fingerprint,
    }


def prepare_resume(folder: Path, warn: Callable[[str], None] = print) -> int | None:
    """Prepare `folder` for the next attempt and return the optimizer step at which the
    attempt resumes.

    Drops later points of the curves and a damaged checkpoint. Returns None if there is
    no usable checkpoint, or if the training is finished.
    """
    if _is_finished(folder, warn):
        return None
    step = -1
    if (folder / LAST).is_file():
        step, damaged = _read_step(folder)
        if damaged:
            warn(
                f"{folder / damaged} is damaged or missing; the training restarts from the"
                " beginning"
            )
    if step < 0:
        remove_state(folder)
    drop_points_after(folder / FILE, step)
    return None if step < 0 else step


def _read_step(folder: Path) -> tuple[int, str]:
    """The step of the checkpoint, or -1 and the name of a damaged file. Every entry of
    the checkpoint must match the checksum that torch wrote (torch does not verify
    checksums on loading).
    """
    try:
        with ZipFile(folder / LAST) as file:
            if file.testzip() is not None:
                return -1, LAST
        state = torch.load(folder / LAST, map_location="cpu", weights_only=True, mmap=True)
        step, has_best = int(state["global_step"]), restore_best(folder, state)
    except Exception:
        # a damaged file can raise any exception
        return -1, LAST
    return (step, "") if has_best else (-1, BEST)


def _is_finished(folder: Path, warn: Callable[[str], None]) -> bool:
    """Whether an earlier attempt wrote the model and its record. A damaged record is
    removed, so that the model is written again.
    """
    if not (folder / RECORD).is_file():
        return False
    with suppress(RequestError):  # the record is damaged
        files = read_training(folder)["files"]
        if files and files == _hash_files(folder / MODEL):
            return True
    warn(f"{folder / RECORD} or a file of the model is damaged; both are written again")
    (folder / RECORD).unlink(missing_ok=True)
    return False


def _hash_files(folder: Path) -> dict[str, str]:
    """The hash of each file in the folder of a model."""
    return {path.name: hash_content(path) for path in sorted(folder.glob("*")) if path.is_file()}


def _tidy(folder: Path) -> None:
    remove_state(folder)
    (folder / NOT_FINITE).unlink(missing_ok=True)


def build(
    job: TrainingJob, created: LoadedModel, data: RunData, settings: TrainerSettings
) -> Distillation:
    """Build the LightningModule of one training, with the terms' adapters."""
    terms = job.recipe.build_loss()
    freeze_layers(created.model, job.recipe.freeze)
    teaches_itself = job.partners == "view"
    source = job.teacher if terms.needs_teacher and not teaches_itself else None
    decay = source.ema_decay if source else None
    cache = TeacherCache.load(source.cached.shards) if source and source.cached else None
    teacher = None
    if source is not None:
        model = source.created.model if decay is None else created.model
        is_cast = settings.precision not in ("32-true", "16-mixed", "bf16-mixed")
        if is_cast or decay is not None:
            # the run needs the original weights after this training
            model = deepcopy(model)
        teacher = FrozenTeacher(
            model,
            reads=job.task.map_reads(terms.teacher_reads)
            | (cache.format.replays_with if cache else frozenset()),
            pixels=source.created.pixels,
            sees=job.input,
            attention_blocks=terms.attention_blocks,
            members={name: job.task.map_reads(reads) for name, reads in terms.member_reads.items()},
        )
    _build_adapters(terms, job, created, teacher, data)
    student = terms.wrap_student(created.model)
    if decay is not None and student is not created.model:
        raise RequestError(
            "teacher=ema averages the student's weights and does not support loss terms that"
            " change the student's architecture (simkd). Use other terms, for example soft_target,"
            " dist or sp."
        )
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    for module in (student, teacher):
        if module is not None:
            module.to(memory_format=memory_format)
    logits_folder = job.teacher.validation_logits if job.teacher else None
    itself = Taps(student, job.task.map_reads(terms.reads)) if teaches_itself else None
    return Distillation(
        student,
        loss=terms,
        teacher=build_teacher_source(teacher, cache, decay, itself),
        input_spec=job.input,
        num_classes=job.count_outputs(data),
        task=job.task,
        optimizer=job.recipe.make_optimizer(),
        schedule=job.recipe.make_schedule(),
        from_random=not job.model.origin.has_weights,
        validation_logits=TeacherLogits.load(logits_folder) if logits_folder else None,
        options=StepOptions(
            seed=job.recipe.seed,
            channels_last=settings.channels_last,
            log_every=settings.log_every,
            gradient_share=settings.gradient_share,
            skip_nonfinite=settings.on_nan == "skip",
        ),
    )


def _build_adapters(
    terms: DistillationLoss,
    job: TrainingJob,
    created: LoadedModel,
    teacher: FrozenTeacher | None,
    data: RunData,
) -> None:
    """Build the adapters of `terms` from both models' outputs for a few images."""
    if not job.recipe.needs_teacher:
        return
    batch: Batch = next(iter(data.build_evaluation_loader("train", created.pixels, batch_size=8)))
    image = batch.image
    if image.dtype == torch.uint8:
        image = normalize(image, created.pixels, torch.contiguous_format)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.recipe.seed)
        outputs: Outputs = Taps(created.model.eval(), job.task.map_reads(terms.reads))(image)
        rows = data.list_rows("train")
        image_numbers = None if rows is None else torch.from_numpy(rows)
        others = outputs if teacher is None else teacher(image)
        ours, theirs = (job.task.map_outputs(each) for each in (outputs, others))
        terms.build(ours, theirs, image_numbers)


def _run(
    trainer: Any,
    module: Distillation,
    data: RunData,
    checkpoints: ResumableCheckpoint,
    settings: TrainerSettings,
    *,
    is_resumed: bool,
) -> None:
    """Train, restore the signal handlers, and pass on a signal that stopped the
    training.
    """
    resume_from = checkpoints.folder / LAST if is_resumed else None
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        with silence_lightning(), prepare_cpu(settings, module.student, module.loss):
            trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
    except TrainingInterrupted:
        pass
    except SystemExit as stop:
        if stop.code != 1 or describe_own_error(stop):
            raise
        # Lightning exits with 1 on Ctrl-C before the first step
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
        # a failure after a signal, as of a child process, is part of the stop
        if checkpoints.stop.number is not None:
            _pass_on_stop(checkpoints.stop.number)


def _pass_on_stop(number: int) -> NoReturn:
    """Call the handler that was installed before the training, and stop."""
    try:
        signal.raise_signal(number)
    except SystemExit as stop:
        # a new one: the frame of a user's handler would look like a failure of its code
        raise SystemExit(stop.code) from None
    raise_stop(number)


def build_trained_spec(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The spec of the model that a training of `spec` wrote into `folder`."""
    checkpoint = folder / MODEL
    return ModelSpec(
        role=spec.role,
        name=spec.name,
        pretrained="auto",
        checkpoint=checkpoint / "model.safetensors" if spec.factory else checkpoint,
        kwargs=spec.kwargs if spec.factory else {},
        image_size=None,
        factory=spec.factory,
    )
