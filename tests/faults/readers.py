"""The readers of records that may come from somebody else: for each a record, and what
is done with its values.
"""

import io
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from torch.nn import Flatten

from kd_app.callbacks.curve_log import read_points
from kd_app.config import InputSpec
from kd_app.config.compose import compose_config
from kd_app.config.records import load_record
from kd_app.data.scan import HASHES, SHAPES, SIMILAR, SIZES, read_scan
from kd_app.deployment.cascade import ModelCascade
from kd_app.deployment.manifest import read_entry
from kd_app.measurement.classification import describe_training
from kd_app.models.create import create, resolve_input
from kd_app.models.embedding_ensemble import EmbeddingEnsembleModel, Moments, read_moments
from kd_app.models.license import POLICY, Policy
from kd_app.models.spec import ImageStats, ModelSpec
from kd_app.reporting.card import write_card
from kd_app.reporting.exports import read_exports
from kd_app.reporting.html.collect import build_report
from kd_app.reporting.html.sections import build_overview, build_sections
from kd_app.reporting.html.write import (
    _build_run_views,
    render_csv,
    render_html,
    render_markdown,
)
from kd_app.reporting.refusals import read_refusal
from kd_app.reporting.runs import load_run, load_runs
from kd_app.reporting.tables import Trial, build_summary, build_sweep_table
from kd_app.reporting.teacher_reference import read_teacher_reference
from kd_app.run.inputs import InputRecord
from kd_app.run.open_run import build_saved_spec, read_run
from kd_app.search.study import suggest_next
from kd_app.stages import Stages
from kd_app.teacher_outputs.cache import CONTENT, TeacherCache
from kd_app.training.record import describe_outcome, read_training
from tests.builders import teacher_folder
from tests.faults.conftest import TABLE
from tests.faults.full_results import NAMES, build_full_results
from tests.reporting.embedding_results import build_embedding_results
from tests.reporting.html.folders import run_folder
from tests.reporting.manifests import build_entry
from tests.teacher_outputs.shards import shard

MANY = TABLE in os.environ


class Reader(NamedTuple):
    """A record in a file, and what reads and uses it.

    prepare: writes what else the reader needs into a folder, and returns the record.
    sign: adds the hash of the other keys. slow: takes milliseconds. part: the key that
    few mutations are in, because another reader has mutations of all other keys.
    """

    file: str
    prepare: Callable[[Path], Any]
    read: Callable[[Path], object]
    sign: bool = False
    slow: bool = False
    part: str | None = None


def prepare_results(folder: Path) -> Any:
    (folder / "student").mkdir()
    return build_full_results(cascade=None)


def prepare_cascade_results(folder: Path) -> Any:
    (folder / "student").mkdir()
    return build_full_results(validation=None, test=None, verdict=None)


def prepare_embedding_results(folder: Path) -> Any:
    (folder / "student").mkdir()
    embedding = build_embedding_results(labeled=90).embedding
    assert embedding is not None
    return build_full_results(
        validation=None,
        test=None,
        verdict=None,
        cascade=None,
        knowledge=None,
        embedding=embedding.model_dump(mode="json"),
    )


def use_results(folder: Path) -> None:
    run = load_run(folder)
    report = build_report([folder])
    views, overview = _build_run_views(report), build_overview(report)
    markdown = render_markdown(report, views, overview)
    for text in (render_csv(report), markdown, report.model_dump_json()):
        text.encode()
    console = Console(file=io.StringIO(), width=120)
    console.print(build_summary(run.results))
    console.print(build_sweep_table([Trial(0, ("a=1",), run.results)], winner=0))
    has_metrics = run.results.data and (run.results.test or run.results.validation)
    if has_metrics and "student" in run.results.models:
        write_card(folder / "student", run.results)
    load_runs(folder).to_csv().encode()
    if MANY:
        render_html(report, views, overview).encode()


def prepare_exports(folder: Path) -> Any:
    run_folder(folder / "run", names=NAMES, images=30)
    (folder / "export").mkdir()
    os.rename(folder / "run" / "results.json", folder / "results.json")
    entry = build_entry(0.9, 1.0, 2.0)
    ratio = {"student": {"value": 2.0, "low": 1.0, "high": 3.0}}
    torch = {k: v for k, v in entry.items() if k != "format"} | {"name": "a net"}
    return {
        "schema_version": 1,
        "kd_app": "0.1.0",
        "files": {
            "model.onnx": {**entry, "times_faster": ratio, "times_cheaper": ratio},
            "model.pte": entry,
        },
        "torch": {"teacher": torch, "student": torch},
        "ship": "model.onnx",
    }


def use_exports(folder: Path) -> None:
    read_exports(folder)
    report = build_report([folder], budgets=[3.0])
    build_overview(report)
    for part in report.runs:
        build_sections(report, part)
    render_csv(report).encode()


def prepare_manifest(folder: Path) -> Any:
    (folder / "model.onnx").write_bytes(b"x")
    pixels = {"dtype": "uint8", "shape": ["batch", 1, 8, 8], "mean": [0.3], "std": [0.4]}
    return {
        "schema_version": 1,
        "files": {
            "model.onnx": {
                "format": "onnx",
                "input": {**pixels, "crop": 1.0, "interpolation": "bilinear"},
                "classes": ["a", "b"],
                "license": "mit",
                "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
                "opset": 18,
            }
        },
    }


def use_manifest(folder: Path) -> None:
    entry = read_entry(folder / "model.onnx")
    assert entry.pixels.channels > 0
    assert all(isinstance(name, str) for name in entry.classes)


def prepare_embedding_manifest(folder: Path) -> Any:
    content = prepare_manifest(folder)
    content["files"]["model.onnx"] |= {"output": "embedding", "width": 64, "classes": []}
    return content


def prepare_shard(folder: Path) -> Any:
    shard(folder / "shard", 0, [1, 3, 4])
    return json.loads((folder / "shard" / CONTENT).read_text(encoding="utf-8"))


def use_shard(folder: Path) -> None:
    cache = TeacherCache.load([folder / "shard"])
    (view,) = cache.images
    cache.read_rows(view, np.array([1, 4]))


def prepare_model(folder: Path) -> Any:
    teacher_folder(folder / "model")
    content: Any = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    content["model_args"] = {"global_pool": "avg"}
    return content


def use_model(folder: Path) -> None:
    spec = ModelSpec(
        role="teacher",
        name=None,
        pretrained="auto",
        checkpoint=folder / "model",
        kwargs={},
        image_size=None,
        factory=None,
    )
    pixels = resolve_input(spec, ImageStats(1, 8, (0.3,), (0.4,)))
    assert spec.record.classes is not None
    if pixels.height <= 64 and pixels.width <= 64 and pixels.channels <= 3:
        create(spec, pixels, 10, seed=0)


def prepare_config(folder: Path) -> Any:
    (folder / "results.json").write_text(
        json.dumps(build_full_results(cascade=None)), encoding="utf-8"
    )
    words = ["student.name=resnet8", "loss=[cross_entropy,soft_target]", "controls=[labels_only]"]
    return compose_config("distill", words)


def use_config(folder: Path) -> None:
    command = compose("evaluate", ("run=x", "out=o"))
    build_saved_spec(read_run(folder, command, "measure"))
    command = compose("compress", ("run=x", "out=o", "steps=[finetune]"))
    build_saved_spec(read_run(folder, command, "train"))


@cache
def _compose(primary: str, overrides: tuple[str, ...]) -> str:
    return json.dumps(compose_config(primary, overrides))


def compose(primary: str, overrides: Any) -> Any:
    """`compose_config`, which is slow, once for the same overrides."""
    return json.loads(_compose(primary, tuple(overrides)))


def prepare_training(_: Path) -> Any:
    return {
        "best": {"epoch": 3.0, "top1": 0.9, "nll": 0.5, "weights": "average"},
        "epochs": 5,
        "max_epochs": 10,
        "images_per_second": 100.0,
        "weights": {"source": "random", "sha256": "ab", "matched": 3, "missing": []},
        "precision": "32-true",
        "skipped_steps": 0,
        "ranks": [],
        "files": {"model.safetensors": "ab"},
    }


def use_training(folder: Path) -> None:
    record = read_training(folder)
    " ".join(describe_outcome(record)).encode()
    describe_training(record).model_dump_json()
    assert record["weights"]["source"] is not None


def prepare_stage(folder: Path) -> Any:
    (folder / "a.txt").write_text("x", encoding="utf-8")
    key = {"format": 3, "name": "x", "config": {"a": 1}, "inputs": {}}
    return {**key, "seconds": 1.5, "files": {"a.txt": "ab"}}


def use_stage(folder: Path) -> None:
    with patch.object(Stages, "_resolve_stage", lambda *_: ({}, folder)):
        Stages(folder.parent).find("x", config={}, inputs={})


def prepare_reference(_: Path) -> Any:
    return {"name": "a", "source": "hub a", "sha256": "ab", "stage": "s", "path": "p"}


def use_reference(folder: Path) -> None:
    reference = read_teacher_reference(folder)
    f"{reference.name} {reference.source}".encode()
    assert reference.folder is None or not (reference.folder / "config.json").is_file()


def prepare_moments(_: Path) -> Any:
    return {name: Moments([0.5, 1.5, 2.5, 3.5], 4.0).to_json() for name in "ab"}


def use_moments(folder: Path) -> None:
    moments = read_moments(folder / "moments.json", ["a", "b"])
    pixels = InputSpec(1, 2, 2, (0.0,), (1.0,))
    members = {name: (Flatten(), pixels) for name in moments}
    model = EmbeddingEnsembleModel(
        members, [1.0, 1.0], "concatenate", list(moments.values()), pixels
    )
    model(torch.zeros(2, 1, 2, 2))


def prepare_search(folder: Path) -> Any:
    for number in range(3):
        (folder / str(number)).mkdir()
        content = build_full_results(cascade=None)
        content["validation"]["student"]["top1"] = 0.5 + number / 10
        (folder / str(number) / "results.json").write_text(json.dumps(content), encoding="utf-8")
    low = {"low": 1.0, "high": 8.0, "step": None, "log": False}
    space = json.dumps({"name": "FloatDistribution", "attributes": low})
    return {
        "search": {
            "sampler": "tpe",
            "seed": 0,
            "objectives": {"validation.student.top1": "maximize"},
            "space": {"temperature": space},
        },
        "proposed": [{"temperature": 1.0}, {"temperature": 4.0}, {"temperature": 8.0}],
    }


def prepare_cascade(folder: Path) -> Any:
    for name in "ab":
        (folder / name).write_bytes(b"x")
    sha256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    return {
        "stages": [{"file": name, "sha256": sha256} for name in "ab"],
        "measure": "margin",
        "thresholds": [0.5],
        "temperatures": [1.0, 1.0],
    }


class Stage:
    """A stage of a cascade that gives logits of three classes."""

    classes = NAMES

    def infer_logits(self, images: Any, /) -> Any:
        return np.eye(3, dtype=np.float32)[: len(images)]


def use_cascade(folder: Path) -> None:
    opener: Any = lambda _: Stage()  # noqa: E731
    cascade = ModelCascade.load(folder / "cascade.json", opener)
    cascade.predict(np.zeros((2, 1, 8, 8), np.uint8))


def prepare_scan(folder: Path) -> Any:
    np.save(folder / SIZES, np.full((5, 2), 8))
    np.save(folder / SHAPES, np.full((5, 2), 8))
    np.save(folder / HASHES, np.zeros(5, np.uint64))
    np.save(folder / SIMILAR, np.zeros((0, 2), np.int64))
    return {"decode_size": 8, "bad": {"1": "empty"}, "kept": True, "size_bytes": 320}


def use_scan(folder: Path) -> None:
    summary = read_scan(folder).summary
    assert all(0 <= int(number) < 5 for number in summary.bad)


def prepare_policy(_: Path) -> Any:
    content: Any = load_record(POLICY, expected="")
    names = list(content["licenses"])
    kept = {*names[:3], "none", "unknown"}
    return {"licenses": {name: content["licenses"][name] for name in names if name in kept}}


def use_policy(folder: Path) -> None:
    policy = Policy(folder / "licenses.yaml")
    policy.has_entry("none")


def prepare_refusal(folder: Path) -> Any:
    (folder / "refused").mkdir()
    return {"overrides": ["a=1"], "reason": "no"}


def use_refusal(folder: Path) -> None:
    refusal = read_refusal(folder / "3")
    assert refusal is not None
    " ".join([refusal.reason, *refusal.overrides]).encode()


READERS = {
    "results.json": Reader("results.json", prepare_results, use_results),
    "results.json of a cascade": Reader(
        "results.json", prepare_cascade_results, use_results, part="cascade"
    ),
    "results.json of an embedding": Reader(
        "results.json", prepare_embedding_results, use_results, part="embedding"
    ),
    "manifest.json in a report": Reader("export/manifest.json", prepare_exports, use_exports),
    "manifest.json": Reader("manifest.json", prepare_manifest, use_manifest),
    "manifest.json of an embedding": Reader(
        "manifest.json", prepare_embedding_manifest, use_manifest
    ),
    "cache.json": Reader("shard/cache.json", prepare_shard, use_shard),
    "config.json of a model": Reader("model/config.json", prepare_model, use_model, slow=True),
    "config.yaml": Reader("config.yaml", prepare_config, use_config, slow=True),
    "training.json": Reader("training.json", prepare_training, use_training),
    "stage.json": Reader("stage.json", prepare_stage, use_stage, sign=True),
    "reference.json": Reader("reference.json", prepare_reference, use_reference),
    "moments.json": Reader("moments.json", prepare_moments, use_moments, slow=True),
    "search.json": Reader("search.json", prepare_search, suggest_next, slow=True),
    "cascade.json": Reader("cascade.json", prepare_cascade, use_cascade),
    "inputs.json": Reader(
        "inputs.json",
        lambda _: {"listing": "ab", "whole": True, "files": {"a": {"b": "c"}}},
        InputRecord.read,
        sign=True,
    ),
    "scan.json": Reader("scan.json", prepare_scan, use_scan),
    "licenses.yaml": Reader("licenses.yaml", prepare_policy, use_policy),
    "refused/3.json": Reader("refused/3.json", prepare_refusal, use_refusal),
    "curves.jsonl": Reader(
        "curves.jsonl", lambda _: {"step": 3, "epoch": 1.0, "loss": 0.5}, read_points
    ),
}
