"""One training, in one process or as one rank of several: build, go on where it was,
train, and leave a model folder.
"""

import json
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from kd_app.config import RequestError
from kd_app.data.base import RunData
from kd_app.data.batch import Batch
from kd_app.data.normalize import normalize
from kd_app.models.create import LoadedModel, create
from kd_app.models.outputs import Outputs
from kd_app.models.save import save_model
from kd_app.models.spec import ModelSpec
from kd_app.models.taps import Taps
from kd_app.models.teacher import FrozenTeacher
from kd_app.reporting.console import Console
from kd_app.stages import write_atomically
from kd_app.training.callbacks import (
    BEST,
    LAST,
    Progress,
    ResumableCheckpoint,
    SkipNonFiniteSteps,
    TrainingInterrupted,
)
from kd_app.training.curve_log import FILE, CurveLogger, drop_points_after
from kd_app.training.distributed.consistency import RankConsistency
from kd_app.training.job import JobTeacher, TrainingJob
from kd_app.training.loss import DistillationLoss
from kd_app.training.module import NOT_FINITE, Distillation, StepOptions
from kd_app.training.teacher_cache import CachedTeacherLogits, TeacherLogits
from kd_app.training.teacher_source import CachedTeacher, LiveTeacher, StudentEma, TeacherSource
from kd_app.training.trainer import PROFILE, TrainerSettings

MODEL = "model"
RECORD = "training.json"


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
    """Train `job` on `data` in `folder`: ``model/`` (what ships), ``training.json``,
    ``curves.jsonl``; ``last.ckpt`` while it is under way.

    callbacks: more than the recipe's.
    """
    if (folder / RECORD).is_file():  # an earlier attempt was stopped after its last line
        _tidy(folder)
        return
    classes = list(data.classes)
    created = create(job.model, job.input, len(classes), seed=job.recipe.seed)
    data.bind(
        job.input,
        order_seed=job.recipe.seed,
        partner_images=job.partner_images,
        labeled_only=not job.recipe.needs_teacher,
        fresh_views=job.fresh_views,
    )
    module = build(job, created, data, settings)
    replayed = "replay" in data.capabilities
    keep = ResumableCheckpoint(
        folder,
        minutes=settings.checkpoint_minutes if replayed else None,
        steps=settings.checkpoint_steps if replayed else None,
    )
    progress = Progress(job.name, console)
    skip = SkipNonFiniteSteps()
    agreement = (
        RankConsistency(_describe_training(job, created, data, settings))
        if settings.world_size > 1
        else None
    )
    asked = [skip] if settings.on_nan == "skip" else []
    together = [agreement] if agreement else []
    all_of_them = [*job.recipe.make_callbacks(), *callbacks, progress, *asked, *together, keep]
    with silence_lightning():
        trainer = settings.make(
            max_epochs=job.recipe.max_epochs,
            folder=folder,
            callbacks=all_of_them,
            loggers=[CurveLogger(folder, listen)],
        )
    if settings.compile:
        torch._functorch.config.donated_buffer = (
            False  # the first steps go backward through each term by itself
        )
        module.student.compile()
    step = prepare_resume(folder, console.print)
    if step is not None:
        console.print(f"  {job.name}: goes on at step {step}")
    _run(trainer, module, data, keep, None if step is None else folder / LAST)
    if settings.profiler:
        console.print(
            "\n".join(
                path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"*{PROFILE}*.txt"))
            )
        )
    if skip.skipped:
        console.print(
            f"Note: {job.name}: {skip.skipped} steps were left out because their gradient was"
            " not finite"
        )
    if trainer.is_global_zero:
        net, widths = module.student, created.widths
        net.load_state_dict(load_file(folder / BEST))
        save_model(
            net.cpu().eval(),
            folder / MODEL,
            pixels=job.input,
            classes=classes,
            license=job.license,
            widths=widths,
        )
        record = {
            "best": keep.best,
            "images_per_second": progress.images_per_second or None,
            "weights": vars(created.weights),
            "precision": settings.precision,
            "skipped_steps": skip.skipped,
            "ranks": agreement.ranks if agreement else [],
        }
        write_atomically(folder / RECORD, json.dumps(record, indent=1))
        _tidy(folder)


def _describe_training(
    job: TrainingJob, created: LoadedModel, data: RunData, settings: TrainerSettings
) -> dict[str, Any]:
    """What decides a training, as plain data: ranks that differ in it must not train
    together.
    """
    teacher = job.teacher
    starts = {
        "student": created.weights.sha256,
        "teacher": teacher.created.weights.sha256 if teacher else None,
        "data": data.fingerprint,
    }
    own = {
        "recipe": job.recipe.to_json(),
        "pixels": vars(job.input),
        "partner_images": job.partner_images,
        "cached_logits": teacher is not None and teacher.cached_logits is not None,
    }
    return {"role": job.name, "trainer": settings.identity(), **own, **starts}


def prepare_resume(folder: Path, say: Callable[[str], None] = print) -> int | None:
    """The optimizer steps that an earlier attempt in `folder` saved, and its curves cut
    off there; None where none did, or it is damaged or whole.
    """
    if (folder / RECORD).is_file():
        return None
    if not (folder / LAST).is_file():
        drop_points_after(folder / FILE, -1)
        return None
    if not _is_whole(folder / LAST):
        say(f"{folder / LAST} is damaged; this training starts again from its beginning")
        (folder / LAST).unlink()
        drop_points_after(folder / FILE, -1)
        return None
    step = int(
        torch.load(folder / LAST, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    )
    drop_points_after(folder / FILE, step)
    return step


def _is_whole(checkpoint: Path) -> bool:
    """Whether it holds a step and nothing that would be run, and every entry has the
    checksum that torch wrote, and does not look at again.
    """
    try:
        with ZipFile(checkpoint) as file:
            return file.testzip() is None and "global_step" in torch.load(
                checkpoint, map_location="cpu", weights_only=True, mmap=True
            )
    except Exception:  # damage shows in any way
        return False


def _tidy(folder: Path) -> None:
    for name in (BEST, LAST, NOT_FINITE):
        (folder / name).unlink(missing_ok=True)


def build(
    job: TrainingJob, created: LoadedModel, data: RunData, settings: TrainerSettings
) -> Distillation:
    """The LightningModule of one training, with the adapters that its terms need for
    these two models.
    """
    terms = job.recipe.build_loss()
    source = job.teacher if terms.needs_teacher else None
    decay = source.ema_decay if source else None
    teacher = None
    if source is not None:
        casts = settings.precision not in ("32-true", "16-mixed", "bf16-mixed")
        start = source.created.model if decay is None else created.model
        model = (
            deepcopy(start) if casts or decay is not None else start
        )  # the run goes on to use it as it is
        teacher = FrozenTeacher(
            model,
            reads=terms.teacher_reads,
            pixels=source.created.pixels,
            sees=job.input,
            attention_blocks=terms.attention_blocks,
            members=terms.member_reads,
        )
    _adapt(terms, created, teacher, data, job.recipe.seed)
    student = terms.wrap_student(created.model)
    if decay is not None and student is not created.model:
        raise RequestError(
            "teacher=ema averages the student, and the loss makes another net of it (simkd). Leave"
            " that term out: soft_target, dist, sp."
        )
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    for each in (student, teacher):
        if each is not None:
            each.to(memory_format=memory_format)
    return Distillation(
        student,
        loss=terms,
        teacher=_build_source(source, teacher) if source and teacher else None,
        pixels=job.input,
        num_classes=len(data.classes),
        optimizer=job.recipe.make_optimizer(),
        schedule=job.recipe.make_schedule(),
        from_random=not job.model.origin.has_weights,
        validation_logits=TeacherLogits.load(source.validation_logits)
        if source and source.validation_logits
        else None,
        options=StepOptions(
            seed=job.recipe.seed,
            channels_last=settings.channels_last,
            log_every=settings.log_every,
            gradient_share=settings.gradient_share,
            skip_nonfinite=settings.on_nan == "skip",
        ),
    )


def _build_source(teacher: JobTeacher, frozen: FrozenTeacher) -> TeacherSource:
    if teacher.cached_logits is not None:
        return CachedTeacher(CachedTeacherLogits.load(teacher.cached_logits))
    if teacher.ema_decay is not None:
        return StudentEma(frozen, decay=teacher.ema_decay)
    return LiveTeacher(frozen)


def _adapt(
    terms: DistillationLoss,
    created: LoadedModel,
    teacher: FrozenTeacher | None,
    data: RunData,
    seed: int,
) -> None:
    """Measure both models on a few real images and let the terms build their adapters
    from what they saw.
    """
    if teacher is None:
        return
    batch: Batch = next(iter(data.build_evaluation_loader("train", created.pixels, batch_size=8)))
    image = (
        normalize(batch.image, created.pixels, torch.contiguous_format)
        if batch.image.dtype == torch.uint8
        else batch.image
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        outputs: Outputs = Taps(created.model.eval(), terms.reads)(image)
        rows = data.list_rows("train")
        images = None if rows is None else torch.from_numpy(rows)
        terms.build(outputs, teacher(image), images)


def _run(
    trainer: Any,
    module: Distillation,
    data: RunData,
    keep: ResumableCheckpoint,
    checkpoint: Path | None,
) -> None:
    """Fit; then signals do what they did before, where Lightning and `ResumableCheckpoint` make them
    something else.
    """
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    }
    try:
        with silence_lightning():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except TrainingInterrupted:
        pass
    except SystemExit as stop:
        if stop.code != 1:
            raise
        raise KeyboardInterrupt from None  # Ctrl-C before the first step
    finally:
        for number, handler in (
            before.items() if threading.current_thread() is threading.main_thread() else ()
        ):
            signal.signal(number, handler)
    if keep.stopped_by is not None:
        signal.raise_signal(keep.stopped_by)
        raise SystemExit(128 + keep.stopped_by)


@contextmanager
def silence_lightning() -> Iterator[None]:
    """Leave out what Lightning says to everybody: the run says where it is by itself."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for text in (
            "isinstance.treespec, LeafSpec",
            "The number of training batches",
            "The '\\w+' does not have many workers",
            "Checkpoint directory",
        ):
            warnings.filterwarnings("ignore", message=f".*{text}")
        yield


def specify_trained(request: ModelSpec, folder: Path) -> ModelSpec:
    """The request for the model that a training left in `folder`."""
    shipped = folder / MODEL
    checkpoint = shipped / "model.safetensors" if request.factory else shipped
    return ModelSpec(
        role=request.role,
        name=request.name,
        pretrained="auto",
        checkpoint=checkpoint,
        kwargs=request.kwargs if request.factory else {},
        image_size=None,
        factory=request.factory,
    )
