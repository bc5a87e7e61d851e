"""A finished run's models as files, each measured on itself beside the models in torch,
and the file to ship.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, StrictBool

import kd_app
from kd_app.config import RequestError, RunError, Typed, build_unknown_error
from kd_app.config.make import make
from kd_app.config.targets import check_targets
from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.export import write_manifest
from kd_app.deployment.formats.base import Format
from kd_app.deployment.predictions import predict_with_artifact
from kd_app.deployment.price import Price
from kd_app.deployment.timing import Benchmark
from kd_app.metrics.record import Predictions
from kd_app.metrics.verdict import VerdictRule
from kd_app.reporting.console import Console
from kd_app.reporting.export_tables import build_accuracy_table, build_cost_table
from kd_app.reporting.exports import Exports
from kd_app.reporting.results import Results
from kd_app.run.exported_benchmark import measure_accuracy, time_files
from kd_app.run.exported_files import ExportedFile, write_files
from kd_app.run.open_run import OpenRun, load_models, open_run, read_run
from kd_app.run.recommend_file import list_remarks, recommend_file
from kd_app.run.schema import Group, Place
from kd_app.run.spec import Config
from kd_app.run.workspace import Chained, RunModel, Workspace
from kd_app.stages import hash_file

ROLES: dict[str, tuple[str, ...]] = {
    "student": ("student",),
    "teacher": ("teacher",),
    "both": ("student", "teacher"),
}


class Export(Typed, called="kd-export"):
    """The top level of ``conf/export.yaml``."""

    def __init__(
        self,
        *,
        run: Place,
        role: Literal["student", "teacher", "both"],
        out: Place,
        calibration_images: PositiveInt,
        compared_images: PositiveInt,
        stages: Place | None,
        remake: list[Place],
        overwrite: StrictBool,
        allow: list[Place],
        test: Literal["auto", "always", "never"],
        license: Group,
        formats: Annotated[dict[str, Group], Field(min_length=1)],
        benchmark: Group,
        price: Group,
    ) -> None:
        self.run = Path(run)
        self.roles = ROLES[role]
        self.out = Path(out)
        self.calibration_images = calibration_images
        self.compared_images = compared_images
        self.test = test
        self.nodes = formats
        self.formats: dict[str, Format] = {
            name: make(node, Format) for name, node in formats.items()
        }
        self.benchmark: Benchmark = make(benchmark, Benchmark)
        self.price: Price = make(price, Price)
        known = [f"export-{each}-{name}" for each in self.roles for name in formats]
        for name in remake:
            if name not in known:
                raise build_unknown_error("stage to remake", name, known)


@dataclass(frozen=True)
class _Job:
    """What is done, with what, and the models in torch."""

    asked: Export
    shop: Workspace
    verdict: VerdictRule
    before: Results
    members: Mapping[str, RunModel]
    splits: tuple[str, ...]


def export_run(config: Config, *, console: Console | None = None, trial: int | None = None) -> Path:
    """Write the models of the finished run ``config['run']`` as files, measure each,
    and say which to ship; the folder of the files.

    Raises `RequestError` for a wrong request, `RunError` where a model can't be written
    in a format or does not answer as it does in torch.
    """
    check_targets({key: config[key] for key in ("formats", "benchmark", "price")}, config["allow"])
    asked, console = Export(**config), console or Console()
    saved = read_run(asked.run, config, "export")
    out = asked.out if trial is None else asked.out / str(trial)
    anew = [
        f"export-{role}-{name}"
        for role in asked.roles
        for name, form in asked.formats.items()
        if not form.found_again
    ]
    with open_run(
        saved,
        out,
        config,
        overwrite=config["overwrite"],
        console=console,
        remake=[*config["remake"], *anew],
    ) as run:
        read_test = asked.test == "always" or (asked.test == "auto" and trial is None)
        splits = ("validation", "test") if read_test else ("validation",)
        members = _load_models(asked, run)
        _go(_Job(asked, run.workspace, run.verdict, run.results, members, splits), out)
    return out


def _load_models(asked: Export, run: OpenRun) -> dict[str, RunModel]:
    members = load_models(run, ("teacher", "student"))
    for role in asked.roles:
        if role not in members:
            raise RequestError(
                f"The run {str(asked.run)!r} has no {role} to export: it had none, or it is not"
                " there any more. Say role=student."
            )
    return members


def _go(job: _Job, out: Path) -> None:
    files = write_files(job.shop, job.before, job.members, job.asked)
    torch_answers = {
        role: {split: job.shop.load_predictions(member, split) for split in job.splits}
        for role, member in job.members.items()
    }
    found = {name: _measure_file(job, name, file, torch_answers) for name, file in files.items()}
    timed = time_files(job.asked, job.shop, job.before, job.members, files)
    entries = {
        name: {**file.entry, **found[name], **timed.files[name]} for name, file in files.items()
    }
    models = {
        role: {**timed.torch[role], **_measure_torch_model(job, role, torch_answers)}
        for role in job.members
    }
    told = Exports.model_validate({"schema_version": 1, "files": entries, "torch": models})
    ship = recommend_file(told)
    for name, file in files.items():
        _put(file.path, out / name)
    write_manifest(
        out,
        entries,
        kd_app=kd_app.__version__,
        role=list(job.asked.roles),
        torch=models,
        ship=ship.file,
    )
    told.ship = ship.file
    console = job.shop.console
    console.print()
    console.show(build_accuracy_table(told, job.splits[-1]))
    console.show(build_cost_table(told))
    for sentence in (*ship.reasons, *list_remarks(told), *timed.notes):
        console.print(sentence)
    if any(member.program for member in job.members.values()):
        console.print(
            "The student is quantized: its figures in torch are those of its int8 program, its"
            " speed there is that of its float weights."
        )
    console.print(f"Everything is in {out}")


def _measure_file(
    job: _Job, name: str, file: ExportedFile, torch_answers: Mapping[str, Mapping[str, Predictions]]
) -> dict[str, Any]:
    """The figures of a file by split: its own, beside the teacher, and beside the model
    that it was written from.
    """
    found = {}
    for split in job.splits:
        given = _load_predictions(job.shop, name, file, split)
        teacher = torch_answers["teacher"][split] if "teacher" in torch_answers else None
        found[split] = measure_accuracy(
            given, teacher, torch_answers[file.role][split], job.verdict
        )
    return found


def _measure_torch_model(
    job: _Job, role: str, torch_answers: Mapping[str, Mapping[str, Predictions]]
) -> dict[str, Any]:
    teacher = torch_answers.get("teacher")
    return {
        split: measure_accuracy(
            torch_answers[role][split], teacher[split] if teacher else None, None, job.verdict
        )
        for split in job.splits
    }


def _load_predictions(shop: Workspace, name: str, file: ExportedFile, split: str) -> Predictions:
    """The answers of a file to a split, computed once."""

    def build(folder: Path) -> None:
        shop.console.print_transient(f"  {name}: {split} images ...")
        opened = open_artifact(file.path)
        predict_with_artifact(
            opened,
            Chained([shop.data.build_evaluation_loader(split, opened.pixels)]),
            limit=shop.limit,
        ).save(folder)

    config = {"split": split, "limit": shop.limit, "runtime": file.entry["runtime"]}
    inputs = {"data": shop.data.fingerprint, "file": file.entry["sha256"]}
    return Predictions.load(
        shop.find_or_build(f"answers-{name}-{split}", config, inputs, build).path
    )


def _put(source: Path, target: Path) -> None:
    """A copy that is whole or not there."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.copyfile(source, partial)
    os.replace(partial, target)
    if hash_file(target) != hash_file(source):
        raise RunError(
            f"{str(target)!r} is not what was written there. Is the disk full or failing? The same"
            " command goes on from here."
        )
