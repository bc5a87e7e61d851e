"""What does distilling gain between different families, and with few labels? ``python
-m benchmarks.cifar cifar10`` (``make cifar DATA=cifar10``)

Data: CIFAR-10 as JPEG files in class folders, or any such folder with images of 32x32
pixels. A CNN is distilled into a ViT, this ViT into an MLP-Mixer, and a Swin into a
MobileNet, each with terms that read more than logits. The same CNN is distilled into a
small CNN with 1, 10 and 100 % of the labels, the other images unlabeled. The Swin
teacher is itself distilled from the CNN: trained from scratch for so few epochs, it is
worse than the MobileNet. Nets and epochs are small, so that the benchmark ends on two
cores: a student is compared with the same net trained for the same epochs on labels
alone, not with the best possible result. Every step is a cached stage of kd-distill.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models.mlp_mixer import MlpMixer
from torch import nn

from benchmarks.headline import ALONE, DISTILLED, STUDENT, run_command
from kd_app.reporting.metrics import Split
from kd_app.reporting.results import read
from kd_app.reporting.sentences import format_difference, format_interval, format_percent

SIDE, PATCH = 32, 4


def small_mixer(**kwargs: Any) -> nn.Module:
    """Build a Mixer for small images: timm's functions fix the patch size, timm's class
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
]
MOBILE = _model("mobilenetv2_half")


@dataclass(frozen=True)
class Pair:
    """A distillation. `teacher`: the run whose student is the teacher."""

    name: str
    teacher: str
    overrides: tuple[str, ...]


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


def train_pairs(data: Path, folder: Path, overrides: Sequence[str], only: Sequence[str]) -> None:
    """Train the pairs named in `only`, and the students with few labels. Finished runs
    are skipped.
    """
    common = [
        "data=folder",
        f"data.root={data}",
        "data.view.scale=[0.6,1.0]",
        "logger=[csv]",
        *overrides,
    ]

    def distill(name: str, *more: str) -> None:
        run_command("distill", [*common, *more, f"out={folder / name}"])

    distill("cnn", *TEACHER)
    if any(pair.teacher == "swin" and pair.name in only for pair in PAIRS):
        distill("swin", f"teacher.checkpoint={folder / 'cnn'}", *ASSISTANT)
    for pair in PAIRS:
        if pair.name in only:
            distill(pair.name, f"teacher.checkpoint={folder / pair.teacher}", *pair.overrides)
    if FEW in only:
        few = (f"teacher.checkpoint={folder / 'cnn'}", *DISTILLED, *STUDENT, "trainer.max_epochs=6")
        distill(FEW, *few, "-m", f"data.label_fraction={','.join(SHARES)}", "test=always")


def render_table(folder: Path) -> list[str]:
    """Return a Markdown table of the finished runs: test top-1 with 95 % intervals, and
    the gain of distilling.
    """
    pairs = [(pair.name.replace("-", " -> "), folder / pair.name) for pair in PAIRS]
    shares = [
        (f"{100 * float(share):g} % of the labels", folder / FEW / str(number))
        for number, share in enumerate(SHARES)
    ]
    finished = [
        (name, read(path))
        for name, run in (*pairs, *shares)
        if (path := run / "results.json").is_file()
    ]
    return [
        "| | loss | teacher | labels only | distilled | gain of distilling |",
        "|---|---|---|---|---|---|",
    ] + [
        f"| {name} | {' | '.join(_render_row(results.config, results.test))} |"
        for name, results in finished
        if results.test
    ]


def _render_row(config: dict[str, Any], test: Split) -> list[str]:
    assert test.teacher is not None
    assert test.labels_only is not None
    assert test.pair is not None
    gain, bounds = format_difference(test.pair.gain, test.pair.gain_low, test.pair.gain_high)
    accuracies = (
        f"{format_percent(each.top1)} ({format_interval(each.top1_low, each.top1_high)})"
        for each in (test.teacher, test.labels_only, test.student)
    )
    return [", ".join(config["loss"]), *accuracies, f"{gain} points ({bounds})"]


def main() -> None:
    """Train what lacks and print the table."""
    everything = [*(pair.name for pair in PAIRS), FEW]
    parser = argparse.ArgumentParser(description="Pairs of different families, and few labels")
    parser.add_argument("data", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/cifar"))
    parser.add_argument(
        "--only",
        default=",".join(everything),
        help="names, separated by commas; a pair must come after the pair that trains its teacher",
    )
    args, overrides = parser.parse_known_args()
    train_pairs(args.data, args.folder, overrides, args.only.split(","))
    print("\n" + "\n".join(render_table(args.folder)))


if __name__ == "__main__":
    main()
