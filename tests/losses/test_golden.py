"""The terms give the values and gradients of the original implementations."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_app.losses.attention_transfer import attention_map
from kd_app.losses.feature_hint import FeatureHint
from kd_app.models.outputs import Attention, Outputs
from tests.losses.samples import batch, cut, gradient, labels, leaf, logits, make, maps

FOLDER = Path(os.environ.get("GOLDEN", Path(__file__).with_name("golden")))
INDEX: dict[str, dict[str, Any]] = {case["id"]: case for case in json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))["cases"]}
Arrays = dict[str, Tensor]
Case = Callable[[Arrays], Tensor]
NO_LABELS = labels(8)


def _load(name: str) -> Arrays:
    """The arrays of a file; reals as float64."""
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    return {key: x.double() if x.is_floating_point() else x for key, x in arrays.items()}


def _inputs(case: str) -> Arrays:
    """What the case shares with others; reals with gradient."""
    shared = _load("inputs")
    return {key: leaf(shared[key]) if shared[key].is_floating_point() else shared[key] for key in INDEX[case]["shared_inputs"]}


def _label(x: Arrays) -> Tensor:
    value: Tensor = make("cross_entropy")(logits(x["logits_s"]), Outputs(), batch(x["target"]))
    return value


def _soft(temperature: float) -> Case:
    return lambda x: make("soft_target", temperature=temperature)(logits(x["logits_s"]), logits(x["logits_t"]), NO_LABELS)


def _both(label: float, soft: float) -> Case:
    return lambda x: label * _label(x) + soft * _soft(4.0)(x)


def _decoupled(target: str, **settings: float) -> Case:
    return lambda x: make("decoupled", **settings)(logits(x["logits_s"]), logits(x["logits_t"]), batch(x[target]))


def _cross_entropy_form(x: Arrays) -> Tensor:
    """cls_KD leaves the teacher's entropy in: another value, the same gradient."""
    log_p = (x["logits_t"] / 4).log_softmax(1)
    return 0.5 * (_soft(4.0)(x) - 16 * (log_p.exp() * log_p).sum(1).mean().detach())


def _transfer(x: Arrays) -> Tensor:
    student, teacher = ([x[key] for key in sorted(x) if f"_{side}" in key] for side in "st")
    value: Tensor = make("attention_transfer")(maps(*student), maps(*teacher), NO_LABELS)
    return value


def _transfer_of_the_paper(x: Arrays) -> Tensor:
    """The paper's formula has the norm of the difference, the authors' code its mean square."""
    gap = attention_map(x["feat_s"]) - attention_map(x["feat_t"])
    return gap.square().sum(1).sqrt().mean()


def _attention(x: Arrays, side: str, heads: int) -> Outputs:
    query, key, value = (cut(x[f"{part}_{side}"], 2, heads).transpose(1, 2) for part in "qkv")
    return Outputs(attention=[Attention(query, key, value, num_prefix=1)])


def _relations(*relations: str) -> Case:
    term = make("attention_relation", relation_heads=4, relations=dict.fromkeys(relations, 1.0))

    def compare(x: Arrays) -> Tensor:
        value: Tensor = term(_attention(x, "s", heads=2), _attention(x, "t", heads=6), NO_LABELS)
        return value

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
}
DEVIATIONS: dict[str, Case] = {
    "kd_torchdistill_T4_alpha0": lambda x: _soft(4.0)(x) / 16,  # its loss without labels forgets T^2
    "kd_clskd_T4": _cross_entropy_form,
    "at_torchdistill_paper": _transfer_of_the_paper,
}
HINTS = {"fitnet_mdistiller_same": "feat_s", "fitnet_mdistiller_down2": "feat_s_14", "fitnet_mdistiller_crop": "feat_s_9"}


def _there(cases: dict[str, Any]) -> list[str]:
    return [case for case in cases if case in INDEX]


def _compare(case: str, value: Tensor, x: Arrays, stored: Arrays) -> None:
    torch.testing.assert_close(value, stored["out/loss"], rtol=1e-9, atol=0)
    rows = stored.get("rows", torch.arange(8))
    for name, norm in INDEX[case]["grad_norm"].items():
        found = gradient(value, x[name])
        np.testing.assert_allclose(found.norm().item(), norm, rtol=1e-7)
        if f"grad/{name}" in stored:
            torch.testing.assert_close(found[rows], stored[f"grad/{name}"], rtol=1e-7, atol=1e-15)


@pytest.mark.parametrize("case", _there(CASES | DEVIATIONS))
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    x = _inputs(case)
    _compare(case, (CASES | DEVIATIONS)[case](x), x, _load(case))


@pytest.mark.parametrize("case", _there(HINTS))
def test_the_hint_and_the_gradients_of_its_regressor_are_those_of_the_reference(case: str) -> None:
    x, stored = _inputs(case), _load(case)
    student, teacher = maps(x[HINTS[case]]), maps(x["feat_t"].detach())
    term: FeatureHint = make("feature_hint", activation="relu")
    term.build(student, teacher)
    state = {key.removeprefix("sd/conv_reg."): value for key, value in stored.items() if key.startswith("sd/")}
    term.double().adapter.load_state_dict(state, strict=True)
    value = term(student, teacher, NO_LABELS)
    _compare(case, value, x, stored)
    for name, parameter in term.adapter.named_parameters():
        found = gradient(value, parameter)
        np.testing.assert_allclose(found.norm().item(), INDEX[case]["param_grad_norm"][f"conv_reg.{name}"], rtol=1e-7, atol=1e-15)
        torch.testing.assert_close(found, stored[f"gradp/conv_reg.{name}"], rtol=1e-7, atol=1e-15)


@pytest.mark.parametrize("case", _there(DEVIATIONS))
def test_what_a_reference_does_differently_is_not_what_the_term_does(case: str) -> None:
    x = _inputs(case)
    ours = _transfer(x) if case.startswith("at_") else _soft(4.0)(x)
    assert abs(ours.item() / INDEX[case]["loss"] - 1) > 0.5


def test_every_term_has_a_reference_case() -> None:
    terms = {"kd_mdistiller_T4", "kd_mdistiller_total", "dkd_mdistiller_a1_b8_T4", "fitnet_mdistiller_same", "at_official", "minilmv2_relation_Ar4"}
    assert terms <= set(INDEX)
