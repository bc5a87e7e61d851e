"""A run to follow: its folder, its configuration, its curves and its results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_app.tracking import Backend, Tracker, Wandb

SECRET = "hunter2-hunter2"
CONFIG: dict[str, Any] = {
    "seed": 3,
    "out": "/home/me/runs/fm",
    "stages": "/home/me/stages",
    "data": {"name": "folder", "root": "{home}/photos"},
    "teacher": {"name": "wrn_16_2", "checkpoint": "local-dir:{home}/nets/teacher", "kwargs": {"hub_token": SECRET}},
    "loss": {"soft_target": {"temperature": 4.0, "weight": 1.0}},
}
RESULTS: dict[str, Any] = {
    "test": {
        "num_images": 360,
        "confidence": 0.95,
        "teacher": {"top1": 0.9, "top1_low": 0.88, "classes": [1, 2]},
        "labels_only": {"top1": 0.8, "top1_low": 0.77},
        "student": {"top1": 0.85, "top1_low": 0.82, "nll": 0.5},
        "pair": {"retention": 0.944, "gap_closed": None, "gain": float("nan")},
    },
    "validation": {"student": {"top1": 0.86}},
    "verdict": {"decision": "not shown", "margin": 0.01},
    "speed": {"student": {"images_per_second": 1234.5}},
    "models": {"teacher": {"name": "wrn_16_2", "source": "local-dir:{home}/nets/teacher", "sha256": "ab" * 32, "params": 700_000}},
    "stages": [{"name": "teacher", "path": "{home}/stages/teacher-12", "seconds": 3.0, "made": "found"}],
}


def with_home(value: Any, home: Path) -> Any:
    """`value` with ``{home}`` in its texts replaced by a folder of this machine."""
    return json.loads(json.dumps(value).replace("{home}", str(home)))


def wandb(**more: Any) -> Wandb:
    """Weights & Biases, offline whoever is logged in."""
    return Wandb(**{"project": "kd", "entity": None, "mode": "offline", **more})


def tracker(out: Path, kinds: Mapping[str, Backend], said: list[str], *, name: str = "fm") -> Tracker:
    """A tracker of a run in `out`."""
    return Tracker(kinds, out=out, name=name, group=name, tags=["first", "small"], config=with_home(CONFIG, out.parent), say=said.append)


def train(tracker: Tracker, stage: str, *, epochs: int = 3) -> None:
    """The curves of one training: 10 steps an epoch; the second epoch is the best."""
    listen = tracker.start(stage)
    for epoch in range(epochs):
        listen({"train/loss": 1.0 / (epoch + 1)}, 10 * epoch + 5)
        listen(
            {"validation/top1": 1.0 - 0.25 * abs(epoch - 1), "validation/nll": 0.5 + 0.25 * abs(epoch - 1), "epoch": float(epoch)}, 10 * epoch + 10
        )


def files(out: Path) -> list[Path]:
    """What a run left in its folder."""
    out.mkdir(exist_ok=True)
    (out / "config.yaml").write_text(f"data:\n  root: {out.parent}/photos\n")
    (out / "results.json").write_text(json.dumps(with_home(RESULTS, out.parent)))
    (out / "student").mkdir()
    (out / "student" / "model.safetensors").write_bytes(b"weights")
    return [out / "config.yaml", out / "results.json", out / "student"]


def whole_run(out: Path, kinds: Mapping[str, Backend]) -> list[str]:
    """Teacher, control and student, with an outcome; returns what was said."""
    said: list[str] = []
    following = tracker(out, kinds, said)
    for stage in ("teacher", "labels_only"):
        train(following, stage)
        following.end(stage, exit_code=0)
    train(following, "student")
    following.results(with_home(RESULTS, out.parent), files(out))
    following.close(exit_code=0)
    return said
