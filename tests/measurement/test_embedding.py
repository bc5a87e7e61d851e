"""A run without labels, from folder to results."""

import json
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import timm
import torch

from kd_app.config import InputSpec, RequestError, RunError
from kd_app.config.compose import compose_config
from kd_app.jobs.distill import distill
from kd_app.jobs.evaluate import evaluate
from kd_app.measurement import embedding
from kd_app.measurement.embedding import _check_collapse
from kd_app.reporting.console import Console
from kd_app.reporting.embedding_map import read_map
from kd_app.reporting.results import Results, read
from tests.builders import image_folder, teacher_folder

COLOR = InputSpec(3, 16, 16, (0.5,) * 3, (0.25,) * 3)
RUN = (
    "data=images",
    "student.keep_projector=true",
    "controls=[self_supervised,other_images]",
    "controls.self_supervised.loss.vicreg.width=8",
)
SPEED = "kd_app.measurement.classification.measure_throughput"


def _distill(folder: Path, *overrides: str) -> Path:
    photos = folder / "photos"
    if not photos.is_dir():
        image_folder(photos, images=24)
        teacher_folder(folder / "teacher", "resnet8", pixels=COLOR)
    config = compose_config(
        "distill",
        [
            f"data.root={photos}",
            f"teacher.checkpoint={folder / 'teacher'}",
            "student.name=resnet8",
            "data.image_size=16",
            "data.batch_size=16",
            "data.num_workers=0",
            "trainer=cpu",
            "trainer.precision=32-true",
            "trainer.max_epochs=1",
            "optimizer.lr=0.003",
            "neighbors.k=3",
            "logger=[]",
            "checks=off",
            f"stages={folder / 'stages'}",
            f"out={folder / 'run'}",
            *overrides,
        ],
    )
    with patch(SPEED, lambda models, **_: dict.fromkeys(models, 100.0)):
        return distill(config, console=Console(silent=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    return _distill(folder, *RUN)


@pytest.fixture(scope="module")
def results(run: Path) -> Results:
    return read(run / "results.json")


def test_the_results_compare_neighbors_with_intervals(results: Results) -> None:
    record = results.embedding
    assert record is not None
    assert record.test is not None
    controls = ["self_supervised", "other_images"]
    assert list(record.test.models) == ["teacher", "untouched", *controls, "student"]
    assert record.controls == dict.fromkeys(controls, "projector")
    assert list(record.test.gains) == ["teacher", "untouched", *controls]
    shas = {results.models[role].sha256 for role in (*controls, "student")}
    assert len(shas) == 3, "each control trained other weights"
    assert record.test.models["teacher"].overlap.value == 1
    student = record.test.models["student"].overlap
    assert student.low is not None
    assert student.high is not None
    assert student.value is not None
    assert student.low <= student.value <= student.high
    assert (record.test.num_gallery, record.test.k, record.test.num_labeled) == (34, 3, 0)
    assert record.verdict is not None
    assert record.verdict.num_images == record.test.num_queries
    assert results.validation is results.test is None


def test_the_student_loads_in_timm_with_the_projector_as_its_output(run: Path) -> None:
    model = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()
    teacher = timm.create_model(f"local-dir:{run.parent / 'teacher'}", pretrained=False)
    config = json.loads((run / "student" / "config.json").read_text(encoding="utf-8"))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 16, 16)).shape == (1, teacher.num_features)
    assert config["embedding"] == {"width": teacher.num_features}
    assert not config.get("label_names")


def test_page_and_card_say_that_agreement_is_no_quality(run: Path) -> None:
    for name in ("report.html", "student/README.md"):
        text = (run / name).read_text(encoding="utf-8")
        assert "agreement with the teacher, not quality" in text
        assert "untouched" in text
        assert "the same net trained self-supervised" in text


def test_the_page_maps_the_held_out_images(run: Path, results: Results) -> None:
    rows = read_map(run / "embedding_map.parquet")
    assert results.embedding is not None
    assert results.embedding.test is not None
    assert len(rows) == 3 * results.embedding.test.num_queries
    assert "The embeddings on a plane" in (run / "report.html").read_text(encoding="utf-8")


def test_the_same_command_finds_the_finished_run(run: Path) -> None:
    before = (run / "results.json").stat().st_mtime_ns
    _distill(run.parent, *RUN)
    assert (run / "results.json").stat().st_mtime_ns == before


def test_equal_images_are_refused(tmp_path: Path) -> None:
    image_folder(tmp_path / "photos", images=12)
    first, *others = sorted((tmp_path / "photos").rglob("*.png"))
    for path in others:
        path.write_bytes(first.read_bytes())
    teacher_folder(tmp_path / "teacher", "resnet8", pixels=COLOR)
    with pytest.raises(RequestError, match="would be empty: 24 image"):
        _distill(tmp_path, "data=images")


def test_a_collapsed_embedding_ends_the_run() -> None:
    class Comparison:
        is_collapsed = True
        gallery_ranks: ClassVar = {"student": 1.0, "teacher": 9.0}

    with pytest.raises(RunError, match="has collapsed"):
        _check_collapse(Comparison())  # type: ignore[arg-type]


def test_class_folders_judge_and_the_backbone_ships_without_a_projector(run: Path) -> None:
    out = _distill(
        run.parent,
        "data=folder",
        "task=embedding",
        "student.keep_projector=false",
        f"out={run.parent / 'judged'}",
    )
    record = read(out / "results.json").embedding
    assert record is not None
    assert record.ships == "backbone"
    assert record.test is not None
    assert record.test.num_labeled == record.test.num_queries
    assert record.test.models["student"].purity is not None
    model = timm.create_model(f"local-dir:{out / 'student'}", pretrained=True)
    assert model.num_classes == 0
    assert np.isfinite(record.test.models["student"].effective_rank or np.nan)


def test_other_images_are_each_compared_with_all_others(run: Path, tmp_path: Path) -> None:
    photos = image_folder(tmp_path / "photos", images=9, seed=5)
    files = sorted(path.relative_to(photos) for path in photos.rglob("*.png"))
    rows = "".join(f"{path},{path.parent}\n" for path in files)
    (tmp_path / "labels.csv").write_text(f"path,label\n{rows}", encoding="utf-8")
    overrides = [
        *(f"run={run}", "data=images", f"data.root={photos}", f"out={tmp_path / 'out'}"),
        *(f"data.judge={tmp_path / 'labels.csv'}", "data.num_workers=0", "trainer=cpu"),
    ]
    with patch(SPEED, lambda models, **_: dict.fromkeys(models, 100.0)):
        out = evaluate(compose_config("evaluate", overrides), console=Console(silent=True))
    record = read(out / "results.json").embedding
    assert record is not None
    assert record.test is not None
    assert record.validation is None
    assert (record.test.num_queries, record.test.num_gallery) == (18, 17)
    assert (record.test.gallery, record.test.num_labeled) == ("others", 18)
    assert record.test.models["teacher"].overlap.value == 1
    assert record.test.models["student"].purity is not None
    assert record.test.models["student"].probe_top1 is None


def test_the_margin_decides_the_verdict() -> None:
    class Comparison:
        confidence, chance = 0.95, 0.1
        models: ClassVar = {"student": type("Model", (), {"queries": [0, 1]})}

        def estimate(self, role: str, metric: str) -> tuple[float, tuple[float, float]]:
            return 0.6, (0.5, 0.7)

    judge = embedding.judge
    outcomes = [
        judge(Comparison(), margin, "test").outcome  # type: ignore[arg-type]
        for margin in (0.5, 0.4, 0.2)
    ]
    assert outcomes == ["kept", "not shown", "lost"]
    Comparison.chance = 0.5  # few images
    assert judge(Comparison(), 0.5, "test").outcome == "not shown"  # type: ignore[arg-type]
