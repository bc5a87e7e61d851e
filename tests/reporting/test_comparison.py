"""Comparison of runs: methods and their seeds, pairs, and the sentences about them."""

import dataclasses
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_app.config import RequestError
from kd_app.reporting.comparison import MethodComparison, compare
from kd_app.reporting.metrics import Estimate
from kd_app.reporting.results import Data, FileRecord, Results
from kd_app.reporting.runs import Run, write_predictions
from tests.reporting.embedding_results import build_embedding_results
from tests.reporting.run_folders import build_results, draw_logits

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


@cache
def base_results() -> Results:
    return build_results(SKILL)


def build_config(**changes: Any) -> dict[str, Any]:
    """`CONFIG` with changes; the dots of keys are written as __."""
    copy = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        *path, last = key.split("__")
        node = copy
        for name in path:
            node = node[name]
        node[last] = value
    return dict(copy)


def run(
    seed: int,
    top1: float,
    *,
    validation: float = 0.8,
    control: float = 0.7,
    test: bool = True,
    split: str = "5",
    status: str = "finished",
    **changes: Any,
) -> Run:
    """A run whose student has the test accuracy `top1`."""
    base = base_results()
    assert base.test is not None
    student, plain = base.test.student, base.test.labels_only
    assert plain is not None
    parts = {
        place: base.test.model_copy(
            update={
                "student": student.model_copy(update={"top1": value}),
                "labels_only": plain.model_copy(update={"top1": control}),
            }
        )
        for place, value in (("validation", validation), ("test", top1))
    }
    results = base.model_copy(
        update={
            "seed": seed,
            "status": status,
            "config": build_config(**changes) | {"seed": seed, "out": f"runs/{seed}"},
            "files": [FileRecord(name="split.csv", sha256=split)],
            "validation": parts["validation"],
            "test": parts["test"] if test else None,
        }
    )
    return Run(Path(f"runs/{seed}-{len(changes)}"), results)


def list_labels(runs: Sequence[Run]) -> list[str]:
    return [method.label for method in compare(runs).methods]


def find_sentence(comparison: MethodComparison, fragment: str) -> str:
    """The only sentence with `fragment`."""
    (sentence,) = [each for each in comparison.write_sentences() if fragment in each]
    return sentence


def test_runs_that_differ_in_seed_folder_rule_or_controls_are_one_method() -> None:
    runs = [
        run(0, 0.91),
        run(1, 0.92, tags=["x"], verdict={"margin": 0.02}),
        run(2, 0.93, controls={"labels_only": {}}, data__root="/elsewhere"),
    ]
    comparison = compare(runs)
    (method,) = comparison.methods
    assert method.label == "resnet8, cross_entropy + soft_target"
    assert list(method.runs) == [0, 1, 2]
    assert method.test is not None
    assert method.test.mean == pytest.approx(0.92)
    assert comparison.winner is None  # nothing to choose from


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"loss__soft_target": {**SOFT, "temperature": 1.0}},
            ("loss.soft_target.temperature=4", "loss.soft_target.temperature=1"),
        ),
        (
            {"loss": {"cross_entropy": PLAIN}},
            ("loss=[cross_entropy,soft_target]", "loss=[cross_entropy]"),
        ),
        (
            {"trainer__max_epochs": 9, "teacher__max_epochs": 9},
            ("trainer.max_epochs=8", "trainer.max_epochs=9"),
        ),
        (
            {"optimizer": {"name": "sgd", "scratch_lr": 0.05, "lr": "auto"}},
            ("optimizer.name=adamw", "optimizer.name=sgd"),
        ),
        (
            {"optimizer__lr": 1.0, "trainer__max_epochs": 9},
            ("optimizer.lr=auto, trainer.max_epochs=8", "optimizer.lr=1, trainer.max_epochs=9"),
        ),
        ({"teacher": None}, ("teacher=wrn_16_2", "teacher=none")),
    ],
)
def test_a_label_lists_the_settings_that_differ(
    changes: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert list_labels([run(0, 0.9), run(0, 0.9, **changes)]) == list(expected)


def test_models_of_one_name_with_other_settings_have_different_labels() -> None:
    kwargs = [
        run(0, 0.9, student={**CONFIG["student"], "name": name, "kwargs": {"width": width}})
        for name, width in (("a", 1), ("b", 1), ("a", 2))
    ]
    assert list_labels(kwargs) == [
        "student.name=a, student.kwargs.width=1",
        "student.name=b, student.kwargs.width=1",
        "student.name=a, student.kwargs.width=2",
    ]


SHORT: dict[str, Any] = {"loss": {"cross_entropy": PLAIN}}


def methods(test: bool = True) -> list[Run]:
    """Two methods with three seeds: the second is 1, 2 and 3 points above the first on
    test, and below on validation.
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
    comparison = compare(methods())
    first, second = comparison.methods
    assert (comparison.split, comparison.num_images, comparison.baseline) == (
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


def test_the_winner_is_chosen_on_validation_not_on_test() -> None:
    comparison = compare(methods())
    assert comparison.winner == "loss=[cross_entropy,soft_target]"
    assert "Quote the test top-1: 87.67 % (t-interval" in find_sentence(
        comparison, "Chosen on validation alone"
    )


def test_a_baseline_has_a_label_and_an_unknown_label_is_rejected() -> None:
    comparison = compare(methods(), baseline="loss=[cross_entropy]")
    assert comparison.methods[1].to_baseline is None
    assert comparison.methods[0].to_baseline is not None
    assert comparison.methods[0].to_baseline.mean == pytest.approx(-0.02)
    with pytest.raises(
        RequestError,
        match=(
            r"No method is called 'x'. Expected one of: loss=\[cross_entropy,soft_target\];"
            r" loss=\[cross_entropy\]"
        ),
    ):
        compare(methods(), baseline="x")


def test_sentences_distinguish_methods_and_models() -> None:
    sentences = compare(methods()).write_sentences()
    assert any(
        s.startswith(
            "About methods: loss=[cross_entropy] minus loss=[cross_entropy,soft_target], paired by"
            " seed (0, 1, 2): +2.00"
        )
        for s in sentences
    )
    assert any("Each verdict compares two models" in s for s in sentences)
    assert any("corrected with Holm's method" in s and "2 gains" in s for s in sentences)
    assert not any("one seed" in s for s in sentences)


def test_one_seed_is_about_a_model() -> None:
    comparison = compare([run(3, 0.91)])
    assert comparison.methods[0].test is not None
    assert comparison.methods[0].test.low is None
    assert find_sentence(comparison, "top-1 91.00 %").endswith(
        "with one seed (3). This is about a model, not about the method."
    )
    assert (
        "with one seed (3): +21.00 points. This is about two models, not methods."
        in find_sentence(comparison, "labels-only")
    )
    assert not any("About method" in sentence for sentence in comparison.write_sentences())


def test_one_seed_of_two_methods_is_compared_image_by_image(
    tmp_path: Path,
) -> None:
    logits, target = draw_logits(SKILL)
    runs = []
    for role, changes in (("student", {}), ("teacher", SHORT)):
        predictions = {"student": logits[role]}
        results = run(0, float((logits[role].argmax(1) == target).mean()), **changes).results
        (tmp_path / role).mkdir()
        write_predictions(
            tmp_path / role / "predictions.parquet",
            index=np.arange(300),
            file=["x"] * 300,
            target=target,
            logits=predictions,
        )
        runs.append(Run(tmp_path / role, results))
    comparison = compare(runs)
    models = comparison.methods[1].models
    assert models is not None
    right = {role: logits[role].argmax(1) == target for role in ("student", "teacher")}
    assert models.difference == pytest.approx(right["teacher"].mean() - right["student"].mean())
    assert models.low < models.difference < models.high
    assert models.p < 0.05
    assert (
        find_sentence(comparison, "About two models, not two methods").count(
            "on the same 300 images"
        )
        == 1
    )
    assert comparison.methods[1].to_baseline is not None
    assert comparison.methods[1].to_baseline.p is None


def test_runs_without_predictions_are_not_compared_image_by_image() -> None:
    comparison = compare([run(0, 0.9), run(0, 0.8, **SHORT)])
    assert comparison.methods[1].models is None
    assert "could not be compared image by image" in find_sentence(comparison, "Note:")


def test_runs_on_other_images_are_not_paired() -> None:
    others = [run(seed, 0.99, validation=0.99, split="6", data__seed=1) for seed in (0, 1, 2)]
    comparison = compare([*methods(), *others])
    assert [method.comparable for method in comparison.methods] == [True, True, False]
    assert comparison.methods[2].to_baseline is None
    assert comparison.methods[2].gain is not None  # paired with its own control
    assert comparison.winner == comparison.methods[0].label
    assert "have different images or another split" in find_sentence(
        comparison, "nothing is paired"
    )


def test_equal_configurations_on_other_images_are_two_methods() -> None:
    one, other = run(0, 0.9), run(1, 0.9)
    moved = Run(
        other.path,
        other.results.model_copy(
            update={"data": Data(classes=["a"], sizes={}, fingerprint="beef")}
        ),
    )
    assert list_labels([one, moved]) == [
        "as configured (data f00d, split 5)",
        "as configured (data beef, split 5)",
    ]


def test_without_a_record_of_the_split_nothing_is_paired() -> None:
    runs = [Run(each.path, each.results.model_copy(update={"files": []})) for each in methods()]
    comparison = compare(runs)
    assert comparison.methods[1].to_baseline is None
    assert "do not record the images" in find_sentence(comparison, "nothing is paired")


def test_runs_of_which_some_did_not_read_the_test_set_are_compared_on_validation() -> None:
    runs = methods(test=False)
    runs[1] = run(1, 0.85, validation=0.9, control=0.84)
    comparison = compare(runs)
    assert comparison.split == "validation"
    assert comparison.methods[1].to_baseline is not None
    assert comparison.methods[1].to_baseline.mean == pytest.approx(-0.1)
    assert (
        "1 of 6 runs read the test set, so the methods are compared on validation"
        in find_sentence(comparison, "test=always")
    )
    assert (
        "not read for all seeds: the test top-1 is 85.00 % with seed 1, which is about that model"
        in find_sentence(comparison, "Chosen on validation alone")
    )
    assert "The test set was not read" in find_sentence(
        compare(methods(test=False)), "Chosen on validation alone"
    )


def test_the_winner_is_chosen_by_the_seeds_of_all_methods() -> None:
    runs = [
        run(0, 0.9, validation=0.80),
        run(1, 0.9, validation=0.99),
        run(0, 0.9, validation=0.81, **SHORT),
    ]
    comparison = compare(runs)
    assert comparison.winner == "loss=[cross_entropy]"
    assert "the winner is chosen by the seeds that all methods have (0)" in find_sentence(
        comparison, "Not all methods have the same seeds"
    )


def test_unfinished_runs_are_counted_and_a_seed_counts_once() -> None:
    runs = [
        run(0, 0.9, status="failed"),
        run(0, 0.9, status="pruned"),
        run(1, 0.9, test=False),
        run(1, 0.8),
        run(1, 0.7),
    ]
    comparison = compare(runs)
    assert comparison.methods[0].test is not None
    assert comparison.methods[0].test.values == {1: 0.8}  # the first that read the test set
    assert "2 of 5 runs are left out: 1 failed, 1 pruned" in find_sentence(comparison, "left out")
    assert "2 of the runs repeat a seed" in find_sentence(comparison, "repeat")


def test_without_a_finished_run_there_is_nothing_to_compare() -> None:
    comparison = compare([run(0, 0.9, status="failed")])
    assert (comparison.methods, comparison.winner, comparison.baseline) == ((), None, None)
    assert comparison.write_sentences()[0] == "No run is finished: there is nothing to compare."
    assert compare([]).write_sentences() == ["No run is finished: there is nothing to compare."]


def test_of_many_methods_only_those_that_stand_out_get_sentences() -> None:
    comparison = compare(
        [
            run(seed, 0.9 + seed / 1000, trainer__max_epochs=epochs)
            for epochs in range(1, 201)
            for seed in (0, 1)
        ]
    )
    assert len(comparison.methods) == 200
    assert len(comparison.write_sentences()) < 60
    assert "The other" in find_sentence(comparison, "in the table only")


def test_a_comparison_is_plain_data() -> None:
    record = json.loads(json.dumps(dataclasses.asdict(compare(methods()))))
    assert record["methods"][1]["to_baseline"]["mean"] == pytest.approx(0.02)
    assert record["correction"] == "Holm"


def embed(seed: int, overlap: float, *, control: float = 0.3, **changes: Any) -> Run:
    """A run whose student has this share of the teacher's neighbors on both splits."""
    base = build_embedding_results(gains={"self_supervised": 0.1})
    assert base.embedding is not None
    split = base.embedding.test
    assert split is not None
    models = {
        role: each.model_copy(update={"overlap": Estimate(value=value)})
        for role, value in (("student", overlap), ("self_supervised", control))
        for each in (split.models[role],)
    }
    part = split.model_copy(update={"models": split.models | models})
    record = base.embedding.model_copy(update={"validation": part, "test": part})
    results = base.model_copy(
        update={
            "seed": seed,
            "config": build_config(task="embedding", **changes) | {"seed": seed},
            "files": [FileRecord(name="split.csv", sha256="5")],
            "embedding": record,
        }
    )
    return Run(Path(f"runs/e{seed}-{len(changes)}"), results)


def test_embeddings_are_compared_by_the_teachers_neighbors() -> None:
    runs = [embed(seed, 0.6 + seed / 100) for seed in range(3)]
    runs += [embed(seed, 0.7 + seed / 50, optimizer__lr=0.1) for seed in range(3)]
    comparison = compare([*runs, run(0, 0.9)])
    first, second = comparison.methods
    assert (first.label, second.label) == ("optimizer.lr=auto", "optimizer.lr=0.1")
    assert comparison.winner == second.label
    assert first.test is not None
    assert second.to_baseline is not None
    assert (first.test.mean, second.to_baseline.mean) == pytest.approx((0.61, 0.11))
    assert first.to_teacher is None  # the teacher has all of its own neighbors
    assert first.gain is not None
    assert first.gain.mean == pytest.approx(0.31)
    assert first.verdicts == dict.fromkeys(range(3), "kept")
    assert comparison.num_images == 100
    for fragment in (
        "by the share of the teacher's neighbors on 100 images of the test split",
        "optimizer.lr=auto: mean test share of the teacher's neighbors 61.00 % over 3 seeds",
        "optimizer.lr=auto minus its own self-supervised control",
        "1 of 7 runs are left out: 1 with another task",
    ):
        find_sentence(comparison, fragment)
    assert compare([run(0, 0.9), *runs]).metric.title == "top-1"


def test_two_embeddings_are_not_compared_by_their_classes() -> None:
    comparison = compare([embed(0, 0.6), embed(0, 0.7, optimizer__lr=0.1)])
    assert comparison.methods[1].models is None
    assert not [note for note in comparison.notes if "image by image" in note]
