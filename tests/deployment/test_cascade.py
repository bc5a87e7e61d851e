"""A cascade has the predictions of its stages, and the choice keeps the margin."""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from kd_app.config import Decoding
from kd_app.deployment.cascade import ModelCascade
from kd_app.deployment.cascade_choice import Routing, choose_cascade, combine_predictions
from kd_app.deployment.confidence import (
    MEASURES,
    compute_confidence,
    compute_log_probabilities,
    fit_temperature,
)
from kd_app.deployment.routing import RoutingChoice, choose_threshold, compute_routing_curve
from kd_app.metrics.record import Predictions
from kd_app.metrics.verdict import VerdictRule

COSTS = (1.0, 10.0)


class Table:
    """A stage that looks up its logits by the first pixel of an image."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self.table = logits

    def infer_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(self.table[images[:, 0, 0, 0]])

    def prepare_image(
        self, image: Image.Image, decoding: Decoding | None = None
    ) -> NDArray[np.uint8]:
        return np.asarray(image)[None]


def draw_logits(
    seed: int, stages: int, n: int = 40
) -> tuple[list[NDArray[np.float32]], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, 5)).astype(np.float32) * 3 for _ in range(stages)], rng.integers(
        0, 5, n
    )


@given(st.integers(0, 10**6), st.sampled_from(sorted(MEASURES)), st.integers(2, 3))
@settings(max_examples=30)
def test_the_curve_starts_with_the_teacher_and_ends_with_the_student(
    seed: int, measure: str, stages: int
) -> None:
    logits, target = draw_logits(seed, stages)
    curve = compute_routing_curve(
        logits,
        target,
        range(1, stages + 1),
        measure=measure,
        temperatures=[2.0] * stages,
        num_steps=10,
    )
    assert curve[0].accuracy == (logits[-1].argmax(1) == target).mean()
    assert (curve[0].better, curve[0].worse) == (0, 0)
    assert curve[-1].accuracy == (logits[0].argmax(1) == target).mean()
    assert curve[-1].cost == 1
    for above, below in itertools.pairwise(curve):
        assert all(a >= b for a, b in zip(above.shares, below.shares, strict=True))


@given(st.integers(0, 10**6), st.sampled_from(sorted(MEASURES)), st.integers(2, 3))
@settings(max_examples=30)
def test_a_batch_has_the_predictions_of_its_single_images(
    seed: int, measure: str, stages: int
) -> None:
    logits, target = draw_logits(seed, stages)
    temperature = (1.5,) * stages
    rung = compute_routing_curve(
        logits, target, [1.0] * stages, measure=measure, temperatures=temperature, num_steps=2
    )[1]
    cascade = ModelCascade([Table(each) for each in logits], rung.thresholds, measure, temperature)
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    label, probability, stage = cascade.predict(images)
    for i in range(40):
        at = 0
        while (
            at < stages - 1
            and compute_confidence(logits[at][i : i + 1], measure, 1.5)[0] < rung.thresholds[at]
        ):
            at += 1
        assert (label[i], stage[i]) == (logits[at][i].argmax(), at)
        assert probability[i] == pytest.approx(
            np.exp(compute_log_probabilities(logits[at][i], 1.5)).max()
        )
    assert (label == target).mean() == rung.accuracy
    again = cascade.predict([Image.fromarray(image[0]) for image in images])
    assert all(
        (first == second).all()
        for first, second in zip((label, probability, stage), again, strict=True)
    )


def test_the_fitted_temperature_is_that_of_the_label_distribution() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(20000, 4)) * 2
    target = (true + rng.gumbel(size=true.shape)).argmax(1)
    assert fit_temperature(true * 3, target) == pytest.approx(3, rel=0.05)


def test_a_saved_cascade_loads_and_rejects_changed_files(tmp_path: Path) -> None:
    files = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for file in files:
        file.write_bytes(file.name.encode())
    stage = Table(np.zeros((1, 2), np.float32))
    ModelCascade([stage, stage], (0.7,), "maximum", (1.0, 2.0)).save(
        tmp_path / "cascade.json", files
    )
    loaded = ModelCascade.load(tmp_path / "cascade.json", lambda _: stage)
    assert (loaded.thresholds, loaded.measure, loaded.temperatures) == (
        (0.7,),
        "maximum",
        (1.0, 2.0),
    )
    files[1].write_bytes(b"another")
    with pytest.raises(ValueError, match="chosen for"):
        ModelCascade.load(tmp_path / "cascade.json", lambda _: stage)
    files[1].unlink()
    with pytest.raises(ValueError, match="Restore the file"):
        ModelCascade.load(tmp_path / "cascade.json", lambda _: stage)


def test_stages_with_another_order_of_classes_are_rejected(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    stages = [Table(np.zeros((1, 2), np.float32)) for _ in files]
    for file, stage, classes in zip(files, stages, (("cat", "dog"), ("dog", "cat")), strict=True):
        file.write_bytes(b"x")
        stage.classes = classes  # type: ignore[attr-defined]
    ModelCascade(stages, (0.5,), "maximum", (1.0, 1.0)).save(tmp_path / "cascade.json", files)
    with pytest.raises(ValueError, match="the same classes in the same order"):
        ModelCascade.load(tmp_path / "cascade.json", lambda file: stages[files.index(file)])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"stages": []}',
        '{"stages": [], "thresholds": [], "temperatures": [], "measure": "luck"}',
    ],
)
def test_an_invalid_cascade_file_is_rejected(content: str, tmp_path: Path) -> None:
    (tmp_path / "cascade.json").write_text(content, encoding="utf-8")
    with pytest.raises(
        ValueError,
        match=r"cascade.json' can't be read: .* Expected a cascade.json from kd-evaluate",
    ):
        ModelCascade.load(tmp_path / "cascade.json", lambda _: Table(np.zeros((1, 2), np.float32)))


def choose(
    rng: np.random.Generator, n: int, wrong: float, costs: tuple[float, float] = COSTS
) -> tuple[RoutingChoice, float]:
    """Choose a threshold on n images; return the choice and its true loss.

    The student errs with rate ``wrong (1 - u)``, where u is the rank of the confidence.
    """
    u = rng.random(n)
    errs = rng.random(n) < wrong * (1 - u)
    student = np.stack([0.01 + u, np.zeros(n)], 1)
    target = errs.astype(np.int64)
    teacher = np.eye(2)[target]
    curve = compute_routing_curve(
        [student, teacher], target, costs, measure="maximum", temperatures=(1.0, 1.0), num_steps=20
    )
    choice = choose_threshold(curve, costs, num_images=n, margin=0.05, confidence_level=0.95)
    p = min(choice.rung.thresholds[0], 1.0)
    at = (
        0.0 if p == -np.inf else 1.0 if p >= 1 else float(np.clip(np.log(p / (1 - p)) - 0.01, 0, 1))
    )
    return choice, wrong * (1 - at) ** 2 / 2


def test_the_margin_is_exceeded_in_at_most_one_of_twenty_draws() -> None:
    rng, draws = np.random.default_rng(1), 100
    over = sum(choose(rng, 400, 0.6)[1] > 0.05 for _ in range(draws))
    assert over / draws <= 0.05 + 2.5 * (0.05 * 0.95 / draws) ** 0.5


def test_one_model_is_chosen_if_routing_does_not_pay() -> None:
    rng = np.random.default_rng(2)
    assert choose(rng, 2000, 0.6)[0].answer == "cascade"
    assert choose(rng, 2000, 0.02)[0].answer == "first"
    expensive = choose(rng, 2000, 0.6, (9.0, 10.0))[0]
    assert (expensive.answer, expensive.cost) == ("last", 10.0)


def test_prediction_needs_numpy_only() -> None:
    code = (
        "import sys, kd_app.deployment.cascade; print(sorted({'torch', 'pydantic', 'omegaconf',"
        " 'scipy', 'jaxtyping'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_a_cascade_of_many_classes_is_chosen_and_combined_a_block_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    target = generator.integers(0, 20, 60)
    stages = [
        Predictions(
            np.arange(60),
            target,
            (skill * np.eye(20)[target] + generator.normal(size=(60, 20))).astype(np.float32),
        )
        for skill in (2, 4)
    ]
    routing = Routing(measures=["maximum", "energy"], steps=5, images=1)
    rule = VerdictRule(metric="top1", margin=0.3, confidence=0.8)
    whole = choose_cascade(routing, rule, stages, (1.0, 4.0))
    assert whole.uses_cascade
    expected, last = combine_predictions(stages, whole)

    rows: list[int] = []
    compute = compute_log_probabilities

    def count_rows(logits: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
        rows.append(len(logits))
        return compute(logits, temperature)

    for module in ("cascade", "confidence", "cascade_choice"):
        monkeypatch.setattr(f"kd_app.deployment.{module}.compute_log_probabilities", count_rows)
    monkeypatch.setattr("kd_app.metrics.blocks.VALUES", 150)
    choice = choose_cascade(routing, rule, stages, (1.0, 4.0))
    log_p, stage = combine_predictions(stages, choice, tmp_path)
    assert max(rows) == 7
    assert choice == whole
    assert isinstance(log_p, np.memmap)
    assert np.array_equal(log_p, expected)
    assert np.array_equal(stage, last)
    assert {0, 1} == set(stage.tolist())
    last_alone = replace(choice.routing, answer="last", rung=choice.routing.curve[0])
    log_p, stage = combine_predictions(stages, replace(choice, routing=last_alone))
    assert not stage.any()
    assert np.array_equal(
        log_p, compute(stages[0].logits, choice.temperatures[0]).astype(np.float32)
    )
