"""Which images are shown, and why."""

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from kd_app.metrics.examples import SHARES, ExampleRow, choose_examples
from tests.metrics.records import to_records


def made(n: int = 400, classes: int = 10) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(1)
    target = rng.integers(classes, size=n)
    hard, found = rng.standard_normal((n, classes)), {}
    for name, lift in (("teacher", 2.0), ("labels_only", 1.0), ("student", 1.5)):
        found[name] = (hard + rng.standard_normal((n, classes))).astype(np.float32)
        found[name][np.arange(n), target] += np.float32(lift)
    return found, target


def of(why: str, found: list[ExampleRow]) -> list[ExampleRow]:
    return [each for each in found if each.why == why]


LOGITS, TARGET = made()
RECORDS = to_records(LOGITS, TARGET)
P = {name: softmax(each.astype(np.float64), axis=1) for name, each in LOGITS.items()}
RIGHT = {name: each.argmax(axis=1) == TARGET for name, each in P.items()}
PAIRS = [(2, 7), (0, 1), (3, 4)]
FOUND = choose_examples(RECORDS, pairs=PAIRS, count=80)


def test_each_list_has_its_share_and_all_together_no_more_than_was_asked_for() -> None:
    assert {why: len(of(why, FOUND)) for why in SHARES} == {
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
def test_flips_are_those_of_which_the_teacher_was_surest(why: str, right: str, wrong: str) -> None:
    rows = np.flatnonzero(RIGHT[right] & ~RIGHT[wrong])
    by_hand = sorted(rows.tolist(), key=lambda row: -P["teacher"][row].max())
    assert [each.row for each in of(why, FOUND)] == by_hand[: len(of(why, FOUND))]


def test_the_most_different_are_those_of_the_largest_divergence_flips_or_not() -> None:
    kl = rel_entr(P["teacher"], P["student"]).sum(axis=1)
    assert [each.row for each in of("most_different", FOUND)] == np.argsort(-kl)[:20].tolist()
    for each in FOUND:
        assert each.divergence == pytest.approx(kl[each.row], rel=1e-4)


def test_a_pair_of_similar_classes_is_shown_from_both_sides_by_the_images_that_are_most_like_the_other() -> (
    None
):
    shown = of("similar_pair", FOUND)
    assert [each.classes[:2] for each in shown] == [
        side for pair in PAIRS for side in (pair, pair, pair[::-1], pair[::-1])
    ]
    for each in shown:
        label, other = each.classes[:2]
        assert TARGET[each.row] == label
        of_the_class = [
            p[other] for p, target in zip(P["teacher"], TARGET, strict=True) if target == label
        ]
        assert P["teacher"][each.row, other] in sorted(of_the_class)[-2:]


def test_typical_images_are_right_by_both_one_a_class() -> None:
    shown = of("typical", FOUND)
    assert [int(TARGET[each.row]) for each in shown] == list(range(10))
    assert all(RIGHT["teacher"][each.row] and RIGHT["student"][each.row] for each in shown)
    few = of("typical", choose_examples(RECORDS, pairs=[], count=24))
    assert [int(TARGET[each.row]) for each in few] == [0, 4, 9]


def test_the_classes_begin_with_the_label_and_hold_what_both_models_say() -> None:
    for each in FOUND:
        assert each.classes[0] == TARGET[each.row]
        assert len(set(each.classes)) == len(each.classes) == 5
        assert {int(P[name][each.row].argmax()) for name in ("teacher", "student")} <= set(
            each.classes
        )


def test_two_classes_are_all_there_are() -> None:
    logits, target = made(60, 2)
    assert all(
        sorted(each.classes) == [0, 1]
        for each in choose_examples(to_records(logits, target), pairs=[(0, 1)], count=40)
    )


def test_without_a_teacher_typical_images_are_left() -> None:
    found = choose_examples({"student": RECORDS["student"]}, pairs=[], count=80)
    assert {(each.why, each.divergence) for each in found} == {("typical", None)}
