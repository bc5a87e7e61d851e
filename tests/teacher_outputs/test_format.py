"""Formats of cached outputs: bytes, what they lose, and what they can't serve."""

import pytest
import torch
from torch import Tensor

from kd_app.models.outputs import Outputs
from kd_app.teacher_outputs.format import (
    FORMATS,
    MAX_LOST_SHARE,
    CacheFormat,
    EmbeddingFormat,
    ExactFormat,
    Float16Format,
    Int8Format,
    TermNeed,
    TopTenFormat,
    explain_width,
    list_temperatures,
    measure_lost_share,
)

CLASSES, WIDTH = 1000, 64
LOGITS = frozenset({"logits"})


def logits(rows: int = 200, classes: int = CLASSES) -> Tensor:
    """As of a classifier: a few classes stand out, and their lead varies by image."""
    random = torch.Generator().manual_seed(0)
    z = torch.randn(rows, classes, generator=random)
    lead = torch.rand(rows, 1, generator=random) * 8 + 6
    similar = torch.linspace(1, 0.2, 6).expand(rows, -1)
    classes_of_image = torch.rand(rows, classes, generator=random).argsort(dim=1)[:, :6]
    return z.scatter_add(1, classes_of_image, lead * similar)


def outputs() -> tuple[Outputs, Tensor]:
    """The outputs of a linear classifier, and its weight."""
    random = torch.Generator().manual_seed(1)
    embedding = torch.randn(200, WIDTH, generator=random).relu()
    weight = torch.randn(CLASSES, WIDTH, generator=random)
    return Outputs(logits=embedding @ weight.T, embedding=embedding), weight


def replay(format: CacheFormat, exact: Tensor) -> Tensor:
    replayed = format.decode(format.encode(Outputs(logits=exact))).logits
    assert replayed is not None
    return replayed


@pytest.mark.parametrize(
    ("format", "bytes_per_view"),
    [
        (ExactFormat(CLASSES), 4000),
        (Int8Format(CLASSES), 1008),
        (Float16Format(CLASSES), 2004),
        (TopTenFormat(CLASSES), 44),
        (EmbeddingFormat(WIDTH), 132),
    ],
)
def test_a_row_has_the_stated_bytes(format: CacheFormat, bytes_per_view: int) -> None:
    rows = format.encode(outputs()[0])
    assert (rows.dtype, rows.shape) == (torch.uint8, (200, bytes_per_view))
    assert format.bytes_per_view == bytes_per_view


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("width", [37, 38, 39, 40])
def test_a_single_row_is_read_like_many(name: str, width: int) -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(3, width, generator=random)
    format = FORMATS[name](width)
    rows = format.encode(Outputs(logits=values, embedding=values))
    whole = format.read_values(format.decode(rows))
    one = format.read_values(format.decode(rows[1:2].clone()))
    assert torch.equal(one, whole[1:2])


def test_a_class_number_of_somebody_else_is_none_that_the_teacher_lacks() -> None:
    rows = torch.randint(0, 255, (5, 44), dtype=torch.uint8)
    assert replayed_shape(rows) == (5, 50)


def replayed_shape(rows: Tensor) -> tuple[int, ...]:
    decoded = TopTenFormat(50).decode(rows).logits
    assert decoded is not None
    return tuple(decoded.shape)


def test_exact_logits_are_returned_bit_for_bit() -> None:
    exact = torch.cat((logits(), torch.tensor([[1e-40, 3e38, -0.0, -1e30]]).repeat(1, 250)))
    assert torch.equal(replay(ExactFormat(CLASSES), exact), exact)


def test_float16_keeps_the_direction_of_an_embedding_and_each_value() -> None:
    embedding = outputs()[0].embedding
    assert embedding is not None
    # after a ReLU, standardized, and of far other scales
    for exact in (embedding, embedding - embedding.mean(dim=1, keepdim=True), 1e6 * embedding):
        replayed = replay(Float16Format(WIDTH), exact)
        largest = exact.abs().amax(dim=1, keepdim=True)
        assert ((replayed - exact).abs() <= 1.001 * largest / 4096).all()
        assert torch.cosine_similarity(replayed, exact).min() > 1 - 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 20.0])
def test_int8_loses_little_at_any_temperature(temperature: float) -> None:
    exact = logits()
    replayed = replay(Int8Format(CLASSES), exact)
    assert measure_lost_share(exact, replayed, temperature) < 0.002 < MAX_LOST_SHARE
    step = (exact.amax(dim=1) - exact.amin(dim=1)) / 255
    assert ((replayed - exact).abs().amax(dim=1) <= 0.501 * step).all()


def test_int8_keeps_equal_logits_and_the_largest_class() -> None:
    equal = torch.full((2, CLASSES), -7.5)
    assert torch.equal(replay(Int8Format(CLASSES), equal), equal)
    exact = logits()
    assert torch.equal(replay(Int8Format(CLASSES), exact).argmax(dim=1), exact.argmax(dim=1))


def test_top10_loses_little_at_temperature_1_and_much_above() -> None:
    exact = logits()
    replayed = replay(TopTenFormat(CLASSES), exact)
    shares = [measure_lost_share(exact, replayed, t) for t in (1.0, 2.0, 4.0)]
    assert shares[0] < MAX_LOST_SHARE < shares[1] < shares[2]
    # the mass of all others is kept
    assert torch.allclose(replayed.softmax(dim=1).sum(dim=1), torch.ones(200))
    kept = exact.softmax(dim=1).topk(10).values
    assert torch.allclose(replayed.softmax(dim=1).topk(10).values, kept, atol=5e-4)


def test_top10_numbers_65536_classes_and_survives_a_certain_teacher() -> None:
    exact = torch.zeros(1, 2**16)
    exact[0, -1] = 200.0
    replayed = replay(TopTenFormat(2**16), exact)
    assert replayed.isfinite().all()
    assert int(replayed.argmax()) == 2**16 - 1


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_classifier_makes_the_logits_of_a_cached_embedding(temperature: float) -> None:
    exact, weight = outputs()
    assert exact.logits is not None
    decoded = EmbeddingFormat(WIDTH).decode(EmbeddingFormat(WIDTH).encode(exact))
    assert decoded.logits is None
    assert decoded.embedding is not None
    assert measure_lost_share(exact.logits, decoded.embedding @ weight.T, temperature) < 1e-4


def test_an_embedding_beyond_the_range_of_float16_is_kept() -> None:
    large = Outputs(embedding=torch.tensor([[1e6, -1.0, 0.0, 5e5], [0.0, 0.0, 0.0, 0.0]]))
    decoded = EmbeddingFormat(4).decode(EmbeddingFormat(4).encode(large)).embedding
    assert decoded is not None
    assert large.embedding is not None
    assert torch.allclose(decoded, large.embedding, rtol=1e-3, atol=0.1)


def test_the_lost_share_is_0_for_the_same_and_1_for_uniform_probabilities() -> None:
    exact = logits()
    assert measure_lost_share(exact, exact + 3, 2.0) == pytest.approx(0, abs=1e-9)
    assert measure_lost_share(exact, torch.zeros_like(exact), 2.0) == pytest.approx(1)


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_outputs_are_within_the_tolerance_and_others_are_not(name: str) -> None:
    exact, _ = outputs()
    format = FORMATS[name](WIDTH if name == "embedding" else CLASSES)
    rows = format.encode(exact)
    assert exact.logits is not None
    assert exact.embedding is not None
    noisy = Outputs(logits=exact.logits + 1e-4, embedding=exact.embedding * (1 + 1e-4))
    assert format.measure_distance(rows, noisy) <= format.tolerance
    other = Outputs(logits=exact.logits.roll(1, 0), embedding=exact.embedding.roll(1, 0))
    assert format.measure_distance(rows, other) > 5 * format.tolerance


@pytest.mark.parametrize("name", ["exact", "int8"])
def test_rounding_errors_of_almost_equal_logits_are_tolerated(name: str) -> None:
    logits = torch.full((4, CLASSES), 30.0)
    logits[:, 0] += 1e-4
    format = FORMATS[name](CLASSES)
    rows = format.encode(Outputs(logits=logits))
    assert format.measure_distance(rows, Outputs(logits=logits * (1 + 1e-6))) < format.tolerance


@pytest.mark.parametrize(
    ("name", "need", "reason"),
    [
        ("exact", TermNeed("student", "nkd", LOGITS, None), ""),
        ("int8", TermNeed("student", "nkd", LOGITS, None), ""),
        ("top10", TermNeed("student", "soft_target", LOGITS, 1.0), ""),
        ("top10", TermNeed("student", "soft_target", LOGITS, 4.0), "at temperature 4"),
        ("top10", TermNeed("student", "ctkd", LOGITS, None), "reads the logits themselves"),
        ("exact", TermNeed("student", "rkd", frozenset({"embedding"}), None), "reads embedding"),
        ("embedding", TermNeed("student", "rkd", frozenset({"embedding"}), None), ""),
        ("embedding", TermNeed("student", "sp", frozenset({"features"}), None), "reads features"),
        ("int8", TermNeed("student", "dist", LOGITS, 1.0, member="a"), "the member a"),
    ],
)
def test_a_format_refuses_a_term_with_the_reason(name: str, need: TermNeed, reason: str) -> None:
    refusal = FORMATS[name].explain_refusal(need)
    assert (reason in refusal) if reason else refusal == ""


def test_top10_is_void_for_few_and_for_too_many_classes() -> None:
    assert "int8 stores all 36 classes in 44" in explain_width("top10", 36)
    assert explain_width("top10", 37) == explain_width("top10", 2**16) == ""
    assert "65,536 classes" in explain_width("top10", 2**16 + 1)
    assert explain_width("int8", 3) == ""


def test_terms_that_name_no_temperature_are_measured_at_1() -> None:
    needs = [
        TermNeed("student", "a", LOGITS, 4.0),
        TermNeed("student", "b", LOGITS, None),
        TermNeed("student", "c", LOGITS, None, softened=2.0),
    ]
    assert list_temperatures(needs) == [1.0, 2.0, 4.0]
