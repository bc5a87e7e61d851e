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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from kd_app.config import Pixels, RequestError
from kd_app.data.batch import Batch
from kd_app.data.module import ImageData
from kd_app.data.normalize import normalize
from kd_app.models.create import Created, create
from kd_app.models.outputs import Outputs
from kd_app.models.request import ModelRequest
from kd_app.models.ship import save_model
from kd_app.models.taps import Taps
from kd_app.models.teacher import FrozenTeacher
from kd_app.reporting.console import Console
from kd_app.stages import write_atomically
from kd_app.training.callbacks import BEST, LAST, Keep, Progress, SkipNotFinite, Stopped
from kd_app.training.curves import FILE, CurveLogger, forget_after
from kd_app.training.module import NOT_FINITE, Answers, Distillation
from kd_app.training.ranks.agreement import Agreement
from kd_app.training.recipe import Recipe
from kd_app.training.stored import StoredAnswers
from kd_app.training.terms import WeightedTerms
from kd_app.training.trainer import PROFILE, TrainerSettings

MODEL = "model"
RECORD = "training.json"


@dataclass(frozen=True)
class Taught:
    """A model to train and what it is trained on: who asks for it, its recipe, its
    pixels, and the teacher, if it has one.

    decay: the teacher is the student's own average, which moves so. stored: the
    teacher's answers, read in the place of asking it. shuffled: it is shown another
    image of the same class in the place of each.
    """

    role: str
    request: ModelRequest
    pixels: Pixels
    recipe: Recipe
    teacher: Created | None = None
    answers: Answers | None = None
    license: str = "unknown"
    shuffled: bool = False
    stored: StoredAnswers | None = None
    decay: float | None = None


def fit(
    taught: Taught,
    data: Any,
    settings: TrainerSettings,
    folder: Path,
    *,
    console: Console,
    listen: Callable[..., None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train `taught` on `data` in `folder`: ``model/`` (what ships), ``training.json``,
    ``curves.jsonl``; ``last.ckpt`` while it is under way.

    callbacks: more than the recipe's.
    """
    if (folder / RECORD).is_file():  # an earlier attempt was stopped after its last line
        _tidy(folder)
        return
    classes = list(data.classes)
    created = create(taught.request, taught.pixels, len(classes), seed=taught.recipe.seed)
    on_labels = not taught.recipe.terms().needs_teacher
    data.bind(
        taught.pixels,
        order_seed=taught.recipe.seed,
        shuffled=taught.shuffled,
        on_labels=on_labels,
        fresh=taught.role == "teacher",
    )
    module = build(taught, created, data, settings)
    replayed = isinstance(data, ImageData)
    keep = Keep(
        folder,
        minutes=settings.checkpoint_minutes if replayed else None,
        steps=settings.checkpoint_steps if replayed else None,
    )
    progress = Progress(taught.role, console)
    skip = SkipNotFinite()
    agreement = (
        Agreement(_told(taught, created, data, settings)) if settings.world_size > 1 else None
    )
    asked = [skip] if settings.on_nan == "skip" else []
    together = [agreement] if agreement else []
    all_of_them = [*taught.recipe.make_callbacks(), *callbacks, progress, *asked, *together, keep]
    with quiet():
        trainer = settings.make(
            max_epochs=taught.recipe.max_epochs,
            folder=folder,
            callbacks=all_of_them,
            loggers=[CurveLogger(folder, listen)],
        )
    if settings.compile:
        torch._functorch.config.donated_buffer = (
            False  # the first steps go backward through each term by itself
        )
        module.student.compile()
    step = resumed(folder, console.say)
    if step is not None:
        console.say(f"  {taught.role}: goes on at step {step}")
    _run(trainer, module, data, keep, None if step is None else folder / LAST)
    if settings.profiler:
        console.say(
            "\n".join(
                path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"*{PROFILE}*.txt"))
            )
        )
    if skip.skipped:
        console.say(
            f"Note: {taught.role}: {skip.skipped} steps were left out because their gradient was"
            " not finite"
        )
    if trainer.is_global_zero:
        net, widths = module.student, created.widths
        net.load_state_dict(load_file(folder / BEST))
        save_model(
            net.cpu().eval(),
            folder / MODEL,
            pixels=taught.pixels,
            classes=classes,
            license=taught.license,
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


def _told(taught: Taught, created: Created, data: Any, settings: TrainerSettings) -> dict[str, Any]:
    """What decides a training, as plain data: ranks that differ in it must not train
    together.
    """
    teacher = taught.teacher.weights.sha256 if taught.teacher else None
    starts = {"student": created.weights.sha256, "teacher": teacher, "data": data.fingerprint}
    own = {
        "recipe": vars(taught.recipe),
        "pixels": vars(taught.pixels),
        "shuffled": taught.shuffled,
        "stored": taught.stored is not None,
    }
    return {"role": taught.role, "trainer": settings.identity(), **own, **starts}


def resumed(folder: Path, say: Callable[[str], None] = print) -> int | None:
    """The optimizer steps that an earlier attempt in `folder` saved, and its curves cut
    off there; None where none did, or it is damaged or whole.
    """
    if (folder / RECORD).is_file():
        return None
    if not (folder / LAST).is_file():
        forget_after(folder / FILE, -1)
        return None
    if not _whole(folder / LAST):
        say(f"{folder / LAST} is damaged; this training starts again from its beginning")
        (folder / LAST).unlink()
        forget_after(folder / FILE, -1)
        return None
    step = int(
        torch.load(folder / LAST, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    )
    forget_after(folder / FILE, step)
    return step


def _whole(checkpoint: Path) -> bool:
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


def build(taught: Taught, created: Created, data: Any, settings: TrainerSettings) -> Distillation:
    """The LightningModule of one training, with the adapters that its terms need for
    these two models.
    """
    terms = taught.recipe.terms()
    teacher = None
    if taught.teacher is not None and terms.needs_teacher:
        casts = settings.precision not in ("32-true", "16-mixed", "bf16-mixed")
        start = taught.teacher.model if taught.decay is None else created.model
        model = (
            deepcopy(start) if casts or taught.decay is not None else start
        )  # the run goes on to use it as it is
        teacher = FrozenTeacher(
            model,
            reads=terms.teacher_reads,
            pixels=taught.teacher.pixels,
            sees=taught.pixels,
            attention_blocks=terms.attention_blocks,
            members=terms.member_reads,
        )
    _adapt(terms, created, teacher, data, taught.recipe.seed)
    student = terms.deployed(created.model)
    decay = None if teacher is None else taught.decay
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
        terms=terms,
        teacher=None if taught.stored else teacher,
        pixels=taught.pixels,
        num_classes=len(data.classes),
        optimizer=taught.recipe.make_optimizer(),
        schedule=taught.recipe.make_schedule(),
        seed=taught.recipe.seed,
        from_random=not taught.request.origin.has_weights,
        answers=taught.answers,
        channels_last=settings.channels_last,
        log_every=settings.log_every,
        gradient_share=settings.gradient_share,
        skips=settings.on_nan == "skip",
        stored=taught.stored,
        decay=decay,
    )


def _adapt(
    terms: WeightedTerms, created: Created, teacher: FrozenTeacher | None, data: Any, seed: int
) -> None:
    """Measure both models on a few real images and let the terms build their adapters
    from what they saw.
    """
    if teacher is None:
        return
    batch: Batch = next(iter(data.evaluation("train", created.pixels, batch_size=8)))
    image = (
        normalize(batch.image, created.pixels, torch.contiguous_format)
        if batch.image.dtype == torch.uint8
        else batch.image
    )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        outputs: Outputs = Taps(created.model.eval(), terms.reads)(image)
        images = torch.from_numpy(data.rows("train")) if isinstance(data, ImageData) else None
        terms.build(outputs, teacher(image), images)


def _run(
    trainer: Any, module: Distillation, data: Any, keep: Keep, checkpoint: Path | None
) -> None:
    """Fit; then signals do what they did before, where Lightning and `Keep` make them
    something else.
    """
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    }
    try:
        with quiet():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except Stopped:
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
def quiet() -> Iterator[None]:
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


def trained(request: ModelRequest, folder: Path) -> ModelRequest:
    """The request for the model that a training left in `folder`."""
    shipped = folder / MODEL
    checkpoint = shipped / "model.safetensors" if request.factory else shipped
    return ModelRequest(
        role=request.role,
        name=request.name,
        pretrained="auto",
        checkpoint=checkpoint,
        kwargs=request.kwargs if request.factory else {},
        image_size=None,
        factory=request.factory,
    )
