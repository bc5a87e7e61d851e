"""The models on corrupted images."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from kd_app.data.corruptions import SETTINGS, Corruption
from kd_app.reporting.results import Robustness
from kd_app.run.workspace import RunModel, Workspace

UNDECIDED = -1
"""The answer of a model that gives NaN."""


def measure_robustness(
    shop: Workspace,
    members: Mapping[str, RunModel],
    split: str,
    target: Int64[np.ndarray, " images"],
) -> list[Robustness]:
    """Top-1 of each model, and the student's agreement with the teacher, on the images
    of `split` (whose labels are `target`) under each corruption at each severity that
    the run's configuration asks for.
    """
    chosen = shop.spec.robustness.chosen
    answers = (
        {role: _predict_corrupted(shop, member, split, chosen) for role, member in members.items()}
        if chosen
        else {}
    )
    found = []
    for corruption in chosen:
        top1 = {role: each[corruption] for role, each in answers.items()}
        agree = (
            (top1["student"] == top1["teacher"]) & (top1["student"] != UNDECIDED)
            if "teacher" in top1
            else None
        )
        found.append(
            Robustness(
                corruption=corruption.kind,
                severity=corruption.severity,
                num_images=len(target),
                accuracy={role: float((each == target).mean()) for role, each in top1.items()},
                agreement=None if agree is None else float(agree.mean()),
            )
        )
    return found


def _predict_corrupted(
    shop: Workspace, member: RunModel, split: str, chosen: tuple[Corruption, ...]
) -> dict[Corruption, Int64[np.ndarray, " images"]]:
    """The top-1 classes of one model under each corruption, computed once; after a
    kill, those that are missing.
    """

    def build(folder: Path) -> None:
        for number, corruption in enumerate(chosen, start=1):
            path = folder / _name_file(corruption)
            if not path.is_file():
                shop.console.print_transient(
                    f"  {member.role}: corrupted {split} images, {number} of {len(chosen)} ..."
                )
                logits = shop.predict(member, split, corruption=corruption).logits
                _save(
                    path, np.where(np.isnan(logits).any(axis=1), UNDECIDED, logits.argmax(axis=1))
                )

    settings = {_name_file(each): SETTINGS[each.kind][each.severity - 1] for each in chosen}
    stage = shop.cache_outputs(member, split, "corrupted", {"corruptions": settings}, build)
    return {each: np.load(stage.path / _name_file(each)) for each in chosen}


def _name_file(corruption: Corruption) -> str:
    return f"{corruption.kind}-{corruption.severity}.npy"


def _save(path: Path, answers: Int64[np.ndarray, " images"]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, answers)
    os.replace(partial, path)
