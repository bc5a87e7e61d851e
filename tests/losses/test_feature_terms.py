"""Properties of single terms that compare features: bugs of references that are not
repeated, and refused pairs.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_app.config import RequestError
from kd_app.losses.adapters import apply_classifier
from kd_app.losses.orthogonal_projection import Orthogonal
from kd_app.losses.review import compute_hierarchical_loss
from kd_app.models.heads import Head
from kd_app.models.outputs import Outputs, Tokens
from tests.losses.samples import (
    build_term,
    descend,
    gradient,
    labels,
    leaf,
    make,
    map_tensors,
    maps,
    normal,
    pair,
    tensors,
)

ON_MAPS = [
    "variational_information",
    "neuron_selectivity",
    "softmax_regression",
    "masked_generation",
    "orthogonal_projection",
]
ON_EMBEDDINGS = ["embedding_mse", "embedding_cosine", "simple_recipe"]


@pytest.mark.parametrize("name", [*ON_MAPS, *ON_EMBEDDINGS, "class_attention", "review"])
def test_a_model_without_the_required_outputs_is_refused_with_alternatives(
    name: str,
) -> None:
    student, teacher = pair()
    for ours, theirs in ((Outputs(), teacher), (student, Outputs())):
        with pytest.raises(
            RequestError,
            match=rf"(?s){name}.*(soft_target|attention_transfer).*(decoupled|feature_hint)",
        ):
            make(name).build(ours, theirs)


@pytest.mark.parametrize("name", ["embedding_mse", "embedding_cosine"])
@pytest.mark.parametrize("always", [False, True])
def test_embeddings_of_equal_width_are_projected_only_if_configured(
    name: str, always: bool
) -> None:
    outputs = Outputs(embedding=normal(4, 6, seed=1))
    term = make(name, always_project=always)
    term.build(outputs, outputs)
    assert bool(list(term.parameters())) is always
    assert (term.double()(outputs, outputs, labels(4)).item() > 1e-9) is always


def test_the_cosine_ignores_the_length_of_the_teachers_embedding() -> None:
    ours, theirs = normal(4, 6, seed=1), normal(4, 6, seed=2)
    term = make("embedding_cosine")
    term.build(Outputs(embedding=ours), Outputs(embedding=theirs))
    plain, longer = (
        term(Outputs(embedding=ours), Outputs(embedding=x), labels(4)) for x in (theirs, 7 * theirs)
    )
    torch.testing.assert_close(plain, longer)
    torch.testing.assert_close(plain, 1 - F.cosine_similarity(ours, theirs).mean())


def test_the_variances_are_trained_and_saved() -> None:
    """mdistiller keeps the variances in a Python list: not trained, not in the state,
    always 5.
    """
    student, teacher = pair()
    term = build_term("variational_information", student, teacher)
    scales = [name for name, _ in term.named_parameters() if name.endswith("log_scale")]
    assert len(scales) == 3
    assert set(scales) <= set(term.state_dict())
    before = term.adapters[0].log_scale.detach().clone()
    torch.testing.assert_close(
        F.softplus(before) + 1e-5, torch.full_like(before, 5.0), rtol=1e-6, atol=0
    )
    descend(lambda: term(student, teacher, labels(5)), term.parameters(), steps=5, lr=0.1)
    assert (term.adapters[0].log_scale < before).all()


def test_neuron_selectivity_is_the_mean_over_pairs_of_channels() -> None:
    """RepDistiller broadcasts to B x C x C x cells numbers for this."""
    ours, theirs = normal(2, 3, 4, 4, seed=1), normal(2, 5, 4, 4, seed=2)
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (ours, theirs))

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a[:, :, None] * b[:, None]).sum(-1).square().mean()

    result = make("neuron_selectivity")(maps(ours), maps(theirs), labels(2))
    torch.testing.assert_close(result, kernel(t, t) + kernel(s, s) - 2 * kernel(s, t))


def test_neuron_selectivity_ignores_channel_order_and_refuses_single_cells() -> None:
    feature = leaf(normal(2, 4, 3, 3, seed=1))
    value = make("neuron_selectivity")(maps(feature), maps(feature.detach().flip(1)), labels(2))
    assert value.abs() < 1e-12
    assert gradient(value, feature).abs().max() < 1e-12
    single = maps(normal(2, 4, 1, 1, seed=1))
    with pytest.raises(
        RequestError, match=r"share more than one cell.*soft_target, decoupled or feature_hint"
    ):
        make("neuron_selectivity").build(single, single)


@pytest.mark.parametrize(
    ("activation", "lowest", "relu"),
    [("auto", 0.0, True), ("auto", -0.1, False), ("relu", -0.1, True), ("none", 0.0, False)],
)
def test_the_connector_ends_in_a_relu_where_the_teachers_embedding_has_no_negative_value(
    activation: str, lowest: float, relu: bool
) -> None:
    student, teacher = pair()
    assert teacher.embedding is not None
    teacher.embedding = teacher.embedding.clamp(min=lowest)
    term = build_term("softmax_regression", student, teacher, activation=activation)
    assert bool((term.adapter(student.features[-1]) >= 0).all()) is relu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_classifier_of_any_precision_answers_in_that_of_the_embedding(dtype: torch.dtype) -> None:
    one, other = nn.Linear(4, 3, dtype=torch.bfloat16), nn.Linear(2, 3, dtype=torch.bfloat16)
    embedding = normal(5, 6, seed=1, dtype=dtype)
    expected = (
        sum(
            F.linear(x, c.weight.to(dtype), c.bias.to(dtype))
            for c, x in zip((one, other), embedding.split([4, 2], 1), strict=True)
        )
        / 2
    )
    result = apply_classifier(Head((one, other), (4, 2), convolutional=False), embedding)
    assert result.dtype == dtype
    torch.testing.assert_close(result, expected)


def test_the_configured_share_of_channels_is_masked_anew_in_every_step() -> None:
    student, teacher = pair(images=50)
    term = build_term("masked_generation", student, teacher, masked=0.4)
    now, later = labels(50), labels(50)
    later.progress = 0.5
    hidden = (term.draw(now, 200) < 0.4).double()
    assert abs(hidden.mean().item() - 0.4) < 0.02
    assert term(student, teacher, now) != term(student, teacher, later)
    plain = build_term("masked_generation", student, teacher, masked=0.0)
    assert torch.equal(plain(student, teacher, now), plain(student, teacher, later))


def test_the_class_maps_add_up_to_the_logits_without_the_bias() -> None:
    feature, head = normal(2, 4, 3, 3, seed=1), nn.Linear(4, 5).double()
    outputs = Outputs(features=[feature], embedding=feature.mean((2, 3)), classifier=head)
    still = Outputs(features=[0 * feature], embedding=0 * feature.mean((2, 3)), classifier=head)
    result = make("class_attention", resolution=1, normalize=False)(outputs, still, labels(2))
    torch.testing.assert_close(result, F.linear(feature.mean((2, 3)), head.weight).square().mean())


def test_class_maps_of_other_classes_are_refused_with_terms_that_read_none() -> None:
    student, teacher = pair()
    teacher.classifier = nn.Linear(48, 9).double()
    with pytest.raises(
        RequestError,
        match=r"6 classes, and the teacher 9.*attention_transfer, feature_hint, embedding_mse",
    ):
        make("class_attention").build(student, teacher)


def test_simple_recipe_is_finite_where_the_reference_is_minus_infinity() -> None:
    """The sum is 0 if the student equals the teacher."""
    student = Outputs(embedding=leaf(normal(4, 3, seed=1)))
    teacher = map_tensors(student, torch.Tensor.detach)
    term = make("simple_recipe")
    term.build(student, teacher)
    term.double().embed.load_state_dict({"weight": torch.eye(3), "bias": torch.zeros(3)})
    value = term(student, teacher, labels(4))
    assert value.isfinite()
    assert student.embedding is not None
    assert gradient(value, student.embedding).isfinite().all()


@pytest.mark.parametrize("sizes", [(3, 7), (7, 3), (4, 4)])
def test_the_projection_stays_orthogonal_whatever_its_weight_becomes(
    sizes: tuple[int, int],
) -> None:
    ours, theirs = sizes
    adapter = Orthogonal(ours, theirs).double()
    torch.testing.assert_close(adapter.matrix, adapter.weight.detach(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        adapter.weight.add_(normal(theirs, ours, seed=1))
    v = adapter.matrix
    product = v.T @ v if theirs >= ours else v @ v.T
    torch.testing.assert_close(product, torch.eye(min(sizes), dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("variational_information", {"variance": 0.0}),
        ("variational_information", {"stages": 0}),
        ("neuron_selectivity", {"stages": 0}),
        ("softmax_regression", {"regression": -1.0}),
        ("softmax_regression", {"activation": "gelu"}),
        ("masked_generation", {"masked": 1.0}),
        ("class_attention", {"resolution": 0}),
        ("simple_recipe", {"exponent": 0.0}),
        ("vit_features", {"masked": 0.0}),
        ("vit_features", {"layers": 0}),
        ("token_patch_feature", {"patch": -1.0}),
        ("orthogonal_projection", {"beta": 0.0}),
        ("embedding_mse", {"always_project": "perhaps"}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        make(name, **wrong)


@pytest.mark.parametrize(
    ("side", "sizes"), [(9, [9, 4, 2, 1]), (4, [4, 2, 1]), (3, [3, 2, 1]), (1, [1])]
)
def test_maps_are_reviewed_at_the_sizes_they_exceed_and_each_weighs_half_of_the_one_before(
    side: int, sizes: list[int]
) -> None:
    ours, theirs = normal(2, 3, side, side, seed=1), normal(2, 3, side, side, seed=2)
    squares = [
        (F.adaptive_avg_pool2d(ours, n) - F.adaptive_avg_pool2d(theirs, n)).square().mean()
        for n in sizes
    ]
    expected = sum(square * 0.5**k for k, square in enumerate(squares)) / sum(
        0.5**k for k in range(len(sizes))
    )
    torch.testing.assert_close(compute_hierarchical_loss(ours, theirs), torch.as_tensor(expected))


def test_the_configured_width_of_the_review_is_used() -> None:
    """mdistiller reads MAX_MID_CHANNEL and does not use it."""
    student, teacher = pair()
    assert [
        build_term("review", student, teacher, width=width).adapters[0].conv1[0].out_channels
        for width in (8, 512)
    ] == [8, 32]


@pytest.mark.parametrize("shapes", [((6, 4), (3, 8)), ((2, 3), (5, 4)), ((4, 4), (4, 4))])
def test_maps_that_are_not_square_and_of_any_size_are_reviewed(
    shapes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    """The reference knows square maps only."""
    ours, theirs = shapes
    student = Outputs(features=[leaf(normal(2, 4, *ours, seed=1))], embedding=normal(2, 8, seed=2))
    teacher = Outputs(features=[normal(2, 6, *theirs, seed=3)], embedding=normal(2, 12, seed=4))
    value = build_token_patch_feature(student, teacher)(student, teacher, labels(2))
    assert gradient(value, student.features[0]).any()


def test_other_or_missing_tokens_are_refused_with_alternatives() -> None:
    student, teacher = pair()
    others = [Tokens(normal(5, count, 48, seed=1), normal(5, 1, 48, seed=2)) for count in (9, 12)]
    for ours, theirs in (
        (student, Outputs()),
        (Outputs(), teacher),
        *((student, Outputs(tokens=[tokens])) for tokens in others),
    ):
        with pytest.raises(
            RequestError,
            match=r"vit_features compares.*soft_target, feature_hint, masked_generation",
        ):
            make("vit_features").build(ours, theirs)
    oblong = Outputs(tokens=[others[1]])
    with pytest.raises(RequestError, match=r"square grid, but the student has 12 patches"):
        make("vit_features").build(oblong, oblong)


def test_only_the_hidden_deep_tokens_of_the_teacher_count() -> None:
    student, teacher = pair()
    term = build_term("vit_features", student, teacher, shallow=0.0, masked=0.25)
    hidden = term.draw(labels(5), 16).argsort(1).argsort(1) >= 12
    assert hidden.sum(1).tolist() == [4] * 5
    last = teacher.tokens[-1]
    moved = [last.patch + mask[..., None] for mask in (hidden, ~hidden)]
    before, *after = (
        term(student, Outputs(tokens=[*teacher.tokens[:-1], Tokens(x, last.prefix)]), labels(5))
        for x in (last.patch, *moved)
    )
    assert [bool(value == before) for value in after] == [False, True]


@pytest.mark.parametrize("chosen", ["token", "patch", "feature"])
def test_class_token_patches_and_embedding_are_weighed_apart(chosen: str) -> None:
    student, teacher = pair()
    term = build_term(
        "token_patch_feature",
        student,
        teacher,
        **{name: 2.0 * (name == chosen) for name in ("token", "patch", "feature")},
    )
    ours, theirs = (
        (o.tokens[-1].prefix[:, 0], o.tokens[-1].patch, *tensors(o, frozenset({"embedding"})))
        for o in (student, teacher)
    )
    at = ("token", "patch", "feature").index(chosen)
    expected = 2 * F.mse_loss(term.adapters[at](tuple(ours)[at]), tuple(theirs)[at])
    torch.testing.assert_close(term(student, teacher, labels(5)), expected)


def test_other_patch_counts_and_missing_class_tokens_are_refused() -> None:
    student, teacher = pair()
    last = student.tokens[-1]
    bare, fewer = (
        Outputs(tokens=[tokens], embedding=student.embedding)
        for tokens in (Tokens(last.patch, last.prefix[:, :0]), last)
    )
    fewer.tokens = [Tokens(last.patch[:, :9], last.prefix)]
    for ours in (Outputs(), bare, fewer):
        with pytest.raises(
            RequestError,
            match=r"token_patch_feature compares.*embedding_mse, embedding_cosine, feature_hint",
        ):
            make("token_patch_feature").build(ours, teacher)


def build_token_patch_feature(student: Outputs, teacher: Outputs) -> Any:
    term = make("review")
    term.build(student, teacher)
    return term.double()
