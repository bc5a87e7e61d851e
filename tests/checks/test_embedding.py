"""Checks of a teacher's embedding, and of the number of queries."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from kd_app.checks import embedding
from kd_app.checks.embedding import check_num_queries, check_teacher_embedding
from kd_app.checks.quick import read_limits
from kd_app.checks.teacher_input import PixelChange
from kd_app.config import InputSpec
from kd_app.metrics.record import Predictions
from kd_app.models.weights_source import WeightsSource

COLOR = InputSpec(3, 16, 16, (0.5,) * 3, (0.25,) * 3)

RANDOM = np.random.default_rng(0)
LINE = np.outer(np.linspace(-1, 1, 40), np.ones(9)).astype(np.float32)


def _build_context(embeddings: Any, queries: int = 500) -> Any:
    return SimpleNamespace(
        teacher=SimpleNamespace(spec=SimpleNamespace(name="net")),
        judged=SimpleNamespace(logits=np.asarray(embeddings, np.float32)),
        workspace=SimpleNamespace(data=SimpleNamespace(sizes={"test": queries})),
    )


@pytest.mark.parametrize(
    ("embeddings", "expected"),
    [
        (np.ones((40, 9)), ["collapsed-teacher"]),
        (LINE, ["collapsed-teacher"]),
        (1 + 1e-4 * RANDOM.normal(size=(40, 30)), ["collapsed-teacher"]),
        (np.ones((31, 9)), []),
        (RANDOM.normal(size=(40, 4)), ["flat-teacher"]),
        (RANDOM.normal(size=(40, 30)), []),
    ],
)
def test_a_teacher_that_does_not_tell_images_apart_is_named(
    embeddings: np.ndarray, expected: list[str]
) -> None:
    findings = check_teacher_embedding(_build_context(embeddings))
    assert [finding.name for finding in findings] == expected


@pytest.mark.parametrize(("queries", "expected"), [(199, ["few-queries"]), (200, [])])
def test_few_queries_are_named(queries: int, expected: list[str]) -> None:
    findings = check_num_queries(_build_context(np.ones((2, 2)), queries))
    assert [finding.name for finding in findings] == expected


class _Context:
    """Teacher and images on which half of the classes look alike with other pixels."""

    def __init__(self, *, labels: bool) -> None:
        random, count = np.random.default_rng(0), 400
        target = np.arange(count) % 8
        centers = random.normal(size=(8, 16))
        self.centers = random.normal(size=(count, 16)) * 0.3
        self.right = (centers[target] + self.centers).astype(np.float32)
        self.wrong = (centers[target // 4] + self.centers).astype(np.float32)
        self.target = target if labels else np.full(count, -1)
        self.limits = read_limits()
        self.is_quick = True
        self.teacher = SimpleNamespace(
            spec=SimpleNamespace(name="net", origin=WeightsSource("own", "net")),
            loaded=SimpleNamespace(pixels=COLOR, model=None),
        )
        self.workspace = SimpleNamespace(
            spec=SimpleNamespace(config={"neighbors": {"k": 10}}),
            data=SimpleNamespace(capabilities=frozenset()),
        )
        self.predictions = self.embed(self.wrong)

    def embed(self, rows: np.ndarray) -> Predictions:
        return Predictions(np.arange(len(rows)), self.target, rows)


@pytest.mark.parametrize("labels", [True, False])
def test_other_pixels_are_shown_by_their_neighbors_and_judged_by_labels(labels: bool) -> None:
    context: Any = _Context(labels=labels)
    changes = [
        PixelChange("teacher-crop", "a crop of 0.5", "Set it.", context.embed(context.right))
    ]
    with patch.object(embedding, "iterate_pixel_changes", lambda context: iter(changes)):
        findings = list(embedding.check_teacher_pixels(context))
    names = [(each.severity, each.name) for each in findings]
    assert names == [("warning", "teacher-crop")] * labels + [("note", "teacher-pixels")]
    assert "a crop of 0.5" in str(findings[-1])
