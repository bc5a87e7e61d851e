"""The model card: the metadata for the hub and the text for readers."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from kd_app.config.compose import compose_config
from kd_app.reporting.card import CARD, write_card
from kd_app.reporting.distillation_gain import describe_gains
from kd_app.reporting.results import LicenseRecord, RefitRecord, Results, TrainingRecord
from kd_app.reporting.sentences import write_verdict
from tests.reporting.run_folders import build_results


@dataclass(frozen=True)
class Card:
    data: ModelCardData
    text: str


def build_card(folder: Path, results: Results) -> Card:
    """The card as the hub's library reads it, which rejects invalid metadata."""
    write_card(folder, results)
    card = ModelCard.load(folder / CARD)
    assert isinstance(card.data, ModelCardData)
    return Card(card.data, card.text)


def build_full(**changes: Any) -> Results:
    results = build_results(
        **{
            "config": compose_config(
                "distill", ["trainer.max_epochs=7", "loss=[cross_entropy,soft_target]"]
            ),
            **changes,
        }
    )
    assert results.data is not None
    results.data.name = "digits"
    return results


def test_a_second_training_on_all_images_is_stated(tmp_path: Path) -> None:
    results = build_full()
    assert "Trained again" not in build_card(tmp_path, results).text
    refit = RefitRecord(images=1438, epochs=9)
    results.models["student"].training = TrainingRecord(epochs=12, refit=refit)
    assert (
        "- Trained again on train and validation (1,438 images) for 9 epochs, which the first"
        " training had chosen on validation"
    ) in build_card(tmp_path, results).text


def test_the_metadata_have_license_library_task_and_test_metrics(
    tmp_path: Path,
) -> None:
    results = build_full()
    data = build_card(tmp_path, results).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "timm",
        "image-classification",
    )
    assert data.tags == ["image-classification", "timm", "knowledge-distillation", "kd_app"]
    assert data.eval_results is not None
    assert results.test is not None
    assert {each.metric_type: each.metric_value for each in data.eval_results} == {
        "accuracy": pytest.approx(results.test.student.top1, abs=1e-6),
        "top_5_accuracy": pytest.approx(results.test.student.top5, abs=1e-6),
        "nll": pytest.approx(results.test.student.nll, abs=1e-6),
        "ece": pytest.approx(results.test.student.ece, abs=1e-6),
    }
    assert {(each.dataset_name, each.dataset_split) for each in data.eval_results} == {
        ("digits", "test")
    }
    assert data.model_name == "mobilenetv3_small_100.lamb_in1k for digits"


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("CC-BY-NC-4.0", ("cc-by-nc-4.0", None)),
        ("none: trained here", ("unknown", None)),
        ("unknown", ("unknown", None)),
        ("none", ("unknown", None)),
        ("Meta: Paper v3", ("other", "meta-paper-v3")),
        ("dinov3-license", ("other", "dinov3-license")),
    ],
)
def test_a_license_unknown_to_the_hub_is_other_with_a_name(
    license: str, expected: tuple[str, str | None], tmp_path: Path
) -> None:
    results = build_full()
    results.license = LicenseRecord(student_start="none", data="unknown", ships=license)
    data = build_card(tmp_path, results).data
    assert (data.license, data.license_name) == expected
    assert (data.license_link is None) == (license != "dinov3-license")


def test_the_text_has_metrics_with_intervals_verdict_and_training(
    tmp_path: Path,
) -> None:
    results = build_full()
    text = build_card(tmp_path, results).text
    assert results.test is not None
    assert results.verdict is not None
    for role in ("teacher", "labels_only", "student"):
        metrics = results.test.by_model[role]
        assert metrics.top1 is not None
        assert (
            f"{100 * metrics.top1:.2f} % ({100 * (metrics.top1_low or 0):.2f} to"
            f" {100 * (metrics.top1_high or 0):.2f})" in text
        )
    assert write_verdict(results.verdict) in text
    assert all(f"- {sentence}" in text for sentence in describe_gains(results))
    assert describe_gains(results)
    for fragment in (
        "`resnet50.a1_in1k`",
        "`soft_target` (weight 1.0, temperature 4.0, standardize False)",
        "7 epochs, seed 3",
        "fingerprint `f00d`",
        "torch 2.14.1",
    ):
        assert fragment in text
    for heading in (
        "How to use it",
        "Results",
        "Intended use",
        "Limitations",
        "Training",
        "Licenses",
    ):
        assert f"\n## {heading}\n" in text


def test_limitations_follow_from_the_metrics(tmp_path: Path) -> None:
    results = build_full()
    assert results.test is not None
    content = results.model_dump()
    accuracy = {"teacher": [0.9] * 10, "student": [0.9, 0.5, 0.89, *[0.95] * 7]}
    content["test"]["per_class"] = {"support": [30] * 10, "accuracy": accuracy, "f1": accuracy}
    corruption = {"corruption": "fog", "num_images": 300, "accuracy": {"student": 0.4}}
    content["test"]["robustness"] = [
        {**corruption, "severity": 2},
        {**corruption, "severity": 5, "accuracy": {"student": 0.21}},
    ]
    content["test"]["groups"] = {
        name: {"num_images": 150, "accuracy": {"student": {"value": right}}}
        for name, right in (("day", 0.9), ("night", 0.3))
    }
    text = build_card(tmp_path, Results.model_validate(content)).text.partition("## Limitations")[2]
    assert (
        "Classes with the largest loss against the teacher: `c1` (-40.00 points, 30 images), `c2`"
        " (-1.00 points, 30 images)." in text
    )
    assert "Classes with the lowest accuracy: `c1` (50.00 %, 30 images)" in text
    assert "21.00 % are classified correctly under fog of severity 5" in text
    assert "group `night`: 30.00 % of 150 are classified correctly" in text
    assert f"{100 * (results.test.student.ece or 0):.2f} % on average (calibration error)" in text


def test_a_run_on_a_part_of_the_images_has_a_warning(tmp_path: Path) -> None:
    text = build_card(
        tmp_path, build_full(config=compose_config("distill", ["debug=fdr", "loss=[soft_target]"]))
    ).text
    assert (
        "a trial run on a part of the images only (`limit_train_batches`, `limit_val_batches`,"
        " `limit_test_batches`)" in text
    )
    assert "a part of the images" not in build_card(tmp_path, build_full()).text


def test_user_provided_names_are_escaped(tmp_path: Path) -> None:
    results = build_full()
    assert results.data is not None
    results.data.classes[:3] = ["a|b", "x`\n---\n# y", "<script>alert(1)</script>"]
    results.data.name = "evil\n---\nlicense: mit | <b>"
    card = build_card(tmp_path, results)
    assert card.data.license == "apache-2.0"
    lines = re.sub(r"```.*?```", "", card.text, flags=re.DOTALL).splitlines()
    assert "---" not in lines
    assert [line for line in lines if line.startswith("# ")] == [f"# {card.data.model_name}"]
    assert not any("<script>" in line.replace("`<script>alert(1)</script>`", "") for line in lines)


def test_paths_and_secrets_of_the_machine_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hidden-away-0123")
    results = build_full(
        config=compose_config(
            "distill",
            [
                "teacher.checkpoint=/home/me/secret/net",
                "optimizer.kwargs.note=hidden-away-0123",
                "tags=[/home/me]",
                "loss=[soft_target]",
            ],
        )
    )
    results.models["teacher"].source = "trained here from folder /home/me/secret/net"
    write_card(tmp_path, results)
    text = (tmp_path / CARD).read_text(encoding="utf-8")
    assert "/home" not in text
    assert "hidden-away" not in text


def test_a_card_without_teacher_and_test_set(tmp_path: Path) -> None:
    config = compose_config("distill", ["teacher=none", "loss=[cross_entropy]"])
    card = build_card(tmp_path, build_results({"student": 2.0}, test=False, config=config))
    assert "The test set was not read." in card.text
    assert "trained on the labels of" in card.text
    assert "eacher" not in card.text.replace("teacher=none", "")
    assert card.data.eval_results is not None
    assert {each.dataset_split for each in card.data.eval_results} == {"validation"}
    assert "knowledge-distillation" not in (card.data.tags or [])


def test_an_external_module_is_loaded_with_its_factory(tmp_path: Path) -> None:
    config = compose_config(
        "distill",
        [
            "student._target_=mine.nets.Net",
            "student.kwargs.width=8",
            "allow=[mine]",
            "loss=[soft_target]",
        ],
    )
    results = build_full(config=config)
    results.models["student"].name = "mine.nets:Net"
    card = build_card(tmp_path, results)
    assert card.data.library_name == "pytorch"
    assert "from mine.nets import Net" in card.text
    assert "model = Net(width=8).eval()\n" in card.text


def test_the_same_results_give_the_same_card(tmp_path: Path) -> None:
    results = build_full()
    write_card(tmp_path, results)
    first = (tmp_path / CARD).read_bytes()
    results.environment["time"] = "2030-01-01T00:00:00+00:00"
    results.speed.training_images_per_second = 1.0
    write_card(tmp_path, results)
    assert (tmp_path / CARD).read_bytes() == first
    assert yaml.safe_load(first.decode().split("---")[1])["pipeline_tag"] == "image-classification"
