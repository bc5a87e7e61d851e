"""What was kept: every model measured on the same images, and written down."""

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kd_app
from kd_app.config import RequestError
from kd_app.deployment.machine import cpu_name
from kd_app.deployment.measure import images_per_second
from kd_app.metrics.measure import estimate_rate
from kd_app.metrics.record import Predictions
from kd_app.metrics.report_metrics import measure_split
from kd_app.metrics.verdict import Verdict
from kd_app.models.composed import RuntimeModel
from kd_app.models.cost import count_macs, count_params
from kd_app.models.ship import INT8, WEIGHTS, copy_labeled
from kd_app.reporting.card import write_card
from kd_app.reporting.examples import EXAMPLES
from kd_app.reporting.page import PAGE
from kd_app.reporting.predictions import write_predictions
from kd_app.reporting.results import FileRecord, Results, read, write
from kd_app.reporting.runs import write_curves
from kd_app.run_files import CONFIG, CURVES, PREDICTIONS, REFERENCE, RESULTS, STUDENT, TEACHER
from kd_app.stages import Stage, file_sha256, write_atomically
from kd_app.training.curves import FILE, read_curves
from kd_app.training.fit import MODEL
from kd_app.training.knowledge import knowledge, show_examples
from kd_app.training.robustness import robustness
from kd_app.training.workshop import Member, Workshop, told

SPLIT = "split.csv"
BESIDE = (PREDICTIONS, EXAMPLES, CURVES, SPLIT, f"{TEACHER}/{REFERENCE}")
"""What a run writes beside results.json and the folder of the student."""
SHOWN = (CONFIG, RESULTS, PAGE, STUDENT, TEACHER, *BESIDE)
"""What of a run's folder the trackers are given."""


class Proof:
    """Gathers a run's results in `out`: results.json, the files of `BESIDE`, student/.

    Models that a finished run left are measured `again`: what they are under was
    settled then.
    """

    def __init__(
        self,
        shop: Workshop,
        out: Path,
        verdict: Verdict,
        *,
        trial: bool = False,
        again: Results | None = None,
    ) -> None:
        self.shop = shop
        self.out = out
        self.verdict = verdict
        self.trial = trial
        self.found: dict[str, Any] = {
            "license": again.license if again else shop.parts.licenses.told()
        }
        self._again = again
        self._note = ""
        self._made = _made_before(out / RESULTS)

    def write(self, status: str, *, reason: str | None = None) -> Results:
        """results.json as far as it is known."""
        config = self.shop.parts.config
        known = Results.model_validate(
            {
                "status": status,
                "reason": reason,
                "seed": config["seed"],
                "config": config,
                "environment": environment(self.shop),
                **self.found,
                "stages": [self._recorded(stage) for stage in self.shop.used],
            }
        )
        if status == "finished":
            if (self.out / STUDENT).is_dir():
                write_card(self.out / STUDENT, known)
            known.files = self._files()
        write(self.out / RESULTS, known)
        return known

    def _files(self) -> list[FileRecord]:
        """What lies beside results.json."""
        paths = [*(self.out / name for name in BESIDE), *(self.out / STUDENT).glob("*")]
        return [
            FileRecord(name=path.relative_to(self.out).as_posix(), sha256=file_sha256(path))
            for path in sorted(paths)
            if path.is_file()
        ]

    def _recorded(self, stage: Stage) -> dict[str, Any]:
        """What an earlier attempt at this run made, this run made."""
        made = stage.made or str(stage.path) in self._made
        return {
            "name": stage.name,
            "path": str(stage.path),
            "seconds": stage.seconds,
            "made": "made" if made else "found",
        }

    def measure(self, members: Mapping[str, Member], splits: Mapping[str, str]) -> None:
        """Measure all members: for each place in the results ('validation', 'test') on
        the split of the data that is named for it.

        Corrupted images, where they are asked for, are those of the last.
        """
        shop = self.shop
        self.about_data()
        self.found["models"] = {
            role: described(member, shop, self._license(member)) for role, member in members.items()
        }
        *_, last = splits.values()
        for place, split in splits.items():
            answers = {role: shop.predictions(member, split) for role, member in members.items()}
            self.compare(place, answers)
            self.write_answers(answers)
            if split == last:
                self.found[place]["robustness"] = robustness(
                    shop, members, split, answers["student"].target
                )
            if "teacher" in members:
                self.knows(members["teacher"], split)
        show_examples(shop, answers, self.found.get("knowledge", {}).get("similar", []), self.out)
        self._speed(members)

    def about_data(self) -> None:
        """What was measured on, and which image was in which split."""
        data = self.shop.data
        self.found["data"] = {
            "name": data_name(self.shop),
            "classes": list(self.shop.classes),
            "sizes": data.sizes,
            "fingerprint": data.fingerprint,
        }
        self.found["notes"] = [*data.notes, *([self._note] if self._note else [])]
        data.write_split(self.out / SPLIT)

    def unmeasured(self, teacher: Member) -> str:
        """Put down, and say, that the student is compared with its controls alone."""
        name, why = teacher.request.name, teacher.unmeasured
        self._note = (
            f"The teacher, {name}, {why}, so no figure compares the student with it; the controls"
            " say what it was worth."
        )
        return self._note

    def knows(self, teacher: Member, split: str) -> dict[str, Any]:
        """What the teacher knows of the images of `split`, or of those that it was
        asked about first.
        """
        if "knowledge" not in self.found:
            self.found["knowledge"] = knowledge(
                self.shop, self.shop.predictions(teacher, split), split
            )
        known: dict[str, Any] = self.found["knowledge"]
        return known

    def _license(self, member: Member) -> str:
        """What the weights of a model are under."""
        if self._again is not None:
            return self._again.models[member.role].license
        licenses, recipe = (
            self.shop.parts.licenses,
            self.shop.parts.controls.get(member.role, self.shop.parts.recipe),
        )
        if member.role == "teacher" and member.folder is None:
            assert licenses.teacher is not None
            return licenses.teacher
        return self.shop.license(member.role, taught=recipe.needs_teacher)

    def compare(self, split: str, answers: Mapping[str, Predictions]) -> None:
        """The figures of a split; the verdict is about the last one, which is test
        where test is read.
        """
        student = answers["student"]
        self.found[split] = measure_split(
            answers, seed=0, confidence=self.verdict.confidence, group=self._groups(student)
        )
        if "teacher" in answers:
            judged = self.verdict.judge(student, answers["teacher"])
            self.found["verdict"] = {**vars(judged), "split": split}

    def _groups(self, answers: Predictions) -> list[str] | None:
        """The group of each image; None where the data have none."""
        groups = self.shop.data.groups
        return [groups[number] for number in answers.index.tolist()] if groups else None

    def _speed(self, members: Mapping[str, Member]) -> None:
        self.shop.console.line("  measuring speed ...")
        own = {
            role: member
            for role, member in members.items()
            if role == "student" or self.shop.request(role) is not self.shop.request("student")
        }
        models = {role: (member.answering(), member.created.pixels) for role, member in own.items()}
        measure = partial(images_per_second, models, device=self.shop.parts.trainer.device)
        measured = self.shop.speed(members, self.out.parent, measure) if self.trial else measure()
        trained = members["student"].record.get("images_per_second")
        self.found["speed"] = {
            **{role: {"images_per_second": value} for role, value in measured.items()},
            "training_images_per_second": trained,
        }

    def write_answers(
        self, answers: Mapping[str, Predictions], stage: np.ndarray | None = None
    ) -> None:
        """predictions.parquet; of a cascade with the `stage` that answered each image."""
        first, files = answers["student"], self.shop.data.files
        write_predictions(
            self.out / PREDICTIONS,
            index=first.index,
            file=[files[int(number)] for number in first.index],
            target=first.target,
            group=self._groups(first),
            logits={role: found.logits for role, found in answers.items()},
            stage=stage,
        )

    def ship(self, members: Mapping[str, Member]) -> None:
        """What a run leaves behind beside its results: the student, a reference to the
        teacher, the curves of every training.
        """
        student = members["student"]
        write_curves(
            self.out / CURVES,
            {role: list(read_curves(m.folder / FILE)) for role, m in members.items() if m.folder},
        )
        source = student.folder / MODEL if student.folder else student.request.origin.path
        assert source is not None
        teacher = self.shop.parts.teacher
        self._student(
            source if source.is_dir() else source.parent,
            teacher.name if teacher is not None else None,
        )
        if "teacher" in members:
            (self.out / TEACHER).mkdir(exist_ok=True)
            write_atomically(
                self.out / TEACHER / REFERENCE,
                json.dumps(told(members["teacher"]), indent=1),
            )

    def _student(self, source: Path, teacher: str | None) -> None:
        """What ships: a copy of the trained model that says its license, whole or not
        there.
        """
        target = self.out / STUDENT
        partial = target.with_name(f".{target.name}.partial")
        for old in (partial, target):
            shutil.rmtree(old, ignore_errors=True)
        copy_labeled(source, partial, license=self.shop.parts.licenses.ships, teacher=teacher)
        partial.replace(target)
        file = target / INT8
        self.found["models"]["student"]["size_bytes"] = (
            (file if file.is_file() else target / WEIGHTS).stat().st_size
        )


def _made_before(results: Path) -> frozenset[str]:
    """The stages that earlier attempts at a run made."""
    try:
        return frozenset(stage.path for stage in read(results).stages if stage.made == "made")
    except RequestError:
        return frozenset()


def described(member: Member, shop: Workshop, license: str) -> dict[str, Any]:
    """A model as results.json tells of it."""
    weights, model = member.created.weights, member.created.model
    foreign = isinstance(model, RuntimeModel)  # another runtime's: nothing of it can be counted
    start, decided = member.record.get("weights"), shop.decided.get(member.role)
    return {
        "name": member.request.name,
        "params": None if foreign else count_params(model),
        "macs": None if foreign else count_macs(model.cpu(), member.created.pixels),
        "size_bytes": _size(member),
        "license": license,
        "source": f"trained here from {start['source']}" if start else weights.source,
        "sha256": weights.sha256,
        "weights": start or vars(weights),
        **({"decided": decided} if decided else {}),
    }


def data_name(shop: Workshop) -> str:
    """What the data are called; of data that are read from a place, with the last part
    of its path.
    """
    own, node = shop.parts.own.data, shop.parts.config["data"]
    if own is not None:
        return type(own).__name__
    name = str(node.get("name") or node["_target_"].rpartition(".")[2])
    return f"{name} {Path(node['root']).name}" if node.get("root") else name


def _size(member: Member) -> int:
    """Bytes on disk: the file's, or what the weights take where there is no file of
    weights alone.
    """
    if member.program:
        return member.program.stat().st_size
    path = member.request.origin.path
    files = [path / WEIGHTS, path] if path else []
    file = next(
        (file for file in files if file.suffix in (".safetensors", ".onnx") and file.is_file()),
        None,
    )
    if file:
        return file.stat().st_size
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in member.created.model.state_dict().values()
    )


def environment(shop: Workshop) -> dict[str, Any]:
    """Where and with what the run was made."""
    trainer = shop.parts.trainer
    names = ("torch", "lightning", "timm", "torchmetrics", "numpy")
    device = torch.cuda.get_device_name() if trainer.accelerator == "gpu" else cpu_name()
    return {
        "kd_app": kd_app.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "device": device,
        "accelerator": trainer.accelerator,
        "devices": trainer.world_size,
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
    }


@cache
def commit() -> str | None:
    """The git commit of kd_app's own files, '+changes' behind it where they differ;
    None where they are no checkout, or there is no git.
    """
    git = ["git", "-C", str(Path(kd_app.__file__).parent)]
    described = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        for words in (["ls-files", "--error-unmatch", "__init__.py"], described):
            said = subprocess.run(
                [*git, *words], capture_output=True, text=True, check=True, timeout=10
            ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.strip()


def evaluated(found: Predictions) -> str:
    """'top1 0.923 (0.901 to 0.940)' of some predictions."""
    top1, (low, high) = estimate_rate(found.hits, 0.95)
    return (
        f"top1 {top1:.3f} ({low:.3f} to {high:.3f},"
        f" {len(np.unique(found.target))} classes, {len(found.target)} images)"
    )
