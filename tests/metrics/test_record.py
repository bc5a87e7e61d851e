"""Records of predictions."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from kd_app.metrics.record import Predictions, Record, match_embeddings, sort_by_class

INDEX = np.array([3, 0, 2, 1])
TARGET = np.array([1, 0, 1, 0])
LOGITS = np.array([[0, 2], [0, 2], [1, 1], [1, 1]], dtype=np.float32)


def test_predictions_are_a_record() -> None:
    record: Record = Predictions(INDEX, TARGET, LOGITS)
    assert record.hits.tolist() == [True, False, False, True]


def test_a_record_is_sorted_by_index() -> None:
    result = Predictions(INDEX, TARGET, LOGITS).sort_by_index()
    assert result.index.tolist() == [0, 1, 2, 3]
    assert result.target.tolist() == [0, 0, 1, 1]
    assert result.hits.tolist() == [False, True, False, True]


def test_selected_rows_keep_their_embeddings() -> None:
    embedding = np.array([[10.0], [12.0]], dtype=np.float32)
    record = Predictions(INDEX, TARGET, LOGITS, embedding, np.array([0, 2]))
    result = record.take(np.array([2, 1, 0]))
    assert result.index.tolist() == [2, 0, 3]
    assert result.kept is not None
    assert result.embedding is not None
    assert result.kept.tolist() == [0, 2]
    assert result.embedding.tolist() == [[12.0], [10.0]]


def test_a_loaded_record_has_the_saved_columns_only(
    tmp_path: Path,
) -> None:
    record = Predictions(INDEX, TARGET, LOGITS)
    assert record.hits.any()
    record.save(tmp_path)
    result = Predictions.load(tmp_path)
    assert set(vars(result)) == {"index", "target", "logits", "embedding", "kept"}
    np.testing.assert_array_equal(result.logits, LOGITS)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_saved_logits_stay_on_disk_and_equal_those_of_safetensors(
    tmp_path: Path, dtype: type[np.floating]
) -> None:
    embedding = np.array([[10.0], [12.0]], dtype=np.float32)
    record = Predictions(INDEX, TARGET, LOGITS.astype(dtype), embedding, np.array([0, 2]))
    record.save(tmp_path)
    (file,) = tmp_path.iterdir()
    content, result = load_file(file), Predictions.load(tmp_path)
    assert isinstance(result.logits, np.memmap)
    for name, column in content.items():
        assert getattr(result, name).dtype == column.dtype
        np.testing.assert_array_equal(getattr(result, name), column)
    result.logits[0] = 7  # a private copy
    np.testing.assert_array_equal(Predictions.load(tmp_path).logits, LOGITS)
    Predictions(INDEX[:0], TARGET[:0], LOGITS[:0]).save(tmp_path)
    assert Predictions.load(tmp_path).logits.shape == (0, 2)


def test_scores_are_computed_once() -> None:
    record = Predictions(INDEX, TARGET, LOGITS)
    assert record.scores is record.scores


def test_images_of_a_class_keep_their_order() -> None:
    assert sort_by_class(Predictions(INDEX, TARGET, LOGITS)).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("kept", [None, np.array([1, 3])])
def test_embeddings_are_matched_by_image(kept: np.ndarray | None) -> None:
    embedding = None if kept is None else np.array([[1.0], [3.0]], dtype=np.float32)
    first = Predictions(INDEX, TARGET, LOGITS, embedding, kept)
    second = Predictions(INDEX, TARGET, LOGITS, np.zeros((1, 2), np.float32), np.array([3]))
    pair = match_embeddings(first, second)
    assert pair is None if kept is None else pair is not None and pair[0].tolist() == [[3.0]]
