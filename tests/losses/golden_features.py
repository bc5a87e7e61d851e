"""The golden cases of the terms that compare features, tokens and class maps."""

from typing import Any

import torch
from torch import Tensor, nn

from kd_app.losses.review import Fusion, compute_hierarchical_loss
from kd_app.models.outputs import Outputs, Tokens
from tests.losses.golden_result import NO_LABELS, Arrays, Case, GoldenResult, own_state
from tests.losses.samples import batch, logits, make, maps


def _build_adapted(
    name: str, student: Outputs, teacher: Outputs, x: Arrays, names: dict[str, str], **settings: Any
) -> tuple[Any, dict[str, nn.Parameter]]:
    """Return the term with the adapters of the case's file. `names`: prefixes of the
    adapters in the file.
    """
    term = make(name, **settings)
    term.build(student, teacher)
    term.double()
    for ours, theirs in names.items():
        owner = term.get_submodule(ours)
        state = own_state(x, f"{theirs}.")
        owner.load_state_dict(state, strict=True)
    parameters = {
        f"{theirs}.{key}": parameter
        for ours, theirs in names.items()
        for key, parameter in term.get_submodule(ours).named_parameters()
    }
    return term, parameters


def _timm_feature(x: Arrays) -> GoldenResult:
    ours, theirs = Outputs(embedding=x["pool_s"]), Outputs(embedding=x["pool_t"].detach())
    term, parameters = _build_adapted("embedding_mse", ours, theirs, x, {"adapter": "projection"})
    label = make("cross_entropy")(logits(x["logits_s"]), Outputs(), batch(x["target"]))
    weighted = label + 5 * term(ours, theirs, NO_LABELS)
    return GoldenResult(weighted, parameters)


def _variational(x: Arrays) -> GoldenResult:
    ours, theirs = maps(x["feat_s"]), maps(x["feat_t"].detach())
    term, parameters = _build_adapted(
        "variational_information", ours, theirs, x, {"adapters.0": "vid"}
    )
    return GoldenResult(term(ours, theirs, NO_LABELS), parameters)


def _selectivity(*students: str) -> Case:
    def compare(x: Arrays) -> Tensor:
        ours, theirs = (
            maps(*(x[key] for key in students)),
            maps(*(x[key.replace("_s", "_t")] for key in students)),
        )
        value: Tensor = make("neuron_selectivity")(ours, theirs, NO_LABELS)
        return value

    return compare


def _frozen_head(x: Arrays) -> nn.Linear:
    weight = x["sd/cls_t.weight"]
    head = nn.Linear(weight.shape[1], weight.shape[0]).double().requires_grad_(False)
    head.load_state_dict(own_state(x, "cls_t."))
    return head


def _regression_on_maps(x: Arrays) -> GoldenResult:
    ours = Outputs(features=[x["feat_s"]], embedding=x["feat_s"].mean((2, 3)))
    theirs = _teacher(x, x["feat_t"], _frozen_head(x))
    term, parameters = _build_adapted(
        "softmax_regression",
        ours,
        theirs,
        x,
        {"adapter": "connector.Connectors"},
        activation="relu",
    )
    return GoldenResult(term(ours, theirs, NO_LABELS), parameters)


def _teacher(x: Arrays, feature: Tensor, classifier: Any) -> Outputs:
    feature = feature.detach()
    return Outputs(
        logits=x["logits_t"].detach(),
        features=[feature],
        embedding=feature.mean((2, 3)),
        classifier=classifier,
    )


def _regression_on_pooled(x: Arrays) -> GoldenResult:
    """One toolkit connects the pooled feature: a map of one cell."""
    ours = Outputs(features=[x["pool_s"][:, :, None, None]], embedding=x["pool_s"])
    theirs = _teacher(x, x["pool_t"][:, :, None, None], _frozen_head(x))
    term, parameters = _build_adapted(
        "softmax_regression", ours, theirs, x, {"adapter": "srrl.transfer"}, activation="relu"
    )
    return GoldenResult(term(ours, theirs, NO_LABELS), parameters)


def _regression_given_logits(x: Arrays) -> GoldenResult:
    """In the reference the classifier's logits are an input."""
    ours = Outputs(features=[x["feat_s"]], embedding=x["feat_s"].mean((2, 3)))
    theirs = _teacher(x, x["feat_t"], lambda _: x["logits_s"])
    term, parameters = _build_adapted(
        "softmax_regression",
        ours,
        theirs,
        x,
        {"adapter": "srrl.Connectors"},
        activation="relu",
        regression=5.0,
    )
    return GoldenResult(term(ours, theirs, NO_LABELS), parameters)


def _compute_masked(x: Arrays) -> GoldenResult:
    ours, theirs = maps(x["feat_s"]), maps(x["feat_t"].detach())
    term, parameters = _build_adapted(
        "masked_generation", ours, theirs, x, {"align": "mgd.align", "generation": "mgd.generation"}
    )
    term.draw = lambda batch, count: x["in/rand"].flatten(1)
    return GoldenResult(7e-5 * term(ours, theirs, NO_LABELS), parameters)


def _class_maps(normalize: bool) -> Case:
    """In the reference the class maps are inputs: the classifier of a map with one
    channel per class.
    """

    def compare(x: Arrays) -> Tensor:
        head = nn.Identity()
        ours, theirs = (
            Outputs(features=[cam], embedding=cam.mean((2, 3)), classifier=head)
            for cam in (x["cam_s"], x["cam_t"].detach())
        )
        value: Tensor = make("class_attention", resolution=2, normalize=normalize)(
            ours, theirs, NO_LABELS
        )
        return value

    return compare


def _soft(x: Arrays) -> Tensor:
    value: Tensor = make("soft_target", temperature=1.0)(
        logits(x["logits_s"]), logits(x["logits_t"].detach()), NO_LABELS
    )
    return value


def _recipe(x: Arrays) -> GoldenResult:
    ours, theirs = Outputs(embedding=x["pool_s"]), Outputs(embedding=x["pool_t"].detach())
    term, parameters = _build_adapted("simple_recipe", ours, theirs, x, {"embed": "srd.embed"})
    return GoldenResult(term(ours, theirs, NO_LABELS) + _soft(x), parameters)


def _recipe_of_normalized(x: Arrays) -> Tensor:
    """torchdistill leaves projection and norms to the caller."""
    ours, theirs = Outputs(embedding=x["pool_s"]), Outputs(embedding=x["pool_t32"].detach())
    term = make("simple_recipe")
    term.embed, term.norms = nn.Identity(), nn.ModuleList([nn.Flatten(), nn.Flatten()])
    value: Tensor = term(ours, theirs, NO_LABELS)
    return value + _soft(x)


def _orthogonal(x: Arrays) -> Tensor:
    """The reference parametrizes the same matrix differently, so its gradient is not
    compared.
    """
    tokens = x["tok_s"][:, 1:].transpose(1, 2)[..., None]
    ours, theirs = maps(tokens), maps(x["feat_t"].detach())
    term = make("orthogonal_projection")
    term.build(ours, theirs)
    term.double().adapter.load_state_dict({"weight": x["out/projector_weight"]})
    torch.testing.assert_close(
        term.adapter.matrix, x["out/projector_weight"], rtol=1e-7, atol=1e-12
    )
    value: Tensor = term(ours, theirs, NO_LABELS)
    return value + _soft(x)


def _review(x: Arrays) -> GoldenResult:
    ours = Outputs(features=[x[f"pyr_s{k}"] for k in range(3)], embedding=x["pool_s"])
    theirs = Outputs(
        features=[x[f"pyr_t_pre{k}"].detach() for k in range(3)], embedding=x["pool_t"].detach()
    )
    term, parameters = _build_adapted(
        "review", ours, theirs, x, {f"adapters.{k}": f"abfs.{k}" for k in range(4)}
    )
    return GoldenResult(term(ours, theirs, NO_LABELS), parameters)


def _fusions(x: Arrays) -> GoldenResult:
    """Two levels, and the mean of the cubes of the outputs."""
    deep, shallow = (
        Fusion(32, 16, 24, mixes=False).double(),
        Fusion(16, 16, 24, mixes=True).double(),
    )
    for name, fusion in (("abf0", deep), ("abf1", shallow)):
        fusion.load_state_dict(own_state(x, f"{name}."))
    first, residual = deep(x["pyr_s2"], None, x["pyr_s2"].shape[2:])
    second, _ = shallow(x["feat_s"], residual, x["feat_s"].shape[2:])
    value = first.pow(3).mean() + second.pow(3).mean()
    return GoldenResult(
        value,
        {
            f"{name}.{key}": p
            for name, fusion in (("abf0", deep), ("abf1", shallow))
            for key, p in fusion.named_parameters()
        },
    )


def _hierarchical(x: Arrays) -> Tensor:
    return compute_hierarchical_loss(x["feat_s"], x["feat_t16"].detach())


def _tokens(x: Arrays) -> GoldenResult:
    """The deep tokens are the last of three layers, the shallow ones the first two."""

    def layers(low: Tensor, high: Tensor) -> Outputs:
        return Outputs(tokens=[Tokens(patch, patch[:, :0]) for patch in (*low.unbind(1), high)])

    ours, theirs = layers(x["low_s"], x["high_s"]), layers(x["in/low_t"], x["in/high_t"])
    wide = x["in/low_s"].shape[-1] != x["in/low_t"].shape[-1]
    names = {
        "generation": "vitkd.generation",
        **({"aligns": "vitkd.align2", "align": "vitkd.align"} if wide else {}),
    }
    term, parameters = _build_adapted("vit_features", ours, theirs, x, names)
    with torch.no_grad():
        term.mask_token.copy_(x["sd/vitkd.mask_token"])
    term.draw = lambda batch, count: x["in/rand"]
    return GoldenResult(
        term(ours, theirs, NO_LABELS), {**parameters, "vitkd.mask_token": term.mask_token}
    )


FEATURES: dict[str, Case] = {
    "timm_feature_task": _timm_feature,
    "vid_repdistiller": _variational,
    "nst_repdistiller": _selectivity("feat_s"),
    "nst_mdistiller_pyramid": _selectivity("pyr_s0", "pyr_s1", "pyr_s2"),
    "srrl_official": _regression_on_maps,
    "srrl_simkd_toolbox": _regression_on_pooled,
    "srrl_clskd": _regression_given_logits,
    "mgd_clskd": _compute_masked,
    "catkd_res2_norm": _class_maps(normalize=True),
    "catkd_res2_raw": _class_maps(normalize=False),
    "srd_official": _recipe,
    "srd_torchdistill": _recipe_of_normalized,
    "vkd_engine_s32_t24": _orthogonal,
    **dict.fromkeys(("vitkd_align", "vitkd_samedim"), _tokens),
    "reviewkd_mdistiller_full": _review,
    "reviewkd_official_abf": _fusions,
    **dict.fromkeys(("reviewkd_hcl", "reviewkd_official_hcl"), _hierarchical),
}
