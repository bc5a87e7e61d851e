"""Compare the weights and metrics of two revisions on this machine: ``python -m
benchmarks.compare_revisions BASE``.

Trains nine small runs with explicit settings, once with a clone of BASE and once with
this tree, each in its own process: a plain pair with controls, user-provided modules,
cached teacher outputs, several teachers, a chain, few labels with mixup, a compressed
run, two ranks. A refactoring must not change the sha256 of any trained weights or any
test metric; the exit code is 1 if one differs. Stages are compared by name without
hash, because the hash changes if a hashed setting is renamed.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
RENAMED_SETTINGS = {
    "teacher.outputs=cached": "teacher.answers=stored",
    "data.label_fraction=0.5": "data.labels=0.5",
}
"""Settings, and their names in revisions before the rename of 2026-11."""
PAIR = [
    "debug=fdr",
    "logger=[csv]",
    "optimizer=sgd",
    "optimizer.lr=0.05",
    "scheduler=constant",
    "data.batch_size=32",
    "loss=[cross_entropy,soft_target]",
    "loss.soft_target.temperature=4",
    "trainer.precision=32-true",
]
DIGITS = ["data=digits", "data.num_workers=0", "student.name=resnet8", "student.pretrained=false"]
ONE = ["trainer=cpu", "controls=[labels_only]"]
TEACHER = ["teacher.name=wrn_16_1"]
PARTS = "tests.training.small_parts"
RUNS: dict[str, tuple[str, list[str]]] = {
    "plain": (
        "distill",
        [
            *PAIR,
            *DIGITS,
            *TEACHER,
            "trainer=cpu",
            "controls=[labels_only,smoothed_labels,shuffled_teacher]",
        ],
    ),
    "own": (
        "distill",
        [
            *PAIR,
            *ONE,
            f"teacher._target_={PARTS}.Net",
            "teacher.max_epochs=1",
            f"student._target_={PARTS}.Net",
            f"data._target_={PARTS}.OwnData",
            "allow=[tests]",
        ],
    ),
    "cached": (
        "distill",
        [*PAIR, *DIGITS, *TEACHER, *ONE, "data.views=2", "teacher.outputs=cached"],
    ),
    "several": (
        "distill",
        [
            *PAIR,
            *DIGITS,
            *ONE,
            "teacher=several",
            "teacher.members.a.checkpoint=plain/run",
            "teacher.members.b.checkpoint=cached/run",
        ],
    ),
    "chain": ("distill", [*PAIR, *DIGITS, *TEACHER, *ONE, "teacher.chain=[resnet14]"]),
    "few": (
        "distill",
        [*PAIR, *DIGITS, *TEACHER, *ONE, "data.label_fraction=0.5", "data.mix.mixup=0.2"],
    ),
    "ranks": (
        "distill",
        [
            *PAIR,
            *DIGITS,
            *TEACHER,
            "trainer=ddp_sim",
            "trainer.devices=2",
            "controls=[labels_only]",
        ],
    ),
    "compressed": (
        "compress",
        ["run=plain/run", "steps=[prune,finetune,quantize]", "prune.macs=0.6"],
    ),
}
METRICS = ("top1", "nll", "ece", "brier")


def run_all(tree: Path, folder: Path, *, before_renames: bool) -> dict[str, Any]:
    """Run every command with the code of `tree`. Return the sha256 of all weights and
    the test metrics, by ``run/stage``.
    """
    values: dict[str, Any] = {}
    for name, (command, overrides) in RUNS.items():
        spelled = [
            RENAMED_SETTINGS.get(each, each) if before_renames else each for each in overrides
        ]
        places = [f"out={name}/run", f"stages={name}/stages"]
        process = subprocess.run(
            [sys.executable, "-m", f"kd_app.commands.{command}", *spelled, *places],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            sys.exit(f"{tree}: {name} ended with {process.returncode}:\n{process.stderr[-2000:]}")
        values.update(read_values(folder / name, name))
        print(f"{tree.name}: {name}", flush=True)
    return values


def read_values(folder: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the weights of every stage and the test metrics of every model."""
    for weights in sorted((folder / "stages").glob("[a-z]*-*/model/model.safetensors")):
        stage = weights.parent.parent.name.rsplit("-", 1)[0]
        yield f"{name}/{stage}", hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    results = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
    for model, metrics in (results.get("test") or {}).items():
        if isinstance(metrics, Mapping) and "top1" in metrics:
            yield f"{name}/test/{model}", [metrics.get(metric) for metric in METRICS]


def main() -> None:
    """Print each value that differs; exit code 1 if one does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="a commit")
    base = parser.parse_args().base
    with tempfile.TemporaryDirectory() as place:
        clone = Path(place) / "base"
        subprocess.run(["git", "clone", "-q", str(HERE), str(clone)], check=True)
        subprocess.run(["git", "-C", str(clone), "checkout", "-q", base], check=True)
        old = not (clone / "kd_app" / "jobs").is_dir()
        sides: list[dict[str, Any]] = []
        for tree, before_renames in ((clone, old), (HERE, False)):
            folder = Path(place) / f"runs-{len(sides)}"
            folder.mkdir()
            sides.append(run_all(tree, folder, before_renames=before_renames))
    keys = sorted({*sides[0], *sides[1]})
    different = [key for key in keys if sides[0].get(key) != sides[1].get(key)]
    for key in different:
        print(f"{key}: {sides[0].get(key)} -> {sides[1].get(key)}")
    print(f"{len(keys) - len(different)} of {len(keys)} values are equal")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
