"""The table of golden cases: the part of kd_app for each, and the deviations of
references.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_app.losses.attention_transfer import compute_attention_map
from kd_app.losses.ickd import compute_channel_similarity
from kd_app.losses.multi_level import compare_relations
from kd_app.losses.sp import compute_gram
from kd_app.models.outputs import Attention, Outputs
from tests.losses.golden_adapted import ADAPTED, ADAPTED_DEVIATIONS, ADAPTED_REGULAR
from tests.losses.golden_features import FEATURES
from tests.losses.golden_result import NO_LABELS, Arrays, Case, GoldenResult, ValueOf, own_state
from tests.losses.samples import batch, logits, make, maps, split_axis


def _label(x: Arrays) -> Tensor:
    value: Tensor = make("cross_entropy")(logits(x["logits_s"]), Outputs(), batch(x["target"]))
    return value


def _soft(temperature: float) -> ValueOf:
    return lambda x: make("soft_target", temperature=temperature)(
        logits(x["logits_s"]), logits(x["logits_t"]), NO_LABELS
    )


def _both(label: float, soft: float) -> ValueOf:
    return lambda x: label * _label(x) + soft * _soft(4.0)(x)


def _build_decoupled(target: str, **settings: float) -> ValueOf:
    return lambda x: make("decoupled", **settings)(
        logits(x["logits_s"]), logits(x["logits_t"]), batch(x[target])
    )


def _cross_entropy_form(x: Arrays) -> Tensor:
    """cls_KD omits the teacher's entropy: another value, the same gradient."""
    log_p = (x["logits_t"] / 4).log_softmax(1)
    return 0.5 * (_soft(4.0)(x) - 16 * (log_p.exp() * log_p).sum(1).mean().detach())


def _transfer(x: Arrays) -> Tensor:
    student, teacher = (
        [x[key] for key in sorted(x) if f"_{side}" in key and "/" not in key] for side in "st"
    )
    value: Tensor = make("attention_transfer")(maps(*student), maps(*teacher), NO_LABELS)
    return value


def _transfer_of_the_paper(x: Arrays) -> Tensor:
    """The paper's formula uses the norm of the difference, the authors' code the mean
    square.
    """
    gap = compute_attention_map(x["feat_s"]) - compute_attention_map(x["feat_t"])
    return gap.square().sum(1).sqrt().mean()


def _logits(term: str, target: str | None = None, **settings: object) -> ValueOf:
    loss = make(term, **settings)

    def compare(x: Arrays) -> Tensor:
        value: Tensor = loss(
            logits(x["logits_s"]),
            logits(x["logits_t"]),
            NO_LABELS if target is None else batch(x[target]),
        )
        return value

    return compare


def _norms_apart(temperature: float) -> ValueOf:
    """torchdistill clamps each norm at 1e-8; the authors add 1e-8 to the product."""

    def compare(x: Arrays) -> Tensor:
        p, q = ((z / temperature).softmax(1) for z in (x["logits_s"], x["logits_t"]))
        parts = (
            (a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True), dim)
            for a, b, dim in ((p, q, 1), (p, q, 0))
        )
        return (
            temperature**2
            * torch.stack(
                [1 - F.cosine_similarity(a, b, dim=dim).mean() for a, b, dim in parts]
            ).sum()
        )

    return compare


def _label_among_the_others(x: Arrays) -> Tensor:
    """The mask of SDD's copy of NKD removes nothing."""
    log_s, log_t = x["logits_s"].log_softmax(1), x["logits_t"].log_softmax(1)
    at = x["target"][:, None]
    label = log_t.exp().gather(1, at) * log_s.gather(1, at)
    return -(label + 1.5 * (log_t.exp() * log_s).sum(1, keepdim=True)).mean()


def _curriculum(progress: float) -> Case:
    """At half of a rise of 0.5 the reference has lambda -0.5."""

    def compare(x: Arrays) -> GoldenResult:
        term = make("ctkd", rise=0.5).double()
        later = replace(NO_LABELS, progress=progress)
        return GoldenResult(
            term(logits(x["logits_s"]), logits(x["logits_t"]), later), {"T.global_T": term.theta}
        )

    return compare


def _temperature_learns(x: Arrays) -> Tensor:
    """In the reference the sign is part of lambda."""
    return -torch.tensor(
        [
            make("ctkd", rise=1.0).strength.compute_factor(epoch / 10)
            for epoch in x["epoch"].double().tolist()
        ],
        dtype=torch.float64,
    )


def _relation(dim: int) -> ValueOf:
    def compare(x: Arrays) -> Tensor:
        p, q = ((x[name] / 4).softmax(1).transpose(0, dim) for name in ("logits_s", "logits_t"))
        return compare_relations(p, q, torch.ones(len(p)))

    return compare


def _multi_level_of_the_code(
    label: float, weight: float, first: float, *, standardize: bool
) -> ValueOf:
    """The code weights whole parts with the share of uncertain images and classes, and
    uses the weak view in two parts of the strong one.
    """

    def compare(x: Arrays) -> Tensor:
        weak, strong = (tuple(x[f"logits_{side}{view}"] for side in "st") for view in ("", "2"))
        probabilities = weak[1].softmax(1)
        images, classes = (
            (y <= y.quantile(0.5)).double().mean()
            for y in (probabilities.amax(1), probabilities.sum(0))
        )

        def soft(view: tuple[Tensor, ...], temperature: float) -> Tensor:
            value: Tensor = make("soft_target", temperature=temperature, standardize=standardize)(
                logits(view[0]), logits(view[1]), NO_LABELS
            )
            return value

        temperatures = (first, 3.0, 5.0, 2.0, 6.0)
        total = torch.stack(
            [
                images * soft(weak, t) + soft(strong if i < 3 else weak, t)
                for i, t in enumerate(temperatures)
            ]
        ).sum()
        for t in temperatures:
            p, q = ((z / t).softmax(1) for z in weak)
            total = (
                total
                + classes * compare_relations(p.T, q.T, torch.ones(10))
                + images * compare_relations(p, q, torch.ones(8))
            )
        return label * (_label(x) + F.cross_entropy(strong[0], x["target"])) + weight * total

    return compare


def _similarity(x: Arrays) -> Tensor:
    value: Tensor = make("sp")(maps(x["feat_s"]), maps(x["feat_t"]), NO_LABELS)
    return value


def _rows_of_sum_1(x: Arrays) -> Tensor:
    """torchdistill passes 1 to normalize as the norm instead of the dimension."""
    ours, theirs = (F.normalize(compute_gram(x[name]), p=1, dim=1) for name in ("feat_s", "feat_t"))
    return F.mse_loss(ours, theirs)


def _build_pooled(term: str, student: str, teacher: str, **settings: object) -> ValueOf:
    loss = make(term, **settings)

    def compare(x: Arrays) -> Tensor:
        ours, theirs = (Outputs(embedding=x[name].flatten(1)) for name in (student, teacher))
        value: Tensor = loss(ours, theirs, NO_LABELS)
        return value

    return compare


def _not_squared(x: Arrays) -> Tensor:
    """torchdistill uses the norm of the difference over B^2, not the square."""
    return _build_pooled("cc", "pool_s", "pool_t32")(x).sqrt() / 8


def _first_order(x: Arrays) -> Tensor:
    """torchdistill's bilinear kernel is the series at order 1, except for a factor; the
    norm is not squared either.
    """
    factor = 2 * 0.4 * math.exp(-2 * 0.4)
    return _build_pooled("cc", "pool_s", "pool_t32", gamma=0.4, order=1)(x).sqrt() / 8 / factor


def _neighbors(x: Arrays) -> GoldenResult:
    """RepDistiller multiplies the differences of neighbors in the batch, and also
    trains the teacher's map.
    """
    embed = {side: nn.Linear(x[f"pool_{side}"].shape[1], 16).double() for side in "st"}
    for side, layer in embed.items():
        layer.load_state_dict(own_state(x, f"embed_{side}.linear."))
    ours, theirs = embed["s"](x["pool_s"].flatten(1)), embed["t"](x["pool_t"].detach().flatten(1))
    gap = (ours - theirs).abs()
    parameters = {
        f"embed_{side}.linear.{name}": p
        for side, layer in embed.items()
        for name, p in layer.named_parameters()
    }
    return GoldenResult((gap[:-1] * gap[1:]).sum(1).mean(), parameters)


def _channels(x: Arrays) -> GoldenResult:
    ours, theirs = maps(x["feat_s"]), maps(x["feat_t"])
    term = make("ickd")
    term.build(ours, theirs)
    state, adapter = own_state(x, "ickd.embed_s."), term.double().adapter
    adapter.conv.load_state_dict({"weight": state["conv2d.weight"], "bias": torch.zeros(24)})
    adapter.bn.load_state_dict(
        {
            key.removeprefix("l2norm."): value
            for key, value in state.items()
            if key.startswith("l2norm.")
        }
    )
    parameters = {
        "conv2d.weight": adapter.conv.weight,
        "l2norm.weight": adapter.bn.weight,
        "l2norm.bias": adapter.bn.bias,
    }
    return GoldenResult(
        term(ours, theirs, NO_LABELS),
        {f"ickd.embed_s.{name}": parameter for name, parameter in parameters.items()},
    )


def _similarity_gap(x: Arrays, divisor: int) -> Tensor:
    gap = compute_channel_similarity(x["feat_s"]) - compute_channel_similarity(x["feat_t16"])
    return gap.square().sum() / divisor


def _attention(x: Arrays, side: str, heads: int) -> Outputs:
    query, key, value = (
        split_axis(x[f"{part}_{side}"], 2, heads).transpose(1, 2) for part in "qkv"
    )
    return Outputs(attention=[Attention(query, key, value, num_prefix=1)])


def _relations(*relations: str) -> ValueOf:
    term = make("attention_relation", relation_heads=4, relations=dict.fromkeys(relations, 1.0))

    def compare(x: Arrays) -> Tensor:
        value: Tensor = term(_attention(x, "s", heads=2), _attention(x, "t", heads=6), NO_LABELS)
        return value

    return compare


def _hint(student: str) -> Case:
    def compare(x: Arrays) -> GoldenResult:
        ours, theirs = maps(x[student]), maps(x["feat_t"].detach())
        term = make("feature_hint", activation="relu")
        term.build(ours, theirs)
        term.double().adapter.load_state_dict(own_state(x, "conv_reg."), strict=True)
        return GoldenResult(
            term(ours, theirs, NO_LABELS),
            {f"conv_reg.{name}": parameter for name, parameter in term.adapter.named_parameters()},
        )

    return compare


CASES: dict[str, Case] = {
    **dict.fromkeys(
        ("kd_mdistiller_T4", "kd_repdistiller_T4", "kd_hunto_T4", "mlld_kd_loss_T4"), _soft(4.0)
    ),
    "funmatch_bigvision_kl_t1": _soft(1.0),
    "kd_mdistiller_total": _both(0.1, 0.9),
    "kd_attention_transfer_T4": _both(0.1, 0.9),
    "kd_torchdistill_T4_alpha05": _both(0.5, 0.5),
    "timm_logit_task_T4": _both(0.3, 0.7),
    "dkd_mdistiller_a1_b8_T4": _build_decoupled("target"),
    "dkd_clskd_b6_T4": _build_decoupled("target", beta=6.0),
    "dkd_vanillakd_soft_target": _build_decoupled("target_soft", beta=2.0, temperature=1.0),
    **dict.fromkeys(("at_official", "at_torchdistill_code", "at_mdistiller_pyramid"), _transfer),
    "minilmv2_relation_Ar4": _relations("qq", "kk", "vv"),
    "minilmv1_qk_vv": _relations("qk", "vv"),
    "nkd_clskd_T1_g1.5": _logits("nkd", "target"),
    "nkd_clskd_soft_target": _logits("nkd", "target_soft"),
    "dist_hunto_tau4": _logits("dist", temperature=4.0),
    "lskd_kd_T2": _logits("soft_target", temperature=2.0, standardize=True),
    "lskd_torchdistill_T2": (
        lambda x: 0.1 * _label(x) + 9 * _logits("soft_target", temperature=2.0, standardize=True)(x)
    ),
    "ttm_g0.1": _logits("ttm"),
    "wttm_g0.1": _logits("wttm", power=0.1),
    "ctkd_global_lam0": _curriculum(0.0),
    "ctkd_global_lam-0.5": _curriculum(0.25),
    "ctkd_global_lam-1": _curriculum(0.5),
    "ctkd_lambda_schedule": _temperature_learns,
    "mlld_bc_loss_T4": _relation(0),
    "mlld_cc_loss_T4": _relation(1),
    "sp_mdistiller": _similarity,
    "rkd_lenscloth_distance": _build_pooled("rkd", "pool_s", "pool_t", distance=1.0, angle=0.0),
    "rkd_lenscloth_angle": _build_pooled("rkd", "pool_s", "pool_t", distance=0.0, angle=1.0),
    "rkd_torchdistill_flat_d1_a2": _build_pooled(
        "rkd", "feat_s", "feat_t", distance=1.0, angle=2.0
    ),
    **dict.fromkeys(
        ("pkt_mdistiller", "pkt_repdistiller"), _build_pooled("pkt", "pool_s", "pool_t")
    ),
    "ickd_official_cifar": _channels,
    "fitnet_mdistiller_same": _hint("feat_s"),
    "fitnet_mdistiller_down2": _hint("feat_s_14"),
    "fitnet_mdistiller_crop": _hint("feat_s_9"),
    **FEATURES,
    **ADAPTED,
}
"""Cases in which the reference equals the term."""
DEVIATIONS: dict[str, Case] = {
    # Its loss without labels lacks T^2.
    "kd_torchdistill_T4_alpha0": lambda x: _soft(4.0)(x) / 16,
    "kd_clskd_T4": _cross_entropy_form,
    "at_torchdistill_paper": _transfer_of_the_paper,
    "sdd_nkd_origin_bug": _label_among_the_others,
    "dist_torchdistill_tau1": _norms_apart(1.0),
    "dist_torchdistill_tau4": _norms_apart(4.0),
    "dist_torchdistill_1k_tau1": lambda x: _norms_apart(1.0)(
        {"logits_s": x["logits_s_1k"], "logits_t": x["logits_t_1k"]}
    ),
    "mlld_full_cifar": _multi_level_of_the_code(0.1, 0.9, 4.0, standardize=False),
    "lskd_mlld_full": _multi_level_of_the_code(0.1, 9.0, 2.0, standardize=True),
    "sp_torchdistill": _rows_of_sum_1,
    "cc_torchdistill_gaussian": _not_squared,
    "cc_torchdistill_bilinear": _first_order,
    "cc_repdistiller": _neighbors,
    # Divides by the batch twice.
    "ickd_torchdistill": lambda x: _similarity_gap(x, 16 * 64),
    **ADAPTED_DEVIATIONS,
}
"""Cases in which the reference differs from the term, with the difference reproduced.
`REGULAR` has the value of the term itself on the same inputs.
"""
REGULAR: dict[str, Case] = {
    "kd_torchdistill_T4_alpha0": _soft(4.0),
    "kd_clskd_T4": _soft(4.0),
    "at_torchdistill_paper": _transfer,
    "sdd_nkd_origin_bug": _logits("nkd", "target"),
    "dist_torchdistill_tau1": _logits("dist", temperature=1.0),
    "dist_torchdistill_tau4": _logits("dist", temperature=4.0),
    "dist_torchdistill_1k_tau1": lambda x: _logits("dist")(
        {"logits_s": x["logits_s_1k"], "logits_t": x["logits_t_1k"]}
    ),
    "mlld_full_cifar": _logits("multi_level"),
    "lskd_mlld_full": _logits("multi_level", standardize=True),
    "sp_torchdistill": _similarity,
    **dict.fromkeys(
        ("cc_torchdistill_gaussian", "cc_torchdistill_bilinear"),
        _build_pooled("cc", "pool_s", "pool_t32"),
    ),
    "cc_repdistiller": _build_pooled("cc", "pool_s", "pool_t"),
    "ickd_torchdistill": lambda x: _similarity_gap(x, 16 * 8),
    **ADAPTED_REGULAR,
}
