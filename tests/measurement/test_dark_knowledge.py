"""The teacher's soft labels, and examples of images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kd_app.measurement.dark_knowledge import measure_teacher_knowledge, show_examples
from kd_app.metrics.record import Predictions
from kd_app.reporting.knowledge_results import SimilarPair
from kd_app.reporting.results import Results
from kd_app.run.workspace import Workspace
from tests.builders import DIGITS
from tests.reporting.run_folders import build_results


def predictions(workspace: Workspace, seed: int = 0) -> Predictions:
    """Logits for 40 images; 3 and 8 are similar to the model."""
    index = np.arange(40)
    target = index % 10
    logits = np.random.default_rng(seed).normal(size=(40, 10)).astype(np.float32)
    logits[index, target] += 3
    logits[target == 3, 8] += 3
    logits[target == 8, 3] += 3
    return Predictions(index, target, logits)


def test_similar_classes_are_named_at_the_temperatures_of_the_loss(digits: Workspace) -> None:
    knowledge = measure_teacher_knowledge(digits, predictions(digits), "validation")
    assert (knowledge.split, knowledge.num_images) == ("validation", 40)
    assert {knowledge.similar[0].first, knowledge.similar[0].second} == {"3", "8"}
    assert [each.temperature for each in knowledge.softened] == [4.0]
    assert knowledge.softened[0].similar[0].first in DIGITS


def test_a_finished_run_has_the_temperatures_of_its_results(
    digits: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    knowledge = measure_teacher_knowledge(digits, predictions(digits), "validation")
    softer = knowledge.softened[0].model_copy(update={"temperature": 2.0})
    before: Results = build_results().model_copy(
        update={"knowledge": knowledge.model_copy(update={"softened": [softer]})}
    )
    again = measure_teacher_knowledge(digits, predictions(digits), "test", before=before)
    assert [each.temperature for each in again.softened] == [2.0]
    without = measure_teacher_knowledge(digits, predictions(digits), "test", before=build_results())
    assert without.softened == []


def test_examples_are_written_with_thumbnails_and_class_numbers(
    digits: Workspace, out: Path
) -> None:
    roles = {"teacher": predictions(digits), "student": predictions(digits, seed=1)}
    pair = SimilarPair(first="3", second="8", probability=0.4)
    show_examples(digits, roles, [pair], out)
    table = pd.read_parquet(out / "examples.parquet")
    assert 0 < len(table) <= 4
    assert table["png"].map(lambda png: png[1:4] == b"PNG").all()
    assert set(table["target"]) <= set(range(10))


def test_without_examples_the_file_of_an_earlier_attempt_is_deleted(
    digits: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out / "examples.parquet").touch()
    none = replace(digits.spec, config={**digits.spec.config, "examples": 0})
    monkeypatch.setattr(digits, "spec", none)
    show_examples(digits, {}, [], out)
    assert not (out / "examples.parquet").exists()
