"""Checks of a teacher's embedding, and of the number of queries."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kd_app.checks.embedding import check_num_queries, check_teacher_embedding

RANDOM = np.random.default_rng(0)
LINE = np.outer(np.linspace(-1, 1, 40), np.ones(9)).astype(np.float32)


def _build_context(embeddings: Any, queries: int = 500) -> Any:
    return SimpleNamespace(
        teacher=SimpleNamespace(spec=SimpleNamespace(name="net")),
        predictions=SimpleNamespace(logits=np.asarray(embeddings, np.float32)),
        workspace=SimpleNamespace(data=SimpleNamespace(sizes={"test": queries})),
    )


@pytest.mark.parametrize(
    ("embeddings", "expected"),
    [
        (np.ones((40, 9)), ["collapsed-teacher"]),
        (LINE, ["collapsed-teacher"]),
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
