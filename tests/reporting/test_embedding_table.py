"""The table and the sentences about an embedding."""

import re
from typing import Any

import pytest

from kd_app.reporting.embedding_results import EmbeddingRecord
from kd_app.reporting.embedding_table import (
    build_embedding_table,
    list_embedding_sentences,
    write_embedding_verdict,
)
from kd_app.reporting.results import Results
from tests.reporting.run_folders import build_results


def _bound(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def _build(
    outcome: str = "kept", labeled: int = 0, gains: dict[str, float] | None = None
) -> Results:
    labels: dict[str, Any] = {"purity": _bound(0.5)} if labeled else {}
    models = {
        role: {"width": width, "overlap": _bound(value), "cka": 0.5, **labels}
        for role, width, value in (
            ("teacher", 1280, 0.97),
            ("pca", 512, 0.9),
            ("random", 512, 0.1),
            ("untouched", 512, 0.2),
            *((role, 512, 0.3) for role in gains or {}),
            ("student", 1280, 0.6),
        )
    }
    split = {
        "num_queries": 100,
        "num_gallery": 400,
        "num_labeled": labeled,
        "k": 10,
        "confidence": 0.95,
        "models": models,
        "gap_closed": {"overlap": _bound(0.5), **({"purity": {"value": None}} if labeled else {})},
        "gains": {
            role: dict.fromkeys(("overlap", *labels), _bound(gain))
            for role, gain in (gains or {}).items()
        },
    }
    verdict = {
        "outcome": outcome,
        "margin": 0.5,
        "confidence": 0.95,
        "overlap": 0.6,
        "low": 0.58,
        "high": 0.62,
        "num_images": 100,
        "split": "test",
    }
    record = EmbeddingRecord.model_validate(
        {
            "teacher_embedding": "pooled",
            "ships": "projector",
            "candidates": {"projector": 0.6, "backbone": 0.4},
            "untouched": "random",
            "test": split,
            "verdict": verdict,
        }
    )
    return build_results().model_copy(
        update={"embedding": record, "validation": None, "test": None, "verdict": None}
    )


def test_models_stand_in_the_order_of_the_comparison() -> None:
    table = build_embedding_table(_build())
    assert table is not None
    assert table.heads == ["teacher", "teacher, cut", "random weights", "untouched", "distilled"]
    rows = dict(table.rows)
    assert rows["width"] == ["1280", "512", "512", "512", "1280"]
    assert rows["teacher's neighbors (k=10)"][-1] == "60.00 % (58.0 to 62.0)"
    assert "purity (k=10)" not in rows


@pytest.mark.parametrize("outcome", ["kept", "lost", "not shown"])
def test_the_verdict_without_labels_is_about_agreement(outcome: str) -> None:
    text = write_embedding_verdict(_build(outcome))
    assert text.lower().startswith(outcome)
    assert "50.00 %" in text
    assert "60.00 % (58.0 to 62.0) of the teacher's 10 nearest images" in text
    assert "agreement with the teacher, not quality" in text


def test_labels_judge_quality_and_an_undefined_gap_is_explained() -> None:
    sentences = " ".join(list_embedding_sentences(_build(labeled=100)))
    assert "none was trained on" in sentences
    assert "Gap closed in purity: undefined" in sentences
    assert "keeps 90.00 % (88.0 to 92.0) of its neighbors" in sentences
    assert "random weights finds 10.00 %" in sentences


def test_a_control_has_a_column_and_a_paired_difference() -> None:
    table = build_embedding_table(_build(gains={"self_supervised": 0.1}))
    assert table is not None
    assert table.heads[-2:] == ["self-supervised", "distilled"]
    row = dict(table.rows)["distilled minus this: teacher's neighbors, points"]
    assert row == ["", "", "", "", "+10.00 (+8.00 to +12.00)", ""]


@pytest.mark.parametrize(
    ("control", "gain", "labeled", "conclusion"),
    [
        ("self_supervised", 0.1, 0, "in agreement with the teacher, the teacher adds to what"),
        ("self_supervised", 0.1, 9, "by the labels, the teacher adds to what"),
        ("self_supervised", 0.01, 9, "by the labels, it is not shown that the teacher adds"),
        ("self_supervised", -0.1, 9, "by the labels, distillation did worse."),
        ("other_images", 0.1, 0, "in agreement with the teacher, the loss teaches about images"),
        ("my_own", 0.0, 0, "Distilled minus my own, in points: .* no difference is shown."),
    ],
)
def test_a_sentence_says_what_a_control_showed(
    control: str, gain: float, labeled: int, conclusion: str
) -> None:
    text = list_embedding_sentences(_build(labeled=labeled, gains={control: gain}))[-2]
    assert re.search(conclusion, text), text


def test_without_a_measurement_there_is_no_table() -> None:
    results = build_results()
    assert build_embedding_table(results) is None
    assert list_embedding_sentences(results) == []
    assert write_embedding_verdict(results) == ""


def test_the_share_of_each_of_several_teachers_is_named() -> None:
    results = _build()
    assert results.embedding is not None
    assert not any("all teachers together" in each for each in list_embedding_sentences(results))
    results.embedding.members = {"a": 0.8, "b": 0.5}
    sentences = " ".join(list_embedding_sentences(results))
    assert "each alone has: a 80.00 %, b 50.00 %" in sentences
