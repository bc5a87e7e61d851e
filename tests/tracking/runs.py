"""A run to log: folder, configuration, curves and results."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from kd_app.tracking import Backend, Tracker, Wandb

SECRET = "hunter2-hunter2"
CONFIG: dict[str, Any] = {
    "seed": 3,
    "out": "/home/me/runs/fm",
    "stages": "/home/me/stages",
    "data": {"name": "folder", "root": "{home}/photos"},
    "teacher": {
        "name": "wrn_16_2",
        "checkpoint": "local-dir:{home}/nets/teacher",
        "kwargs": {"hub_token": SECRET},
    },
    "loss": {"soft_target": {"temperature": 4.0, "weight": 1.0}},
}
SHA = "ab" * 32
TEACHER = {
    "name": "wrn_16_2",
    "source": "trained here in {home}/stages/teacher-12",
    "sha256": SHA,
    "stage": "{home}/stages/teacher-12",
}
KNOWLEDGE: dict[str, Any] = {
    "entropy": [
        {"temperature": 1.0, "mean_nats": 0.2, "of_uniform": 0.18},
        {"temperature": 4.0, "mean_nats": 0.9, "of_uniform": 0.82},
    ],
    "similar": [{"first": "cat", "second": "dog", "probability": 0.2}],
    "matrix": None,
}
RESULTS: dict[str, Any] = {
    "data": {"classes": ["cat", "dog", "owl"], "fingerprint": "fe" * 32},
    "test": {
        "num_images": 360,
        "confidence": 0.95,
        "teacher": {"top1": 0.9, "top1_low": 0.88, "classes": [1, 2]},
        "labels_only": {"top1": 0.8, "top1_low": 0.77},
        "student": {"top1": 0.85, "top1_low": 0.82, "nll": 0.5},
        "pair": {"retention": 0.944, "gap_closed": None, "gain": float("nan")},
        "gains": {"labels_only": {"value": 0.05, "low": 0.01, "high": 0.09}},
    },
    "validation": {"student": {"top1": 0.86}},
    "verdict": {"decision": "not shown", "margin": 0.01},
    "speed": {"student": {"images_per_second": 1234.5}},
    "models": {
        "teacher": {
            "name": "wrn_16_2",
            "source": "local-dir:{home}/nets/teacher",
            "sha256": SHA,
            "params": 700_000,
        },
        "student": {"name": "resnet8", "sha256": "5e" * 32},
    },
    "stages": [
        {"name": "teacher", "path": "{home}/stages/teacher-12", "seconds": 3.0, "status": "reused"}
    ],
}


def with_home(value: Any, home: Path) -> Any:
    """Replace ``{home}`` in all strings of `value` by a folder of this machine."""
    return json.loads(json.dumps(value).replace("{home}", str(home)))


def wandb(**more: Any) -> Wandb:
    """Weights & Biases, offline even with a login."""
    return Wandb(**{"project": "kd", "entity": None, "mode": "offline", **more})


def build_tracker(
    out: Path,
    backends: Mapping[str, Backend],
    messages: list[str],
    *,
    name: str = "fm",
    skip_reused: bool = False,
) -> Tracker:
    """Build a tracker of a run in `out`."""
    config = with_home(CONFIG, out.parent)
    return Tracker(
        backends,
        out=out,
        name=name,
        group=name,
        tags=["first", "small"],
        config=config,
        say=messages.append,
        skip_reused=skip_reused,
    )


def points(epochs: int = 3) -> list[tuple[dict[str, float], int]]:
    """The curves of a training with 10 steps per epoch; the second is the best."""
    rows: list[tuple[dict[str, float], int]] = []
    for epoch in range(epochs):
        far = 0.25 * abs(epoch - 1)
        rows.append(
            (
                {"train/loss": 1.0 / (epoch + 1), "train/soft_target": 0.5 / (epoch + 1)},
                10 * epoch + 5,
            )
        )
        rows.append(
            (
                {"validation/top1": 1.0 - far, "validation/nll": 0.5 + far, "epoch": float(epoch)},
                10 * epoch + 10,
            )
        )
    return rows


def train(
    tracker: Tracker,
    stage: str,
    *,
    epochs: int = 3,
    before: int = 0,
    teacher: Mapping[str, Any] | None = None,
) -> None:
    """Log the training of `stage`, resumed after the first `before` points."""
    all_points = points(epochs)
    listen = tracker.start(stage, teacher, all_points[:before])
    for row, step in all_points[before:]:
        listen(row, step)


def png(side: int = 8) -> bytes:
    """A small PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def split(out: Path, folder: str) -> Path:
    """Write a split.csv to `out` for files in `folder`."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{number},{folder}/{name}/{number}.png,{name},train,"
        for number, name in enumerate(("cat", "dog"))
    ]
    (out / "split.csv").write_text("\n".join(["index,file,label,split,group", *rows, ""]))
    return out / "split.csv"


def files(out: Path) -> list[Path]:
    """Write the files of a run, with paths of this machine."""
    # not above: most processes that the tests start write no table
    import pandas as pd

    photos = f"{out.parent}/photos"
    split(out, photos)
    (out / "config.yaml").write_text(f"data:\n  root: {photos}\n")
    (out / "results.json").write_text(json.dumps(with_home(RESULTS, out.parent)))
    (out / "student").mkdir(exist_ok=True)
    (out / "student" / "model.safetensors").write_bytes(b"weights")
    names = [f"{photos}/cat/1.png", f"{photos}/dog/1.png", f"{photos}/owl/2.png"]
    predictions = {
        "teacher_top1": [0, 1, 2],
        "labels_only_top1": [0, 0, 2],
        "student_top1": [0, 2, 2],
    }
    table = pd.DataFrame({"index": [4, 5, 6], "file": names, "target": [0, 1, 2], **predictions})
    table.to_parquet(out / "predictions.parquet", index=False)
    more: dict[str, Any] = {
        f"{role}_probabilities": [[0.7, 0.3], [0.6, 0.4], [0.5, 0.5]]
        for role in ("teacher", "student")
    }
    more |= {
        "png": [png()] * 3,
        "why": ["typical", "negative_flip", "typical"],
        "classes": [[0, 1], [1, 2], [2, 0]],
        "divergence": [0.01, 1.5, 0.0],
    }
    table.drop(columns="labels_only_top1").assign(**more).to_parquet(
        out / "examples.parquet", index=False
    )
    names = [
        "config.yaml",
        "results.json",
        "student",
        "split.csv",
        "predictions.parquet",
        "examples.parquet",
    ]
    return [out / name for name in names]


def whole_run(out: Path, backends: Mapping[str, Backend]) -> list[str]:
    """Log teacher, control and student with an outcome; return the messages."""
    messages: list[str] = []
    tracker, teacher = build_tracker(out, backends, messages), with_home(TEACHER, out.parent)
    tracker.log_data("photos", "fe" * 32, {"train": 2}, split(out, f"{out.parent}/photos"))
    tracker.log_knowledge(KNOWLEDGE)
    for stage, model, learns_from in (
        ("teacher", teacher, None),
        ("labels_only", {}, None),
        ("student", {}, teacher),
    ):
        train(tracker, stage, teacher=learns_from)
        tracker.finish(stage, model, learns_from, list)
    tracker.log_results(with_home(RESULTS, out.parent), files(out))
    tracker.close(exit_code=0)
    return messages
