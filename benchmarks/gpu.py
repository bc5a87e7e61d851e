"""How fast and how exact is training on this GPU? ``python -m benchmarks.gpu``

In under eight minutes, on one GPU: resnet50 -> resnet18 at 224 pixels in bf16, on noise
in memory and on JPEG files, compiled and not, and ViT-B -> ViT-S, all beside a bare
compiled loop; the losses of bf16 and of 16-bit floats beside those of 32-bit floats;
NCCL with one process; the teacher's forward pass in several forms; peak memory. A part
that would begin after six minutes is left out, which the page says. Writes
``docs/gpu.md``.

Needs the packages of ``pip install kd_app`` and no network: on a machine without one,
unpack their wheels first. Without a GPU, ``--tiny`` runs all parts at tiny sizes on the
CPU, as a test of this file; its figures mean nothing, so it writes no page.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import lightning.pytorch as pl
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.photo_files import write_photos
from benchmarks.training_loop import build_live_job, build_loop, read_clock
from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.reporting.console import Console
from kd_app.run.workspace import Workspace
from kd_app.specs.spec import build_spec
from kd_app.stages import Stages

PAGE: Final = Path("docs/gpu.md")
LAST_START: Final = 360.0
"""Seconds after which no further part begins."""
CLASSES: Final = 10


@dataclass(frozen=True)
class Size:
    """Networks, pixels and steps. pairs: (teacher, student, images in a batch).
    precisions: compared with 32-bit floats. backend: that of torch.compile.
    """

    device: str
    side: int
    pairs: tuple[tuple[str, str, int], tuple[str, str, int]]
    images: int
    steps: int
    skip: int
    photo: tuple[int, int]
    precisions: tuple[str, ...]
    backend: str


FULL = Size(
    device="cuda",
    side=224,
    pairs=(
        ("resnet50", "resnet18", 256),
        ("vit_base_patch16_224", "vit_small_patch16_224", 128),
    ),
    images=4096,
    steps=30,
    skip=10,
    photo=(500, 375),
    precisions=("bf16-mixed", "16-mixed"),
    backend="inductor",
)
TINY = Size(
    device="cpu",
    side=32,
    pairs=(("resnet10t", "resnet10t", 4), ("vit_tiny_patch16_224", "test_vit", 2)),
    images=40,
    steps=2,
    skip=1,
    photo=(48, 36),
    precisions=("bf16-mixed",),
    backend="eager",  # inductor takes minutes on a CPU
)


class Row(NamedTuple):
    """A line of a table: what was measured, and the cells."""

    name: str
    cells: tuple[str, ...]


@dataclass
class Report:
    """The tables that are written, and the parts that were left out, with reasons."""

    start: float = field(default_factory=time.perf_counter)
    tables: dict[tuple[str, tuple[str, ...]], list[Row]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def measure(
        self, table: tuple[str, tuple[str, ...]], name: str, part: Callable[[], Sequence[str]]
    ) -> None:
        """Add the cells of a part, or the reason why it failed or was left out."""
        seconds = time.perf_counter() - self.start
        if seconds > LAST_START:
            self.left_out.append(f"{table[0]}, {name}: no time was left after {seconds:.0f} s")
            return
        try:
            cells = tuple(part())
        except (RuntimeError, RequestError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            self.left_out.append(f"{table[0]}, {name}: {type(error).__name__}: {reason}")
            return
        self.tables.setdefault(table, []).append(Row(name, cells))
        print(f"{seconds:5.0f} s  {table[0]}, {name}: {', '.join(cells)}", flush=True)

    def render(self, device: str) -> str:
        """Return the page."""
        lines = [
            "# Measured on a GPU",
            "",
            f"`python -m benchmarks.gpu`, on one {device}, torch {torch.__version__}, CUDA"
            f" {torch.version.cuda}. One process, one training each.",
        ]
        for (title, columns), rows in self.tables.items():
            lines += ["", f"## {title}", "", f"| {' | '.join(columns)} |"]
            lines += ["|" + "---|" * len(columns)]
            lines += [f"| {' | '.join((row.name, *row.cells))} |" for row in rows]
        if self.left_out:
            lines += ["", "## Left out", "", *(f"- {reason}" for reason in self.left_out)]
        return "\n".join(lines) + "\n"


SPEED = ("Training", ("pair, images", "images/s", "of the bare compiled loop", "peak memory (GiB)"))
EXACT = ("Losses against 32-bit floats", ("precision", "largest relative difference", "last loss"))
PROCESSES = ("One process of a group", ("backend", "result"))
TEACHER = ("The teacher's forward pass", ("form", "images/s", "of the first form"))


@contextmanager
def track_memory(device: str) -> Iterator[Callable[[], str]]:
    """Yield a function that returns the peak memory in GiB since the start."""
    is_gpu = device == "cuda"
    if is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield lambda: f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if is_gpu else "-"


def build_workspace(
    size: Size, pair: int, folder: Path, *overrides: str, photos: Path | None = None
) -> Workspace:
    """Return the workspace of a pair, on noise in memory or on `photos`."""
    teacher, student, batch = size.pairs[pair]
    noise = [
        "data=digits",
        "data.source._target_=benchmarks.noise.Noise",
        f"+data.source.images={size.images}",
        f"+data.source.side={size.side}",
        "+data.source.channels=3",
        "data.view.padding=4",
        "data.view.flip=true",
    ]
    steps = size.steps + size.skip
    spec = build_spec(
        compose_config(
            "distill",
            [
                *(noise if photos is None else ["data=folder", f"data.root={photos}"]),
                f"data.image_size={size.side}",
                f"data.batch_size={batch}",
                f"teacher.name={teacher}",
                f"student.name={student}",
                "teacher.pretrained=false",
                "student.pretrained=false",
                "loss=[cross_entropy,soft_target]",
                f"trainer.accelerator={'gpu' if size.device == 'cuda' else 'cpu'}",
                "trainer.devices=1",
                "trainer.max_epochs=1",
                f"trainer.limit_train_batches={steps}",
                "trainer.limit_val_batches=1",
                "logger=[csv]",
                *overrides,
            ],
        )
    )
    workspace = Workspace(spec, Stages(folder / "stages"), Console(silent=True), tracker=None)
    workspace.prepare_data()
    return workspace


def run_bare(size: Size, pair: int) -> float:
    """Return the images per second of a minimal loop in bf16: noise on the device,
    mirrored, AdamW on cross-entropy and soft targets.
    """
    teacher_name, student_name, batch = size.pairs[pair]
    build = partial(build_model, size)
    teacher, student = build(teacher_name).eval().requires_grad_(False), build(student_name)
    forward, infer = (
        torch.compile(model, backend=size.backend) for model in (student.train(), teacher)
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    shape = (size.images, 3, size.side, size.side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=size.device)
    target = torch.randint(0, CLASSES, (size.images,), device=size.device)

    def step() -> None:
        index = torch.randint(0, size.images, (batch,), device=size.device)
        image = (images[index].float() / 255 - 0.5) / 0.25
        image = image.flip(-1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(size.device, dtype=torch.bfloat16):
            with torch.no_grad():
                soft = infer(image)
            logits = forward(image)
        loss = F.cross_entropy(logits.float(), target[index]) + 16 * F.kl_div(
            F.log_softmax(logits.float() / 4, 1),
            F.log_softmax(soft.float() / 4, 1),
            reduction="batchmean",
            log_target=True,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return time_steps(step, size) * batch


def build_model(size: Size, name: str) -> nn.Module:
    """Return a model with random weights on the device, in channels-last memory."""
    sized: dict[str, Any] = {"img_size": size.side} if "vit" in name else {}
    model: nn.Module = timm.create_model(name, num_classes=CLASSES, **sized)
    return model.to(size.device).to(memory_format=torch.channels_last)


def compile_model(model: nn.Module, size: Size, mode: str) -> Any:
    """Compile with inductor in a mode, or with the tiny size's backend."""
    if size.backend != "inductor":
        return torch.compile(model, backend=size.backend)
    return torch.compile(model, mode=mode)


def time_steps(step: Callable[[], Any], size: Size) -> float:
    """Return the steps per second after the warm-up."""
    for _ in range(size.skip):
        step()
    start = read_clock()
    for _ in range(size.steps):
        step()
    return size.steps / (read_clock() - start)


def measure_training(report: Report, size: Size, folder: Path, photos: Path) -> None:
    """The main loop on noise and on files, compiled and not, beside a bare loop."""
    for pair, (teacher, student, batch) in enumerate(size.pairs):
        label, bare = f"{teacher} -> {student}", [0.0]

        def run_reference(pair: int = pair, bare: list[float] = bare) -> Sequence[str]:
            with track_memory(size.device) as read_peak:
                bare[0] = run_bare(size, pair)
                return f"{bare[0]:,.0f}", "1", read_peak()

        def run_loop(
            *overrides: str,
            photos: Path | None = None,
            pair: int = pair,
            batch: int = batch,
            bare: list[float] = bare,
        ) -> Sequence[str]:
            workspace = build_workspace(size, pair, folder, *overrides, photos=photos)
            with track_memory(size.device) as read_peak:
                seconds = build_loop(workspace, build_live_job(workspace), folder, size.skip)()
                speed = size.steps * batch / seconds
                share = f"{speed / bare[0]:.2f}" if bare[0] else "unknown"
                return f"{speed:,.0f}", share, read_peak()

        bf16 = "trainer.precision=bf16-mixed"
        report.measure(SPEED, f"{label}, bare compiled loop, noise", run_reference)
        report.measure(SPEED, f"{label}, noise", partial(run_loop, bf16))
        if size.backend == "inductor":
            compiled = partial(run_loop, bf16, "trainer.compile=true")
            report.measure(SPEED, f"{label}, noise, student compiled", compiled)
        if not pair:
            for cache in ("none", "ram"):
                settings = (bf16, f"data.cache={cache}")
                name = f"{label}, JPEG files, data.cache={cache}"
                report.measure(SPEED, name, partial(run_loop, *settings, photos=photos))


class LossList(pl.Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        loss: Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs
        self.losses.append(float(loss))


def train_losses(size: Size, folder: Path, precision: str) -> list[float]:
    """Return the losses of a training with equal seeds."""
    workspace = build_workspace(size, 0, folder, f"trainer.precision={precision}")
    losses = LossList()
    build_loop(workspace, build_live_job(workspace), folder, size.skip, more=[losses])()
    return losses.losses


def measure_precisions(report: Report, size: Size, folder: Path) -> None:
    """The losses of the first steps in mixed precision against 32-bit floats."""
    exact: list[float] = []

    def run_exact() -> Sequence[str]:
        exact.extend(train_losses(size, folder, "32-true"))
        return "0", f"{exact[-1]:.4f}"

    def compare(precision: str) -> Sequence[str]:
        losses = train_losses(size, folder, precision)
        pairs = zip(losses, exact, strict=True)
        difference = max(abs(loss - other) / abs(other) for loss, other in pairs)
        return f"{100 * difference:.2f} %", f"{losses[-1]:.4f}"

    report.measure(EXACT, "32-true", run_exact)
    for precision in size.precisions:
        report.measure(EXACT, precision, partial(compare, precision))


def measure_group(report: Report, size: Size) -> None:
    """A process group of one: all-reduce, and a step of a model under DDP."""
    backend = "nccl" if size.device == "cuda" else "gloo"

    def run_step() -> Sequence[str]:
        with tempfile.TemporaryDirectory() as name:
            address = f"file://{Path(name) / 'store'}"
            torch.distributed.init_process_group(backend, init_method=address, rank=0, world_size=1)
            try:
                total = torch.ones(3, device=size.device)
                torch.distributed.all_reduce(total)
                model = nn.parallel.DistributedDataParallel(nn.Linear(3, 2).to(size.device))
                model(total).sum().backward()
                is_right = total.tolist() == [1.0] * 3
            finally:
                torch.distributed.destroy_process_group()
        return ("all-reduce and a DDP step: right" if is_right else "wrong sums",)

    report.measure(PROCESSES, backend, run_step)


def measure_teacher(report: Report, size: Size) -> None:
    """The first teacher's forward pass: 32-bit floats, autocast, bf16 weights,
    compiled, and replayed as a CUDA graph.
    """
    name, _, batch = size.pairs[0]
    first: list[float] = []
    image = torch.randn(batch, 3, size.side, size.side, device=size.device)
    image = image.contiguous(memory_format=torch.channels_last)

    def run_form(dtype: torch.dtype, *, autocast: bool, mode: str | None) -> Sequence[str]:
        model = build_model(size, name).eval().to(dtype)
        infer = model if mode is None else compile_model(model, size, mode)
        batch_image = image.to(dtype)

        @torch.no_grad()
        def step() -> None:
            with torch.autocast(size.device, dtype=torch.bfloat16, enabled=autocast):
                infer(batch_image)

        speed = time_steps(step, size) * batch
        first.append(speed)
        return f"{speed:,.0f}", f"{speed / first[0]:.2f}"

    whole, half = torch.float32, torch.bfloat16
    forms: dict[str, tuple[torch.dtype, bool, str | None]] = {
        "32-bit floats": (whole, False, None),
        "bf16 autocast (as kd_app)": (whole, True, None),
        "bf16 weights": (half, False, None),
        "bf16 weights, compiled": (half, False, "default"),
    }
    if size.device == "cuda":
        forms["bf16 weights, compiled, CUDA graph"] = (half, False, "reduce-overhead")
    for label, (dtype, autocast, mode) in forms.items():
        report.measure(TEACHER, label, partial(run_form, dtype, autocast=autocast, mode=mode))


def run(size: Size, folder: Path) -> Report:
    """Measure all parts; the shortest that matter most come first."""
    width, height = size.photo
    photos = write_photos(folder / "photos", size.images, width=width, height=height)
    report = Report()
    measure_group(report, size)
    measure_precisions(report, size, folder)
    measure_training(report, size, folder, photos)
    measure_teacher(report, size)
    return report


def main() -> int:
    """Write the page, or print it with ``--tiny``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU, no page")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        print("This machine has no GPU. Type: python -m benchmarks.gpu --tiny", file=sys.stderr)
        return 2
    if not arguments.tiny:
        # One process needs no network.
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as name:
        report = run(TINY if arguments.tiny else FULL, Path(name))
    if arguments.tiny:
        print(report.render("CPU, tiny sizes: these figures mean nothing"))
        return int(bool(report.left_out))
    PAGE.write_text(report.render(torch.cuda.get_device_name()), encoding="utf-8")
    print(f"{PAGE} is written.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
