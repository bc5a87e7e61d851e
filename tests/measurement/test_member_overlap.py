"""How much each of several teachers decides."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from kd_app.measurement.member_overlap import measure_members
from kd_app.metrics.embedding_report import EmbeddingComparison, JudgeLabels, ModelEmbeddings
from kd_app.models.embedding_ensemble import EmbeddingEnsemble, Moments

NONE: Any = None


def test_a_member_that_is_all_of_the_embedding_has_all_of_its_neighbors(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    parts = [
        np.hstack((random.normal(size=(n, 4)), 1e-4 * random.normal(size=(n, 3))))
        for n in (60, 5, 20)
    ]
    unlabeled = [np.full(n, -1) for n in (60, 5, 20)]
    labels = JudgeLabels(unlabeled[0], unlabeled[1], unlabeled[2], 0)
    models = {"teacher": ModelEmbeddings(*(each.astype(np.float32) for each in parts))}
    path = tmp_path / "moments.json"
    moments = {"a": Moments([0.0] * 4, 1.0).to_json(), "b": Moments([0.0] * 3, 1.0).to_json()}
    path.write_text(json.dumps(moments), encoding="utf-8")
    teacher = EmbeddingEnsemble.__new__(EmbeddingEnsemble)
    teacher.combination, teacher.moments = "concatenate", path
    teacher.members = dict.fromkeys(moments, NONE)
    overlaps = measure_members(teacher, EmbeddingComparison(models, labels, 5, 0.95))
    assert (overlaps["a"] or 0) > 0.99
    assert (overlaps["b"] or 0) < 0.5
    teacher.combination = "mean"
    assert measure_members(teacher, NONE) == {}
