import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    brier_score_loss,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
)

from kd_app.metrics.pair_metrics import find_flips
from kd_app.metrics.per_class import (
    compute_f1_by_class,
    compute_share_by_class,
    count_classes,
    count_confusions,
)
from kd_app.metrics.record import Predictions
from tests.metrics.records import to_records


def make_records(
    seed: int, num_images: int, num_classes: int, *, absent: int = 0
) -> tuple[Predictions, Predictions]:
    """Student and teacher with ties; the last `absent` classes have no images."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(num_classes - absent, (num_images,), generator=generator)
    logits = torch.randint(-3, 4, (2, num_images, num_classes), generator=generator).float()
    logits[:, torch.arange(num_images), target] += 1
    names = dict(zip(("student", "teacher"), logits.numpy(), strict=True))
    records = to_records(names, target.numpy())
    return records["student"], records["teacher"]


def make_record(logits: np.ndarray, target: np.ndarray) -> Predictions:
    return to_records({"student": logits.astype(np.float32)}, target)["student"]


def classwise_error_in_a_loop(p: np.ndarray, target: np.ndarray) -> float:
    errors = []
    for k in range(p.shape[1]):
        gaps = []
        for b in range(15):
            low = -1.0 if b == 0 else b / 15  # the first bin holds 0
            inside = (p[:, k] > low) & (p[:, k] <= (b + 1) / 15)
            gaps.append(abs((p[inside, k] - (target[inside] == k)).sum()) / len(p))
        errors.append(sum(gaps))
    return float(np.mean(errors))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    num_images=st.integers(1, 60),
    num_classes=st.integers(2, 7),
    absent=st.integers(0, 1),
)
def test_metrics_equal_sklearns_and_a_plain_loop_with_ties_and_absent_classes(
    seed: int, num_images: int, num_classes: int, absent: int
) -> None:
    record, _ = make_records(seed, num_images, num_classes, absent=absent)
    y, predicted = record.target, record.logits.argmax(1)
    there = np.unique(y)
    recall, f1, support = precision_recall_fscore_support(
        y, predicted, labels=np.arange(num_classes), zero_division=0
    )[1:]
    np.testing.assert_array_equal(count_classes(y, num_classes), support)
    accuracy = compute_share_by_class(record.hits, y, num_classes)
    by_class = compute_f1_by_class(record.hits, record.scores.predicted, y, num_classes)
    for result, expected in ((accuracy, recall), (by_class, f1)):
        np.testing.assert_allclose(result[there], expected[there])
        assert np.isnan(np.delete(result, there)).all()
    assert record.totals.f1 == pytest.approx(
        f1_score(y, predicted, labels=there, average="macro", zero_division=0)
    )
    p = torch.from_numpy(record.logits).softmax(1).numpy()
    assert record.totals.brier == pytest.approx(
        ((p.astype(np.float64) - np.eye(num_classes)[y]) ** 2).sum(1).mean(), rel=1e-5, abs=1e-9
    )
    assert record.totals.classwise_ece == pytest.approx(classwise_error_in_a_loop(p, y), abs=1e-5)


def test_brier_of_many_classes_equals_sklearns_without_scaling() -> None:
    record, _ = make_records(0, 300, 5)
    p = torch.from_numpy(record.logits).double().softmax(1).numpy()
    expected = brier_score_loss(record.target, p, labels=range(5), scale_by_half=False)
    assert record.totals.brier == pytest.approx(expected, rel=1e-6)


def test_errors_of_confident_models_are_0_or_maximal() -> None:
    right = make_record(np.eye(3) * 200, np.arange(3)).totals
    assert [right.brier, right.classwise_ece, right.f1] == [0, 0, 1]
    wrong = make_record(np.eye(2) * 200, np.array([1, 0])).totals
    assert [wrong.brier, wrong.classwise_ece, wrong.f1] == [2, 1, 0]


def test_blocks_of_images_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = make_records(1, 50, 6)
    blocks, _ = make_records(1, 50, 6)
    expected = vars(whole.totals)
    monkeypatch.setattr("kd_app.metrics.per_image._VALUES", 40)
    assert vars(blocks.totals) == pytest.approx(expected, rel=1e-6)
    for name, column in vars(blocks.scores).items():
        np.testing.assert_array_equal(column, getattr(whole.scores, name))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), num_images=st.integers(1, 40))
def test_confusions_equal_sklearns_and_their_diagonal_gives_the_recall(
    seed: int, num_images: int
) -> None:
    record, _ = make_records(seed, num_images, 5, absent=1)
    predicted, target = record.logits.argmax(1), record.target
    result = count_confusions(predicted, target, 5).toarray()
    np.testing.assert_array_equal(result, confusion_matrix(target, predicted, labels=range(5)))
    there = np.unique(target)
    recall = recall_score(target, predicted, labels=there, average=None, zero_division=0)
    np.testing.assert_allclose(result.diagonal()[there] / result.sum(1)[there], recall, rtol=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), num_images=st.integers(1, 40))
def test_flips_by_class_equal_a_plain_loop_and_the_difference_of_recalls(
    seed: int, num_images: int
) -> None:
    student, teacher = make_records(seed, num_images, 4, absent=1)
    target = student.target
    negative, positive = (
        compute_share_by_class(each, target, 4) for each in find_flips(student, teacher)
    )
    predictions = zip(student.logits.argmax(1), teacher.logits.argmax(1), target, strict=True)
    rows = list(predictions)
    for k in range(4):
        mine = [(s == k, t == k) for s, t, label in rows if label == k]
        if not mine:
            assert np.isnan([negative[k], positive[k]]).all()
            continue
        assert negative[k] == sum(t and not s for s, t in mine) / len(mine)
        assert positive[k] == sum(s and not t for s, t in mine) / len(mine)
    gap = compute_share_by_class(student.hits, target, 4) - compute_share_by_class(
        teacher.hits, target, 4
    )
    np.testing.assert_allclose(positive - negative, gap, atol=1e-12)


def test_nan_logits_are_never_right() -> None:
    lost = make_record(np.full((10, 5), np.nan), np.arange(5).repeat(2))
    assert compute_share_by_class(lost.hits, lost.target, 5).tolist() == [0] * 5
    assert np.isnan(lost.totals.brier)


def test_confusions_of_50_000_classes_take_as_much_memory_as_the_images() -> None:
    target = np.arange(50_000)
    confusions = count_confusions((target + 1) % 50_000, target, 50_000)
    parts = (confusions.data, confusions.indices, confusions.indptr)
    assert sum(part.nbytes for part in parts) < 1e6
    assert (confusions[7, 8], confusions[7, 7], confusions[49_999, 0]) == (1, 0, 1)
