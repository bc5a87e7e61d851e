"""What another measurement of an embedding needs."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kd_app.config import RequestError
from kd_app.measurement.embedding_evaluation import measure_embeddings_again

BEFORE: Any = SimpleNamespace(embedding=SimpleNamespace())
BUILDER: Any = None


def _build_workspace(**sizes: int) -> Any:
    data = SimpleNamespace(list_rows=lambda split: np.arange(sizes.get(split, 0)))
    config = {"neighbors": {"k": 10, "margin": 0.5}}
    return SimpleNamespace(data=data, spec=SimpleNamespace(config=config))


def test_without_the_teacher_nothing_is_measured() -> None:
    models: Any = {"student": None}
    with pytest.raises(RequestError, match="The teacher of the run is gone"):
        measure_embeddings_again(
            BUILDER, _build_workspace(), models, "test", before=BEFORE, is_own=True
        )


@pytest.mark.parametrize(
    ("split", "is_own", "others"), [("test", False, 6), ("train", True, 8), ("test", True, 9)]
)
def test_images_without_enough_others_are_refused(split: str, is_own: bool, others: int) -> None:
    models: Any = {"teacher": None, "student": None}
    workspace = _build_workspace(train=9, test=7)
    with pytest.raises(RequestError, match=rf"there are only {others} other images"):
        measure_embeddings_again(BUILDER, workspace, models, split, before=BEFORE, is_own=is_own)
