"""Runs compared: which are seeds of one method, what is paired with what, and what may
be said of it.
"""

import dataclasses
import gc
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_app.config import RequestError
from kd_app.reporting.comparison import Comparison, compare
from kd_app.reporting.results import Data, FileRecord, Results
from kd_app.reporting.runs import Run, write_predictions
from tests.reporting.run_folders import logits_and_target, made

SOFT = {"_target_": "kd_app.losses.soft_target.SoftTarget", "weight": 1.0, "temperature": 4.0}
PLAIN = {"_target_": "kd_app.losses.cross_entropy.CrossEntropy", "weight": 1.0}
CONFIG: dict[str, Any] = {
    "out": "runs/a",
    "tags": [],
    "data": {"name": "digits", "seed": 0, "root": None},
    "teacher": {"_target_": "timm.create_model", "name": "wrn_16_2", "max_epochs": 8},
    "student": {"_target_": "timm.create_model", "name": "resnet8"},
    "loss": {"cross_entropy": PLAIN, "soft_target": SOFT},
    "optimizer": {"name": "adamw", "scratch_lr": 0.003, "lr": "auto"},
    "trainer": {"max_epochs": 8},
    "verdict": {"margin": 0.01},
}
SKILL = {"teacher": 3.0, "labels_only": 1.0, "student": 2.0}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """statsmodels' multipletests collects garbage each time: of torch's there is much."""
    gc.freeze()
    yield
    gc.unfreeze()


@cache
def measured() -> Results:
    return made(SKILL)


def config(**words: Any) -> dict[str, Any]:
    """The configuration with dotted keys changed, dots written as __."""
    found = json.loads(json.dumps(CONFIG))
    for key, value in words.items():
        *path, last = key.split("__")
        node = found
        for name in path:
            node = node[name]
        node[last] = value
    return dict(found)


def run(
    seed: int,
    top1: float,
    *,
    validation: float = 0.8,
    control: float = 0.7,
    test: bool = True,
    split: str = "5",
    status: str = "finished",
    **words: Any,
) -> Run:
    """A run whose student has that test accuracy."""
    before = measured()
    assert before.test is not None
    student, plain = before.test.student, before.test.labels_only
    assert plain is not None
    parts = {
        place: before.test.model_copy(
            update={
                "student": student.model_copy(update={"top1": value}),
                "labels_only": plain.model_copy(update={"top1": control}),
            }
        )
        for place, value in (("validation", validation), ("test", top1))
    }
    results = before.model_copy(
        update={
            "seed": seed,
            "status": status,
            "config": config(**words) | {"seed": seed, "out": f"runs/{seed}"},
            "files": [FileRecord(name="split.csv", sha256=split)],
            "validation": parts["validation"],
            "test": parts["test"] if test else None,
        }
    )
    return Run(Path(f"runs/{seed}-{len(words)}"), results)


def labels(runs: Sequence[Run]) -> list[str]:
    return [method.label for method in compare(runs).methods]


def about(found: Comparison, word: str) -> str:
    (sentence,) = [sentence for sentence in found.write_sentences() if word in sentence]
    return sentence


def test_runs_that_differ_in_seed_place_rule_and_controls_alone_are_seeds_of_one_method() -> None:
    runs = [
        run(0, 0.91),
        run(1, 0.92, tags=["x"], verdict={"margin": 0.02}),
        run(2, 0.93, controls={"labels_only": {}}, data__root="/elsewhere"),
    ]
    found = compare(runs)
    (method,) = found.methods
    assert method.label == "resnet8, cross_entropy + soft_target"
    assert list(method.runs) == [0, 1, 2]
    assert method.test is not None
    assert method.test.mean == pytest.approx(0.92)
    assert found.winner is None  # nothing to choose from


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"loss__soft_target": {**SOFT, "temperature": 1.0}}, ("loss.soft_target.temperature=4", "loss.soft_target.temperature=1")),
        ({"loss": {"cross_entropy": PLAIN}}, ("loss=[cross_entropy,soft_target]", "loss=[cross_entropy]")),
        ({"trainer__max_epochs": 9, "teacher__max_epochs": 9}, ("trainer.max_epochs=8", "trainer.max_epochs=9")),
        ({"optimizer": {"name": "sgd", "scratch_lr": 0.05, "lr": "auto"}}, ("optimizer.name=adamw", "optimizer.name=sgd")),
        ({"optimizer__lr": 1.0, "trainer__max_epochs": 9}, ("optimizer.lr=auto, trainer.max_epochs=8", "optimizer.lr=1, trainer.max_epochs=9")),
        ({"teacher": None}, ("teacher=wrn_16_2", "teacher=none")),
    ],
)  # fmt: skip
def test_a_method_is_called_by_what_it_says_differently(
    words: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert labels([run(0, 0.9), run(0, 0.9, **words)]) == list(expected)


def test_two_models_of_one_name_that_differ_in_more_are_told_apart() -> None:
    kwargs = [
        run(0, 0.9, student={**CONFIG["student"], "name": name, "kwargs": {"width": width}})
        for name, width in (("a", 1), ("b", 1), ("a", 2))
    ]
    assert labels(kwargs) == [
        "student.name=a, student.kwargs.width=1",
        "student.name=b, student.kwargs.width=1",
        "student.name=a, student.kwargs.width=2",
    ]


SHORT: dict[str, Any] = {"loss": {"cross_entropy": PLAIN}}


def methods(test: bool = True) -> list[Run]:
    """Two methods, three seeds: the second is 1, 2 and 3 points above the first, whose
    validation is better.
    """
    first = [
        run(seed, top1, validation=0.9, control=top1 - 0.01 * (1 + seed % 2), test=test)
        for seed, top1 in enumerate((0.90, 0.85, 0.88))
    ]
    second = [
        run(seed, top1, validation=0.8, control=top1, test=test, **SHORT)
        for seed, top1 in enumerate((0.91, 0.87, 0.91))
    ]
    return first + second


def test_methods_are_paired_by_seed_with_the_baseline_and_with_their_own_control() -> None:
    found = compare(methods())
    first, second = found.methods
    assert (found.split, found.num_images, found.baseline) == (
        "test",
        300,
        "loss=[cross_entropy,soft_target]",
    )
    assert first.to_baseline is None
    assert second.to_baseline is not None
    assert second.to_baseline.values == pytest.approx({0: 0.01, 1: 0.02, 2: 0.03})
    assert first.gain is not None
    assert first.gain.values == pytest.approx({0: 0.01, 1: 0.02, 2: 0.01})
    assert second.gain is not None
    assert (second.gain.p, second.gain.low) == (
        None,
        None,
    )  # equal to the control with each seed: no spread
    assert first.gain.p is not None
    assert first.gain.corrected == pytest.approx(2 * first.gain.p)


def test_the_winner_is_chosen_on_validation_though_another_has_the_better_test_figure() -> None:
    found = compare(methods())
    assert found.winner == "loss=[cross_entropy,soft_target]"
    assert "Its test top-1, the figure to quote, is 87.67 % (t-interval" in about(
        found, "Chosen on validation alone"
    )


def test_a_baseline_can_be_named_and_a_wrong_name_is_refused_with_those_there_are() -> None:
    found = compare(methods(), baseline="loss=[cross_entropy]")
    assert found.methods[1].to_baseline is None
    assert found.methods[0].to_baseline is not None
    assert found.methods[0].to_baseline.mean == pytest.approx(-0.02)
    with pytest.raises(
        RequestError,
        match=(
            r"No method is called 'x'. Expected one of: loss=\[cross_entropy,soft_target\];"
            r" loss=\[cross_entropy\]"
        ),
    ):
        compare(methods(), baseline="x")


def test_statements_about_methods_and_about_models_are_told_apart() -> None:
    said = compare(methods()).write_sentences()
    assert any(
        s.startswith(
            "About methods: loss=[cross_entropy] minus loss=[cross_entropy,soft_target], paired by"
            " seed (0, 1, 2): +2.00"
        )
        for s in said
    )
    assert any("Each verdict is about two models" in s for s in said)
    assert any("corrected by Holm's method" in s and "2 gains" in s for s in said)
    assert not any("one seed" in s for s in said)


def test_one_seed_is_called_one_seed() -> None:
    found = compare([run(3, 0.91)])
    assert found.methods[0].test is not None
    assert found.methods[0].test.low is None
    assert about(found, "top-1 91.00 %").endswith(
        "with one seed (3). That is about a model, not the method."
    )
    assert "with one seed (3): +21.00 points. That is about two models, not methods." in about(
        found, "labels-only"
    )
    assert not any("About method" in sentence for sentence in found.write_sentences())


def test_one_seed_of_two_methods_is_compared_image_by_image_and_said_to_be_about_two_models(
    tmp_path: Path,
) -> None:
    logits, target = logits_and_target(SKILL)
    runs = []
    for role, words in (("student", {}), ("teacher", SHORT)):
        answers = {"student": logits[role]}
        results = run(0, float((logits[role].argmax(1) == target).mean()), **words).results
        (tmp_path / role).mkdir()
        write_predictions(
            tmp_path / role / "predictions.parquet",
            index=np.arange(300),
            file=["x"] * 300,
            target=target,
            logits=answers,
        )
        runs.append(Run(tmp_path / role, results))
    found = compare(runs)
    models = found.methods[1].models
    assert models is not None
    right = {role: logits[role].argmax(1) == target for role in ("student", "teacher")}
    assert models.difference == pytest.approx(right["teacher"].mean() - right["student"].mean())
    assert models.low < models.difference < models.high
    assert models.p < 0.05
    assert about(found, "About two models, not two methods").count("on the same 300 images") == 1
    assert found.methods[1].to_baseline is not None
    assert found.methods[1].to_baseline.p is None


def test_runs_without_answers_to_the_images_are_not_compared_image_by_image() -> None:
    found = compare([run(0, 0.9), run(0, 0.8, **SHORT)])
    assert found.methods[1].models is None
    assert "could not be compared image by image" in about(found, "Note:")


def test_runs_on_other_images_are_not_paired_and_that_is_said() -> None:
    strangers = [run(seed, 0.99, validation=0.99, split="6", data__seed=1) for seed in (0, 1, 2)]
    found = compare([*methods(), *strangers])
    assert [method.comparable for method in found.methods] == [True, True, False]
    assert found.methods[2].to_baseline is None
    assert found.methods[2].gain is not None  # its own control saw the same images
    assert found.winner == found.methods[0].label
    assert "have other images or another split" in about(found, "nothing is paired")


def test_equal_configurations_on_other_images_are_two_methods() -> None:
    one, other = run(0, 0.9), run(1, 0.9)
    moved = Run(
        other.path,
        other.results.model_copy(
            update={"data": Data(classes=["a"], sizes={}, fingerprint="beef")}
        ),
    )
    assert labels([one, moved]) == [
        "as configured (data f00d, split 5)",
        "as configured (data beef, split 5)",
    ]


def test_without_a_record_of_the_split_nothing_is_paired() -> None:
    runs = [Run(each.path, each.results.model_copy(update={"files": []})) for each in methods()]
    found = compare(runs)
    assert found.methods[1].to_baseline is None
    assert "don't say which images" in about(found, "nothing is paired")


def test_trials_that_left_the_test_set_to_the_winner_are_compared_on_validation_and_that_is_said() -> (
    None
):
    runs = methods(test=False)
    runs[1] = run(1, 0.85, validation=0.9, control=0.84)
    found = compare(runs)
    assert found.split == "validation"
    assert found.methods[1].to_baseline is not None
    assert found.methods[1].to_baseline.mean == pytest.approx(-0.1)
    assert "1 of 6 runs read the test set, so the methods are compared on validation" in about(
        found, "test=always"
    )
    assert "not read for all of its seeds, it has 85.00 % with seed 1: about that model" in about(
        found, "Chosen on validation alone"
    )
    assert "Its test set was not read" in about(
        compare(methods(test=False)), "Chosen on validation alone"
    )


def test_the_winner_is_chosen_by_the_seeds_that_all_have() -> None:
    runs = [
        run(0, 0.9, validation=0.80),
        run(1, 0.9, validation=0.99),
        run(0, 0.9, validation=0.81, **SHORT),
    ]
    found = compare(runs)
    assert found.winner == "loss=[cross_entropy]"
    assert "the winner is chosen by the seeds that all have (0)" in about(
        found, "Not all methods have the same seeds"
    )


def test_runs_that_did_not_end_are_left_out_and_counted_and_a_seed_counts_once() -> None:
    runs = [
        run(0, 0.9, status="failed"),
        run(0, 0.9, status="pruned"),
        run(1, 0.9, test=False),
        run(1, 0.8),
        run(1, 0.7),
    ]
    found = compare(runs)
    assert found.methods[0].test is not None
    assert found.methods[0].test.values == {1: 0.8}  # the first that read the test set
    assert "2 of 5 runs are left out: 1 failed, 1 pruned" in about(found, "left out")
    assert "2 of the runs repeat a seed" in about(found, "repeat")


def test_without_a_finished_run_there_is_nothing_to_compare() -> None:
    found = compare([run(0, 0.9, status="failed")])
    assert (found.methods, found.winner, found.baseline) == ((), None, None)
    assert found.write_sentences()[0] == "No run is finished: there is nothing to compare."
    assert compare([]).write_sentences() == ["No run is finished: there is nothing to compare."]


def test_of_very_many_methods_only_those_that_stand_out_are_told_in_words() -> None:
    found = compare(
        [
            run(seed, 0.9 + seed / 1000, trainer__max_epochs=epochs)
            for epochs in range(1, 201)
            for seed in (0, 1)
        ]
    )
    assert len(found.methods) == 200
    assert len(found.write_sentences()) < 60
    assert "The other" in about(found, "in the table alone")


def test_a_comparison_is_plain_data() -> None:
    found = json.loads(json.dumps(dataclasses.asdict(compare(methods()))))
    assert found["methods"][1]["to_baseline"]["mean"] == pytest.approx(0.02)
    assert found["correction"] == "Holm"
