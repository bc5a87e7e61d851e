"""The table of golden cases: what of kd_app each one is compared with, and what a reference does differently."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from kd_app.losses.attention_transfer import attention_map
from kd_app.models.outputs import Attention, Outputs
from tests.losses.samples import batch, cut, labels, logits, make, maps

Arrays = dict[str, Tensor]
NO_LABELS = labels(8)


@dataclass
class Answer:
    """A value, with the parameters whose gradients the reference has too, under its names for them."""

    value: Tensor
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)


Plain = Callable[[Arrays], Tensor]
Case = Callable[[Arrays], Tensor | Answer]
"""Given the shared inputs by name (with gradient) and the arrays of the case's own file (`in/...`, `sd/...`) by theirs."""


def _state(x: Arrays, prefix: str) -> Arrays:
    """The adapter's state in the case's file, under the names that follow `prefix`."""
    start = f"sd/{prefix}"
    return {key.removeprefix(start): value for key, value in x.items() if key.startswith(start)}


def _label(x: Arrays) -> Tensor:
    value: Tensor = make("cross_entropy")(logits(x["logits_s"]), Outputs(), batch(x["target"]))
    return value


def _soft(temperature: float) -> Plain:
    return lambda x: make("soft_target", temperature=temperature)(logits(x["logits_s"]), logits(x["logits_t"]), NO_LABELS)


def _both(label: float, soft: float) -> Plain:
    return lambda x: label * _label(x) + soft * _soft(4.0)(x)


def _decoupled(target: str, **settings: float) -> Plain:
    return lambda x: make("decoupled", **settings)(logits(x["logits_s"]), logits(x["logits_t"]), batch(x[target]))


def _cross_entropy_form(x: Arrays) -> Tensor:
    """cls_KD leaves the teacher's entropy in: another value, the same gradient."""
    log_p = (x["logits_t"] / 4).log_softmax(1)
    return 0.5 * (_soft(4.0)(x) - 16 * (log_p.exp() * log_p).sum(1).mean().detach())


def _transfer(x: Arrays) -> Tensor:
    student, teacher = ([x[key] for key in sorted(x) if f"_{side}" in key and "/" not in key] for side in "st")
    value: Tensor = make("attention_transfer")(maps(*student), maps(*teacher), NO_LABELS)
    return value


def _transfer_of_the_paper(x: Arrays) -> Tensor:
    """The paper's formula has the norm of the difference, the authors' code its mean square."""
    gap = attention_map(x["feat_s"]) - attention_map(x["feat_t"])
    return gap.square().sum(1).sqrt().mean()


def _attention(x: Arrays, side: str, heads: int) -> Outputs:
    query, key, value = (cut(x[f"{part}_{side}"], 2, heads).transpose(1, 2) for part in "qkv")
    return Outputs(attention=[Attention(query, key, value, num_prefix=1)])


def _relations(*relations: str) -> Plain:
    term = make("attention_relation", relation_heads=4, relations=dict.fromkeys(relations, 1.0))

    def compare(x: Arrays) -> Tensor:
        value: Tensor = term(_attention(x, "s", heads=2), _attention(x, "t", heads=6), NO_LABELS)
        return value

    return compare


def _hint(student: str) -> Case:
    def compare(x: Arrays) -> Answer:
        ours, theirs = maps(x[student]), maps(x["feat_t"].detach())
        term = make("feature_hint", activation="relu")
        term.build(ours, theirs)
        term.double().adapter.load_state_dict(_state(x, "conv_reg."), strict=True)
        return Answer(term(ours, theirs, NO_LABELS), {f"conv_reg.{name}": parameter for name, parameter in term.adapter.named_parameters()})

    return compare


CASES: dict[str, Case] = {
    **dict.fromkeys(("kd_mdistiller_T4", "kd_repdistiller_T4", "kd_hunto_T4", "mlld_kd_loss_T4"), _soft(4.0)),
    "funmatch_bigvision_kl_t1": _soft(1.0),
    "kd_mdistiller_total": _both(0.1, 0.9),
    "kd_attention_transfer_T4": _both(0.1, 0.9),
    "kd_torchdistill_T4_alpha05": _both(0.5, 0.5),
    "timm_logit_task_T4": _both(0.3, 0.7),
    "dkd_mdistiller_a1_b8_T4": _decoupled("target"),
    "dkd_clskd_b6_T4": _decoupled("target", beta=6.0),
    "dkd_vanillakd_soft_target": _decoupled("target_soft", beta=2.0, temperature=1.0),
    **dict.fromkeys(("at_official", "at_torchdistill_code", "at_mdistiller_pyramid"), _transfer),
    "minilmv2_relation_Ar4": _relations("qq", "kk", "vv"),
    "minilmv1_qk_vv": _relations("qk", "vv"),
    "fitnet_mdistiller_same": _hint("feat_s"),
    "fitnet_mdistiller_down2": _hint("feat_s_14"),
    "fitnet_mdistiller_crop": _hint("feat_s_9"),
}
"""The reference does what the term does."""
DEVIATIONS: dict[str, Case] = {
    "kd_torchdistill_T4_alpha0": lambda x: _soft(4.0)(x) / 16,  # its loss without labels forgets T^2
    "kd_clskd_T4": _cross_entropy_form,
    "at_torchdistill_paper": _transfer_of_the_paper,
}
"""The reference does something else, which is made of the term here; `REGULAR` says what the term itself gives on the same inputs."""
REGULAR: dict[str, Case] = {
    "kd_torchdistill_T4_alpha0": _soft(4.0),
    "kd_clskd_T4": _soft(4.0),
    "at_torchdistill_paper": _transfer,
}
