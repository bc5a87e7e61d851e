"""The table and the sentences about an embedding."""

import re

import pytest

from kd_app.reporting.embedding_table import (
    build_embedding_table,
    list_embedding_sentences,
    write_embedding_verdict,
)
from tests.reporting.embedding_results import build_embedding_results
from tests.reporting.run_folders import build_results


def test_models_stand_in_the_order_of_the_comparison() -> None:
    table = build_embedding_table(build_embedding_results())
    assert table is not None
    assert table.heads == ["teacher", "teacher, cut", "random weights", "untouched", "distilled"]
    rows = dict(table.rows)
    assert rows["width"] == ["1280", "512", "512", "512", "1280"]
    assert rows["teacher's neighbors (k=10)"][-1] == "60.00 % (58.0 to 62.0)"
    assert "purity (k=10)" not in rows


@pytest.mark.parametrize("outcome", ["kept", "lost", "not shown"])
def test_the_verdict_without_labels_is_about_agreement(outcome: str) -> None:
    text = write_embedding_verdict(build_embedding_results(outcome))
    assert text.lower().startswith(outcome)
    assert "50.00 %" in text
    assert "60.00 % (58.0 to 62.0) of the teacher's 10 nearest images" in text
    assert "agreement with the teacher, not quality" in text


def test_what_chance_finds_among_few_images_is_named() -> None:
    results = build_embedding_results("not shown")
    assert "Chance" not in write_embedding_verdict(results)
    assert "held-out images (test)" in write_embedding_verdict(results)
    assert results.embedding is not None
    assert results.embedding.test is not None
    assert results.embedding.verdict is not None
    results.embedding.test.num_gallery = 14
    results.embedding.verdict.split = "train"
    text = write_embedding_verdict(results)
    assert "and chance finds as much; lower neighbors.k. The student" in text
    assert "for 100 images (train), among 14 training images. Chance finds 71.43 %." in text


def test_labels_judge_quality_and_an_undefined_gap_is_explained() -> None:
    sentences = " ".join(list_embedding_sentences(build_embedding_results(labeled=100)))
    assert (
        "By the labels, none of which was trained on, 50.00 % of the student's nearest images"
        " have the right class; of the teacher's 50.00 %; of the untouched student's 50.00 %."
        in sentences
    )
    assert "Gap closed in purity: undefined" in sentences
    assert "keeps 90.00 % (88.0 to 92.0) of its neighbors" in sentences
    assert "random weights finds 10.00 %" in sentences


def test_an_unknown_metric_of_a_record_is_left_out() -> None:
    results = build_embedding_results(labeled=100)
    assert results.embedding is not None
    assert results.embedding.test is not None
    gaps = results.embedding.test.gap_closed
    gaps["overlah"] = gaps.pop("overlap")
    assert "Gap closed in purity: undefined" in " ".join(list_embedding_sentences(results))


def test_a_control_has_a_column_and_a_paired_difference() -> None:
    table = build_embedding_table(build_embedding_results(gains={"self_supervised": 0.1}))
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
    text = list_embedding_sentences(
        build_embedding_results(labeled=labeled, gains={control: gain})
    )[-2]
    assert re.search(conclusion, text), text


def test_without_a_measurement_there_is_no_table() -> None:
    results = build_results()
    assert build_embedding_table(results) is None
    assert list_embedding_sentences(results) == []
    assert write_embedding_verdict(results) == ""


def test_the_share_of_each_of_several_teachers_is_named() -> None:
    results = build_embedding_results()
    assert results.embedding is not None
    assert not any("all teachers together" in each for each in list_embedding_sentences(results))
    results.embedding.members = {"a": 0.8, "b": 0.5}
    sentences = " ".join(list_embedding_sentences(results))
    assert "each alone has: a 80.00 %, b 50.00 %" in sentences
