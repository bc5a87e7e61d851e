"""Loss terms, weighted and summed, and a look at each in the first steps."""

from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kd_app.config import RequestError, RunError
from kd_app.data.batch import Batch
from kd_app.losses.base import Level, LossTerm
from kd_app.losses.cross_entropy import CrossEntropy
from kd_app.losses.soft_target import SoftTarget
from kd_app.models.outputs import Outputs
from kd_app.training.terms import WeightedTerms

WEIGHTS = st.floats(0, 100)


class Labels(LossTerm):
    """``factor`` times the mean logit; needs no teacher."""

    level: ClassVar[Level] = "label"
    needs_teacher: ClassVar[bool] = False

    def __init__(self, *, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.logits is not None
        return self.factor * student.logits.mean()


class Distance(LossTerm):
    """``factor`` times the mean squared distance of the logits."""

    level: ClassVar[Level] = "output"

    def __init__(self, *, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.logits is not None
        assert teacher.logits is not None
        return self.factor * F.mse_loss(student.logits, teacher.logits)


class Cut(Distance):
    """A term whose author forgot that ``detach`` ends the graph."""

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return super().forward(student, teacher, batch).detach()


class Adapted(LossTerm):
    """Compares adapted embeddings; `reaches` says whether the student gets a gradient,
    or the adapter alone.
    """

    level: ClassVar[Level] = "feature"
    reads: frozenset[str] = frozenset({"embedding"})

    def __init__(self, *, reaches: bool) -> None:
        super().__init__()
        self.reaches = reaches
        self.adapter: nn.Module = nn.Identity()

    @property
    def attention_blocks(self) -> int:
        return 3

    def build(self, student: Outputs, teacher: Outputs) -> None:
        assert student.embedding is not None
        assert teacher.embedding is not None
        self.adapter = nn.Linear(student.embedding.shape[1], teacher.embedding.shape[1])

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.embedding is not None
        assert teacher.embedding is not None
        return F.mse_loss(
            self.adapter(student.embedding if self.reaches else student.embedding.detach()),
            teacher.embedding,
        )


class Flat(Distance):
    """Joined to the graph, but its gradient is zero everywhere."""

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert student.logits is not None
        return 1 + 0 * student.logits.sum()


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(size: int = 6) -> Batch:
    return Batch(seeded(size, 4), torch.arange(size) % 3, torch.arange(size))


def student() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def answers(model: nn.Linear, images: Batch) -> tuple[Outputs, Outputs]:
    """The student's outputs with a graph, the teacher's without."""
    own = Outputs(logits=model(images.image), embedding=torch.tanh(model(images.image)))
    return own, Outputs(
        logits=seeded(len(images), 3, seed=1), embedding=seeded(len(images), 5, seed=2)
    )


def checked(terms: WeightedTerms, model: nn.Linear | None = None, *, agree: bool = False) -> Tensor:
    """One step's loss after the check."""
    model, images = model or student(), batch()
    own, teacher = answers(model, images)
    if agree:
        assert own.logits is not None
        teacher.logits = own.logits.detach()
    terms.build(own, teacher)
    total, values = terms(own, teacher, images)
    terms.check(values, model, images)
    assert isinstance(total, Tensor)
    return total


# -- the sum
# -----------------------------------------------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(WEIGHTS, st.floats(-10, 10)), min_size=1)
)
def test_the_loss_is_the_sum_of_weight_times_term_and_each_term_has_its_name(
    chosen: dict[str, tuple[float, float]],
) -> None:
    terms = WeightedTerms(
        {name: Labels(factor=factor) for name, (_, factor) in chosen.items()},
        {name: weight for name, (weight, _) in chosen.items()},
    )
    logits = seeded(6, 3).double()
    total, values = terms(Outputs(logits=logits), Outputs(), batch())
    mean = logits.mean().item()
    assert list(values) == list(chosen)
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {name: factor * mean for name, (_, factor) in chosen.items()}
    )
    assert total.item() == pytest.approx(
        sum(weight * factor * mean for weight, factor in chosen.values()), abs=1e-9
    )


def test_hintons_loss_is_what_the_paper_says() -> None:
    terms = WeightedTerms(
        {
            "cross_entropy": CrossEntropy(smoothing=0.0, class_weights=None),
            "soft_target": SoftTarget(temperature=4.0, standardize=False),
        },
        {"cross_entropy": 0.1, "soft_target": 0.9},
    )
    model, images = student(), batch()
    own, teacher = answers(model, images)
    assert own.logits is not None
    assert teacher.logits is not None
    p, q = (torch.softmax(logits / 4, dim=1) for logits in (teacher.logits, own.logits))
    labels = -torch.log_softmax(own.logits, dim=1)[torch.arange(6), images.target].mean()
    expected = 0.1 * labels + 0.9 * 16 * (p * (p.log() - q.log())).sum(dim=1).mean()
    torch.testing.assert_close(terms(own, teacher, images)[0], expected)


def test_at_least_one_term_is_needed() -> None:
    with pytest.raises(RequestError, match="loss="):
        WeightedTerms({}, {})


def test_the_models_are_read_only_for_what_the_terms_read() -> None:
    labels, distance, adapted = Labels(factor=1.0), Distance(factor=1.0), Adapted(reaches=True)
    supervised = WeightedTerms({"labels": labels}, {"labels": 1.0})
    assert (set(supervised.reads), set(supervised.teacher_reads)) == ({"logits"}, set())
    assert (supervised.needs_teacher, supervised.attention_blocks) == (False, 1)
    both = WeightedTerms({"labels": labels, "adapted": adapted}, {"labels": 1.0, "adapted": 1.0})
    assert (set(both.reads), set(both.teacher_reads)) == ({"logits", "embedding"}, {"embedding"})
    assert (both.needs_teacher, both.attention_blocks) == (True, 3)
    assert WeightedTerms({"distance": distance}, {"distance": 1.0}).teacher_reads == {"logits"}


def test_adapters_are_trained_and_saved_with_the_terms() -> None:
    terms = WeightedTerms({"adapted": Adapted(reaches=True)}, {"adapted": 1.0})
    assert list(terms.parameters()) == []
    checked(terms).backward()
    assert list(terms.state_dict()) == [
        "terms.adapted.adapter.weight",
        "terms.adapted.adapter.bias",
    ]
    assert all(
        parameter.grad is not None and bool(parameter.grad.any())
        for parameter in terms.parameters()
    )


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_answers_are_compared_in_full_precision(kind: torch.dtype) -> None:
    """Fault 11 of other toolkits: gradients that are not finite at a low temperature or
    in half precision.
    """
    logits = (30 * seeded(6, 3)).to(kind).requires_grad_()
    terms = WeightedTerms(
        {"soft_target": SoftTarget(temperature=0.05, standardize=False)}, {"soft_target": 1.0}
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, values = terms(
            Outputs(logits=logits), Outputs(logits=(30 * seeded(6, 3, seed=1)).to(kind)), batch()
        )
    total.backward()
    assert total.dtype == values["soft_target"].dtype == torch.float32
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert bool(logits.grad.any())


def test_under_autocast_no_adapter_computes_in_half_precision() -> None:
    terms = WeightedTerms({"adapted": Adapted(reaches=True)}, {"adapted": 1.0})
    model, images = student(), batch()
    own, teacher = answers(model, images)
    terms.build(own, teacher)
    plain = terms(own, teacher, images)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(terms(own, teacher, images)[0], plain)


def test_double_precision_stays() -> None:
    terms = WeightedTerms({"distance": Distance(factor=1.0)}, {"distance": 1.0})
    assert (
        terms(
            Outputs(logits=seeded(6, 3).double()), Outputs(logits=seeded(6, 3).double()), batch()
        )[0].dtype
        == torch.float64
    )


# -- the check
# ---------------------------------------------------------------------------------------------------------------------------------------


def test_terms_that_teach_pass_and_the_graph_is_still_there() -> None:
    model = student()
    terms = WeightedTerms(
        {
            "labels": Labels(factor=1.0),
            "distance": Distance(factor=1.0),
            "adapted": Adapted(reaches=True),
        },
        {"labels": 1.0, "distance": 1.0, "adapted": 1.0},
    )
    total = checked(terms, model)
    assert model.weight.grad is None
    total.backward()
    assert model.weight.grad is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("term", [Labels, Distance])
def test_a_term_that_is_not_finite_ends_the_run_by_name(
    term: type[Labels | Distance], value: float
) -> None:
    terms = WeightedTerms(
        {"fine": Distance(factor=1.0), "broken": term(factor=value)}, {"fine": 1.0, "broken": 1.0}
    )
    with pytest.raises(RunError, match=r"The loss term broken is -?(nan|inf)"):
        checked(terms)


def test_a_distillation_term_that_is_exactly_zero_ends_the_run_by_name() -> None:
    with pytest.raises(RunError, match="soft_target is exactly zero"):
        checked(
            WeightedTerms(
                {"soft_target": SoftTarget(temperature=1.0, standardize=False)},
                {"soft_target": 1.0},
            ),
            agree=True,
        )


def test_a_label_term_may_be_zero() -> None:
    checked(
        WeightedTerms(
            {"labels": Labels(factor=0.0), "distance": Distance(factor=1.0)},
            {"labels": 1.0, "distance": 1.0},
        )
    )


@pytest.mark.parametrize(
    "term",
    [Cut(factor=1.0), Adapted(reaches=False), Flat(factor=1.0)],
    ids=["cut", "adapter alone", "flat"],
)
def test_a_distillation_term_without_gradient_for_the_student_ends_the_run_by_name(
    term: LossTerm,
) -> None:
    with pytest.raises(RunError, match="The loss term idle gives the student no gradient"):
        checked(
            WeightedTerms(
                {"distance": Distance(factor=1.0), "idle": term}, {"distance": 1.0, "idle": 1.0}
            )
        )


def test_a_term_of_weight_zero_is_only_watched() -> None:
    checked(
        WeightedTerms(
            {"distance": Distance(factor=1.0), "watched": Cut(factor=1.0)},
            {"distance": 1.0, "watched": 0.0},
        )
    )


def test_a_frozen_part_of_the_student_is_no_missing_gradient() -> None:
    model = student()
    model.weight.requires_grad_(False)
    checked(WeightedTerms({"distance": Distance(factor=1.0)}, {"distance": 1.0}), model)
