"""Selection of example images."""

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from kd_app.metrics.examples import SHARES, ExampleRow, choose_examples
from tests.metrics.records import to_records


def make_logits(n: int = 400, classes: int = 10) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(1)
    target = rng.integers(classes, size=n)
    hard, examples = rng.standard_normal((n, classes)), {}
    for name, lift in (("teacher", 2.0), ("labels_only", 1.0), ("student", 1.5)):
        examples[name] = (hard + rng.standard_normal((n, classes))).astype(np.float32)
        examples[name][np.arange(n), target] += np.float32(lift)
    return examples, target


def select(why: str, examples: list[ExampleRow]) -> list[ExampleRow]:
    return [each for each in examples if each.why == why]


LOGITS, TARGET = make_logits()
RECORDS = to_records(LOGITS, TARGET)
P = {name: softmax(each.astype(np.float64), axis=1) for name, each in LOGITS.items()}
RIGHT = {name: each.argmax(axis=1) == TARGET for name, each in P.items()}
PAIRS = [(2, 7), (0, 1), (3, 4)]
EXAMPLES = choose_examples(RECORDS, pairs=PAIRS, count=80)


def test_each_list_has_its_share_and_the_total_is_at_most_the_count() -> None:
    assert {why: len(select(why, EXAMPLES)) for why in SHARES} == {
        "negative_flip": 20,
        "positive_flip": 10,
        "most_different": 20,
        "similar_pair": 12,
        "typical": 10,
    }
    for count in (1, 7, 96, 1000):
        assert len(choose_examples(RECORDS, pairs=PAIRS, count=count)) <= count


@pytest.mark.parametrize(
    ("why", "right", "wrong"),
    [("negative_flip", "teacher", "student"), ("positive_flip", "student", "teacher")],
)
def test_flips_are_sorted_by_the_teachers_confidence(why: str, right: str, wrong: str) -> None:
    rows = np.flatnonzero(RIGHT[right] & ~RIGHT[wrong])
    by_hand = sorted(rows.tolist(), key=lambda row: -P["teacher"][row].max())
    assert [each.row for each in select(why, EXAMPLES)] == by_hand[: len(select(why, EXAMPLES))]


def test_the_most_different_images_have_the_largest_divergence() -> None:
    kl = rel_entr(P["teacher"], P["student"]).sum(axis=1)
    assert [each.row for each in select("most_different", EXAMPLES)] == np.argsort(-kl)[
        :20
    ].tolist()
    for each in EXAMPLES:
        assert each.divergence == pytest.approx(kl[each.row], rel=1e-4)


def test_a_similar_pair_has_the_most_confusable_images_of_both_classes() -> None:
    selected = select("similar_pair", EXAMPLES)
    assert [each.classes[:2] for each in selected] == [
        side for pair in PAIRS for side in (pair, pair, pair[::-1], pair[::-1])
    ]
    for each in selected:
        label, other = each.classes[:2]
        assert TARGET[each.row] == label
        of_the_class = [
            p[other] for p, target in zip(P["teacher"], TARGET, strict=True) if target == label
        ]
        assert P["teacher"][each.row, other] in sorted(of_the_class)[-2:]


def test_typical_images_are_right_by_both_models_one_per_class() -> None:
    selected = select("typical", EXAMPLES)
    assert [int(TARGET[each.row]) for each in selected] == list(range(10))
    assert all(RIGHT["teacher"][each.row] and RIGHT["student"][each.row] for each in selected)
    few = select("typical", choose_examples(RECORDS, pairs=[], count=24))
    assert [int(TARGET[each.row]) for each in few] == [0, 4, 9]


def test_the_classes_begin_with_the_label_and_include_both_predictions() -> None:
    for each in EXAMPLES:
        assert each.classes[0] == TARGET[each.row]
        assert len(set(each.classes)) == len(each.classes) == 5
        assert {int(P[name][each.row].argmax()) for name in ("teacher", "student")} <= set(
            each.classes
        )


def test_two_classes_are_both_listed() -> None:
    logits, target = make_logits(60, 2)
    assert all(
        sorted(each.classes) == [0, 1]
        for each in choose_examples(to_records(logits, target), pairs=[(0, 1)], count=40)
    )


def test_without_a_teacher_only_typical_images_are_selected() -> None:
    examples = choose_examples({"student": RECORDS["student"]}, pairs=[], count=80)
    assert {(each.why, each.divergence) for each in examples} == {("typical", None)}
