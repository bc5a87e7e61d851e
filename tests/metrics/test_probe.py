"""The linear probe against the normal equations in float64."""

import numpy as np

from kd_app.metrics.probe import LinearProbe, measure_probe

RANDOM = np.random.default_rng(2)


def _draw(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes in six dimensions, with noise."""
    labels = RANDOM.integers(0, 3, size=images)
    centers = np.eye(6)[:3] * 2
    return (centers[labels] + RANDOM.normal(size=(images, 6))).astype(np.float32), labels


def test_the_probe_is_the_ridge_regression_of_the_labels() -> None:
    embeddings, labels = _draw(80)
    x = embeddings.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.eye(3)[labels]
    x0, y0 = x - x.mean(axis=0), y - y.mean(axis=0)
    gram = x0.T @ x0 / len(x)
    ridge = 0.1 * np.trace(gram) / len(gram)
    weights = np.linalg.solve(gram + ridge * np.eye(len(gram)), x0.T @ y0 / len(x))
    expected = (x0 @ weights + y.mean(axis=0)).argmax(axis=1)
    assert np.array_equal(LinearProbe(embeddings, labels, 3).predict(embeddings, 0.1), expected)


def test_the_strength_is_the_best_on_validation() -> None:
    train, validation, queries = _draw(60), _draw(60), _draw(40)
    probe = LinearProbe(*train, 3)
    strengths = (1e-4, 1.0, 100.0)
    accuracies = [
        (probe.predict(validation[0], each) == validation[1]).mean() for each in strengths
    ]
    best = max(zip(accuracies, strengths, strict=True))[1]
    expected = probe.predict(queries[0], best) == queries[1]
    assert np.array_equal(measure_probe(train, validation, queries, 3, strengths), expected)


def test_the_probe_learns_classes_that_a_line_divides() -> None:
    hits = measure_probe(_draw(300), _draw(100), _draw(200), 3)
    assert hits.mean() > 0.75
