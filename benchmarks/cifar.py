"""What is distilling worth between unlike families, and where labels are few? ``python
-m benchmarks.cifar cifar10`` (``make cifar DATA=cifar10``)

CIFAR-10 as JPEG files in class folders, or any such folder of images of 32x32 pixels. A
CNN teaches a ViT, that ViT an MLP-Mixer, a Swin a MobileNet, each by terms that read
more than logits; the same CNN teaches a small one that is given 1, 10 and 100 % of the
labels, and the other images without. The Swin was taught by the CNN, too: from scratch
it is below the MobileNet after so few epochs, and has nothing to teach it. Small nets
and few epochs, so that it ends on two cores: a student is compared with the same net
after the same epochs on its labels alone, not with the best that can be had of it.
Everything is a stage of kd-distill: what is there is found.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models.mlp_mixer import MlpMixer
from torch import nn

from benchmarks.headline import ALONE, STUDENT, TAUGHT, said
from kd_app.reporting.results import Split, read
from kd_app.reporting.sentences import format_difference, format_interval, format_percent

SIDE, PATCH = 32, 4


def small_mixer(**kwargs: Any) -> nn.Module:
    """A Mixer for small images: timm's functions fix the size of the patches, its class
    does not.
    """
    return MlpMixer(img_size=SIDE, patch_size=PATCH, num_blocks=4, embed_dim=64, **kwargs)


def _model(name: str, **kwargs: object) -> list[str]:
    return [
        f"student.name={name}",
        *(f"student.kwargs.{key}={value}".replace(" ", "") for key, value in kwargs.items()),
    ]


CNN = _model("resnet8")
VIT = _model(
    "vit_tiny_patch16_224", img_size=SIDE, patch_size=PATCH, depth=4, embed_dim=64, num_heads=4
)
SWIN = _model(
    "swin_tiny_patch4_window7_224",
    img_size=SIDE,
    patch_size=PATCH,
    window_size=4,
    depths=[2, 2],
    embed_dim=64,
    num_heads=[2, 4],
)
MIXER = [
    *_model("small_mixer", num_classes=10),
    "student._target_=benchmarks.cifar.small_mixer",
    "allow=[benchmarks]",
]
MOBILE = _model("mobilenetv2_half")


@dataclass(frozen=True)
class Pair:
    """Who teaches whom by what: `teacher` is the name of a run whose student teaches."""

    name: str
    teacher: str
    words: tuple[str, ...]


BY_CNN = (
    "loss=[cross_entropy,soft_target,orthogonal_projection]",
    "loss.soft_target.temperature=1",
)
TEACHER = (*ALONE, *CNN, "trainer.max_epochs=10")
ASSISTANT = (*SWIN, *BY_CNN, "controls=[]", "trainer.max_epochs=8")
PAIRS = (
    Pair("cnn-vit", "cnn", (*VIT, *BY_CNN, "trainer.max_epochs=8")),
    Pair(
        "vit-mixer",
        "cnn-vit",
        (*MIXER, "trainer.max_epochs=4", "loss=[cross_entropy,dist,softmax_regression]"),
    ),
    Pair(
        "swin-mobilenet",
        "swin",
        (*MOBILE, "trainer.max_epochs=5", "loss=[cross_entropy,dist,softmax_regression]"),
    ),
)
SHARES = ("0.01", "0.1", "1.0")
FEW = "labels"


def make(data: Path, folder: Path, words: Sequence[str], only: Sequence[str]) -> None:
    """Train what lacks of the pairs named in `only`, and of the students of few labels,
    one after the other.
    """
    common = [
        "data=folder",
        f"data.root={data}",
        "data.view.scale=[0.6,1.0]",
        "logger=[csv]",
        *words,
    ]

    def distill(name: str, *more: str) -> None:
        said("distill", [*common, *more, f"out={folder / name}"])

    distill("cnn", *TEACHER)
    if any(pair.teacher == "swin" and pair.name in only for pair in PAIRS):
        distill("swin", f"teacher.checkpoint={folder / 'cnn'}", *ASSISTANT)
    for pair in PAIRS:
        if pair.name in only:
            distill(pair.name, f"teacher.checkpoint={folder / pair.teacher}", *pair.words)
    if FEW in only:
        few = (f"teacher.checkpoint={folder / 'cnn'}", *TAUGHT, *STUDENT, "trainer.max_epochs=6")
        distill(FEW, *few, "-m", f"data.label_fraction={','.join(SHARES)}", "test=always")


def tables(folder: Path) -> list[str]:
    """A Markdown table of what is done: test top-1 with 95 % intervals, and what
    distilling was worth.
    """
    pairs = [(pair.name.replace("-", " -> "), folder / pair.name) for pair in PAIRS]
    shares = [
        (f"{100 * float(share):g} % of the labels", folder / FEW / str(number))
        for number, share in enumerate(SHARES)
    ]
    there = [
        (name, read(path))
        for name, run in (*pairs, *shares)
        if (path := run / "results.json").is_file()
    ]
    return [
        "| | loss | teacher | labels only | distilled | distilling was worth |",
        "|---|---|---|---|---|---|",
    ] + [
        f"| {name} | {' | '.join(_line(results.config, results.test))} |"
        for name, results in there
        if results.test
    ]


def _line(config: dict[str, Any], test: Split) -> list[str]:
    assert test.teacher is not None
    assert test.labels_only is not None
    assert test.pair is not None
    gained, bounds = format_difference(test.pair.gain, test.pair.gain_low, test.pair.gain_high)
    figures = (
        f"{format_percent(each.top1)} ({format_interval(each.top1_low, each.top1_high)})"
        for each in (test.teacher, test.labels_only, test.student)
    )
    return [", ".join(config["loss"]), *figures, f"{gained} points ({bounds})"]


def main() -> None:
    """Train what lacks and print the table."""
    everything = [*(pair.name for pair in PAIRS), FEW]
    parser = argparse.ArgumentParser(description="Unlike pairs, and few labels")
    parser.add_argument("data", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/cifar"))
    parser.add_argument(
        "--only",
        default=",".join(everything),
        help="which, separated by commas; one that is taught by another comes behind it",
    )
    asked, words = parser.parse_known_args()
    make(asked.data, asked.folder, words, asked.only.split(","))
    print("\n" + "\n".join(tables(asked.folder)))


if __name__ == "__main__":
    main()
