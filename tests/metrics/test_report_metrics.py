import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from kd_app.metrics.cka import compute_cka
from kd_app.metrics.record import Predictions
from kd_app.metrics.report_metrics import measure_split
from tests.metrics.records import to_records

MODEL = ("top1", "top5", "balanced_accuracy", "f1", "nll", "brier", "ece", "classwise_ece")
Images = tuple[dict[str, np.ndarray], np.ndarray]


def make_logits(
    skill: dict[str, float], n: int = 300, num_classes: int = 10, seed: int = 0
) -> Images:
    """Logits with common difficult images; `skill` raises the label's logit."""
    rng = np.random.default_rng(seed)
    target = rng.integers(num_classes, size=n)
    hard = rng.standard_normal((n, num_classes))
    result = {}
    for name, lift in skill.items():
        z = (hard + 0.7 * rng.standard_normal((n, num_classes))).astype(np.float32)
        z[np.arange(n), target] += np.float32(lift)
        result[name] = z
    return result, target


def measure(logits: dict[str, np.ndarray], target: np.ndarray, **settings: Any) -> dict[str, Any]:
    return measure_split(to_records(logits, target), **settings)


THREE = {"teacher": 3.0, "labels_only": 1.0, "student": 2.0}


def value(result: dict[str, Any], name: str) -> float:
    number = result[name]
    assert isinstance(number, float)
    return number


def test_the_keys_are_those_of_results_json() -> None:
    result = measure(*make_logits(THREE), seed=0, confidence=0.95)
    assert set(result) == {
        "num_images",
        "confidence",
        "teacher",
        "labels_only",
        "student",
        "pair",
        "gains",
        "per_class",
        "groups",
    }
    assert (result["num_images"], result["confidence"]) == (300, 0.95)
    comparisons = (
        "agreement",
        "negative_flips",
        "positive_flips",
        "kl_to_teacher",
        "reverse_kl",
        "rank_correlation",
        "cka",
    )
    pair = ("retention", "gain", "gap_closed", *comparisons)
    for part, names in ((result["student"], MODEL), (result["pair"], pair)):
        assert set(part) == {f"{name}{end}" for name in names for end in ("", "_low", "_high")}


def test_metrics_that_need_a_missing_model_are_absent() -> None:
    logits, target = make_logits(THREE)
    alone = measure({"student": logits["student"]}, target, seed=0, confidence=0.95)
    assert set(alone) == {"num_images", "confidence", "student", "gains", "per_class", "groups"}
    assert (alone["gains"], alone["per_class"]["negative_flips"], alone["groups"]) == ({}, [], {})
    without_control = measure(
        {name: logits[name] for name in ("teacher", "student")}, target, seed=0, confidence=0.95
    )["pair"]
    assert {"retention", "agreement"} <= set(without_control)
    assert not {"gain", "gap_closed"} & set(without_control)
    without_teacher = measure(
        {name: logits[name] for name in ("labels_only", "student")}, target, seed=0, confidence=0.95
    )["pair"]
    assert set(without_teacher) == {"gain", "gain_low", "gain_high"}


def test_ratios_are_those_of_the_accuracies() -> None:
    result = measure(*make_logits(THREE), seed=0, confidence=0.95)
    teacher, control, student = (
        value(part, "top1")
        for part in (result["teacher"], result["labels_only"], result["student"])
    )
    assert value(result["pair"], "retention") == pytest.approx(student / teacher)
    assert value(result["pair"], "gain") == pytest.approx(student - control)
    assert value(result["pair"], "gap_closed") == pytest.approx(
        (student - control) / (teacher - control)
    )


def test_the_intervals_of_accuracies_and_shares_are_exact() -> None:
    logits, target = make_logits(THREE)
    result = measure(logits, target, seed=0, confidence=0.9)
    predicted = {name: z.argmax(1) for name, z in logits.items()}
    for part, name, hits in (
        ("student", "top1", predicted["student"] == target),
        ("pair", "agreement", predicted["student"] == predicted["teacher"]),
    ):
        expected = binomtest(int(hits.sum()), len(target)).proportion_ci(0.9, method="exact")
        bounds = (result[part][f"{name}_low"], result[part][f"{name}_high"])
        assert bounds == pytest.approx((expected.low, expected.high))


def test_the_interval_of_retention_is_close_to_a_plain_bootstrap_loop() -> None:
    logits, target = make_logits({"teacher": 3.0, "student": 2.9}, n=1000)
    right = {name: z.argmax(1) == target for name, z in logits.items()}
    rng, ratios = np.random.default_rng(1), []
    for _ in range(3000):
        rows = rng.integers(1000, size=1000)
        ratios.append(right["student"][rows].mean() / right["teacher"][rows].mean())
    result = measure(logits, target, seed=0, confidence=0.95)["pair"]
    assert (result["retention_low"], result["retention_high"]) == pytest.approx(
        np.quantile(ratios, [0.025, 0.975]), abs=0.008
    )


def test_the_intervals_of_f1_and_brier_equal_a_plain_bootstrap_loop() -> None:
    logits, target = make_logits(THREE, n=150, num_classes=4)
    z = logits["student"].astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    squares, predicted = ((p - np.eye(4)[target]) ** 2).sum(1), z.argmax(1)
    rng, f1, brier = np.random.default_rng(1), [], []
    for _ in range(250):
        rows = rng.integers(150, size=150)
        f1.append(
            f1_score(
                target[rows],
                predicted[rows],
                labels=np.unique(target[rows]),
                average="macro",
                zero_division=0,
            )
        )
        brier.append(squares[rows].mean())
    result = measure(logits, target, seed=0, confidence=0.95)["student"]
    assert (result["f1_low"], result["f1_high"]) == pytest.approx(
        np.quantile(f1, [0.025, 0.975]), abs=0.02
    )
    assert (result["brier_low"], result["brier_high"]) == pytest.approx(
        np.quantile(brier, [0.025, 0.975]), abs=0.02
    )


def test_every_control_has_metrics_and_a_gain_and_only_labels_only_closes_the_gap() -> None:
    logits, target = make_logits(
        {"teacher": 3.0, "smoothed": 1.5, "labels_only": 1.0, "shuffled": 1.2, "student": 2.0}
    )
    result = measure(logits, target, seed=0, confidence=0.95)
    assert list(result["gains"]) == ["smoothed", "labels_only", "shuffled"]
    for control, gain in result["gains"].items():
        assert gain["value"] == pytest.approx(result["student"]["top1"] - result[control]["top1"])
        assert gain["low"] <= gain["value"] <= gain["high"]
    pair = result["pair"]
    assert result["gains"]["labels_only"] == {
        "value": pair["gain"],
        "low": pair["gain_low"],
        "high": pair["gain_high"],
    }
    fewer = measure({name: logits[name] for name in THREE}, target, seed=0, confidence=0.95)
    extra = {key: result[key] for key in ("smoothed", "shuffled", "gains", "per_class")}
    assert result == {**fewer, **extra}
    assert set(result["per_class"]["accuracy"]) == set(result["per_class"]["f1"]) == set(logits)


def test_metrics_by_class_explain_the_averages() -> None:
    logits, target = make_logits(THREE, n=400, num_classes=5)
    target[target == 3] = 2
    result = measure(logits, target, seed=0, confidence=0.95)
    by_class = result["per_class"]
    assert by_class["support"] == np.bincount(target, minlength=5).tolist()
    assert by_class["accuracy"]["student"][3] is None
    for k in (0, 1, 2, 4):
        right = {name: z[target == k].argmax(1) == k for name, z in logits.items()}
        assert by_class["accuracy"]["student"][k] == pytest.approx(
            right["student"].mean(), abs=1e-6
        )
        assert by_class["negative_flips"][k] == pytest.approx(
            (right["teacher"] & ~right["student"]).mean(), abs=1e-6
        )
    assert result["student"]["balanced_accuracy"] == pytest.approx(
        np.mean([a for a in by_class["accuracy"]["student"] if a is not None]), abs=1e-6
    )
    assert result["student"]["f1"] == pytest.approx(
        np.mean([a for a in by_class["f1"]["student"] if a is not None]), abs=1e-6
    )


def test_a_group_has_the_metrics_of_its_own_images() -> None:
    logits, target = make_logits(THREE, n=200)
    group = (
        np.random.default_rng(0)
        .choice(["", "north", "south"], p=[0.2, 0.3, 0.5], size=200)
        .tolist()
    )
    result = measure(logits, target, seed=0, confidence=0.95, group=group)["groups"]
    assert list(result) == ["south", "north"]
    rows = np.array(group) == "north"
    alone = measure(
        {name: z[rows] for name, z in logits.items()}, target[rows], seed=0, confidence=0.95
    )
    assert result["north"]["num_images"] == rows.sum()
    assert result["north"]["agreement"] == alone["pair"]["agreement"]
    for name in logits:
        expected = [alone[name][f"top1{end}"] for end in ("", "_low", "_high")]
        assert [
            result["north"]["accuracy"][name][key] for key in ("value", "low", "high")
        ] == pytest.approx(expected)


def test_the_hundred_largest_groups_are_listed() -> None:
    logits, target = make_logits({"student": 2.0}, n=500)
    group = [f"patient {number % 160 if number < 320 else number % 40}" for number in range(500)]
    result = measure(logits, target, seed=0, confidence=0.95, group=group)["groups"]
    assert len(result) == 100
    assert min(each["num_images"] for each in result.values()) >= 2
    assert {f"patient {number}" for number in range(20)} <= set(result)
    assert all(each["agreement"] is None for each in result.values())


def test_embeddings_are_compared_if_present() -> None:
    logits, target = make_logits(THREE, n=60)
    first, second = (
        np.random.default_rng(width).standard_normal((30, width)).astype(np.float32)
        for width in (4, 7)
    )
    records = to_records(logits, target)
    for name, embedding in (("student", first), ("teacher", second)):
        records[name] = Predictions(
            np.arange(60), target, logits[name], embedding, np.arange(0, 60, 2)
        )
    result = measure_split(records, seed=0, confidence=0.95)["pair"]
    assert result["cka"] == compute_cka(first, second)
    assert measure(logits, target, seed=0, confidence=0.95)["pair"]["cka"] is None


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 80),
    num_classes=st.integers(2, 8),
    confidence=st.floats(0.5, 0.99),
)
def test_every_interval_includes_its_point_for_any_number_of_images(
    seed: int, n: int, num_classes: int, confidence: float
) -> None:
    result = measure(*make_logits(THREE, n, num_classes, seed), seed=0, confidence=confidence)
    for part in (result["teacher"], result["labels_only"], result["student"], result["pair"]):
        for name in [key for key in part if not key.endswith(("_low", "_high"))]:
            low, point, high = (part[key] for key in (f"{name}_low", name, f"{name}_high"))
            assert (low is None) == (high is None)
            assert low is None or point is not None
            if low is not None and point is not None and high is not None:
                assert low <= point <= high


def test_a_student_equal_to_its_teacher_has_a_retention_of_1() -> None:
    logits, target = make_logits({"teacher": 2.0, "labels_only": 1.0})
    result = measure({**logits, "student": logits["teacher"]}, target, seed=0, confidence=0.95)[
        "pair"
    ]
    assert (result["retention"], result["gap_closed"]) == (1, 1)
    assert 0.97 < result["retention_low"] < 0.995
    assert 1.005 < result["retention_high"] < 1.03
    assert [result[f"gap_closed{end}"] for end in ("_low", "_high")] == [None, None]
    assert (result["agreement"], result["negative_flips"], result["positive_flips"]) == (1, 0, 0)


@pytest.mark.parametrize("teacher", [1.0, 0.2])
def test_gap_closed_is_undefined_if_the_teacher_is_not_better_than_the_control(
    teacher: float,
) -> None:
    result = measure(
        *make_logits({"teacher": teacher, "labels_only": 1.0, "student": 1.5}),
        seed=0,
        confidence=0.95,
    )["pair"]
    assert [result[f"gap_closed{end}"] for end in ("", "_low", "_high")] == [None, None, None]
    assert result["gain"] is not None


def test_retention_of_a_teacher_that_is_never_right_is_undefined() -> None:
    logits, target = make_logits({"teacher": -50.0, "student": 2.0})
    assert measure(logits, target, seed=0, confidence=0.95)["pair"]["retention"] is None


def test_a_diverged_student_gives_nulls_not_nans() -> None:
    logits, target = make_logits({"teacher": 2.0, "student": 2.0})
    result = measure(
        {**logits, "student": np.full_like(logits["student"], np.nan)},
        target,
        seed=0,
        confidence=0.95,
    )
    assert (
        result["student"]["top1"],
        result["student"]["nll"],
        result["pair"]["kl_to_teacher"],
    ) == (
        0,
        None,
        None,
    )
    assert [result["student"][f"brier{end}"] for end in ("", "_low", "_high")] == [None, None, None]
    assert [result["pair"][f"rank_correlation{end}"] for end in ("", "_low", "_high")] == [
        None,
        None,
        None,
    ]
    json.dumps(result, allow_nan=False)


def test_metrics_depend_on_the_seed_and_not_on_the_order_of_images() -> None:
    logits, target = make_logits(THREE)
    one = measure(logits, target, seed=0, confidence=0.95)
    assert measure(logits, target, seed=0, confidence=0.95) == one
    turned = measure(
        {name: z[::-1].copy() for name, z in logits.items()},
        target[::-1].copy(),
        seed=0,
        confidence=0.95,
    )
    for name in MODEL:
        assert turned["student"][name] == pytest.approx(one["student"][name], rel=1e-5)


@pytest.mark.parametrize(("sharpness", "error"), [(1.0, 0.0), (2.0, np.log(2) / 2 - 0.25)])
def test_the_interval_of_the_calibration_error_corrects_the_bias(
    sharpness: float, error: float
) -> None:
    """Two classes with p uniform in 0.5..1.

    Sharpness 1 is calibrated; sharpness 2 is overconfident in every bin, by mean(p^2 /
    (p^2 + (1 - p)^2) - p).
    """
    rng, held = np.random.default_rng(0), 0
    for trial in range(20):
        p = rng.uniform(0.5, 1, size=400)
        logits = sharpness * np.stack([np.log(p), np.log1p(-p)], axis=1).astype(np.float32)
        target = (rng.random(400) > p).astype(np.int64)
        result = measure({"student": logits}, target, seed=trial, confidence=0.95)["student"]
        held += value(result, "ece_low") <= error <= value(result, "ece_high")
    assert held / 20 >= 0.85


def test_read_only_half_precision_logits_are_accepted() -> None:
    logits, target = make_logits(THREE)
    frozen = {name: z.astype(np.float16) for name, z in logits.items()}
    for z in frozen.values():
        z.setflags(write=False)
    result = measure(frozen, target, seed=0, confidence=0.95)
    assert result == measure(
        {name: z.astype(np.float32) for name, z in frozen.items()}, target, seed=0, confidence=0.95
    )
