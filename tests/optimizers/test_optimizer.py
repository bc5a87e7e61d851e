"""timm's optimizers by name, and schedules as functions of the progress."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kd_app.config import RequestError
from kd_app.optimizers.optimizer import Optimizer, TrainedModules
from kd_app.schedules import Constant, Cosine, Linear, MultiStep, OneCycle, Ramp, Schedule

CONF = Path(__file__).parents[2] / "conf"
SHARE = st.floats(0, 1)
SCHEDULES = st.one_of(
    st.builds(Cosine, warmup=SHARE, final=SHARE),
    st.builds(Linear, warmup=SHARE, final=SHARE),
    st.builds(MultiStep, warmup=SHARE, milestones=st.lists(SHARE, max_size=3), gamma=SHARE),
    st.builds(Constant, warmup=SHARE),
)


def optimizer(file: str = "adamw", **changed: Any) -> Optimizer:
    settings = yaml.safe_load((CONF / "optimizer" / f"{file}.yaml").read_text())
    del settings["_target_"]
    return Optimizer(**{**settings, **changed})


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    "name",
    ["adamw", "sgd", "momentum", "adam", "lamb", "lion", "muon", "adopt", "rmsproptf", "nadamw"],
)
def test_timms_optimizers_lower_a_loss(name: str) -> None:
    torch.manual_seed(0)
    model, image = net(), torch.randn(8, 1, 4, 4)
    built = optimizer(name=name, lr=0.01).make(model, from_random=True, fused=True)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(image), torch.arange(8) % 2)
        built.zero_grad()
        loss.backward()
        built.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
def test_biases_and_norms_have_no_weight_decay_and_every_group_knows_its_top_rate(
    name: str,
) -> None:
    model = net()
    built = optimizer(name=name, lr=0.25, weight_decay=0.1).make(
        model, from_random=True, fused=True
    )
    decays = {id(p): group["weight_decay"] for group in built.param_groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in model.named_parameters()} == {
        name: 0.1 if p.dim() > 1 else 0.0 for name, p in model.named_parameters()
    }
    assert {group["initial_lr"] for group in built.param_groups} == {0.25}


def test_weight_decay_leaves_the_position_embedding_of_a_vit_alone_as_timm_does() -> None:
    vit = timm.create_model("test_vit", num_classes=2, img_size=32)
    ours = optimizer().make(
        TrainedModules({"student": vit, "terms": nn.Linear(2, 2)}), from_random=True, fused=False
    )
    timms = timm.optim.create_optimizer_v2(vit, opt="adamw", lr=0.1, weight_decay=0.05)
    names = {id(p): name for name, p in vit.named_parameters()}
    decayed, expected = (
        {
            names[id(p)]
            for group in each.param_groups
            if group["weight_decay"]
            for p in group["params"]
            if id(p) in names
        }
        for each in (ours, timms)
    )
    assert decayed == expected
    assert decayed.isdisjoint({"pos_embed", "cls_token", "head.bias", "norm.weight"})
    assert "head.weight" in decayed


def test_frozen_parameters_are_excluded_and_others_included_once() -> None:
    model = net()
    model[0].requires_grad_(False)  # type: ignore[index]
    built = optimizer().make(model, from_random=True, fused=False)
    trained = [id(p) for group in built.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def try_to_build(name: str) -> torch.optim.Optimizer | str:
    try:
        return optimizer(name=name, lr=0.25).make(net(), from_random=True, fused=False)
    except RequestError as error:
        return str(error)


@pytest.mark.parametrize("name", sorted(str(each) for each in timm.optim.list_optimizers()))
@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum':UserWarning")
def test_every_optimizer_of_timm_is_built_or_refused_in_a_paragraph(name: str) -> None:
    result = try_to_build(name)
    if isinstance(result, str):
        assert name.startswith(("bnb", "fused")), (
            result
        )  # these need a package and a GPU of their own
        assert f"The optimizer {name} does not accept kwargs" in result
    else:
        assert {group["initial_lr"] for group in result.param_groups} == {0.25}


def test_the_automatic_rate_is_lower_for_weights_that_have_learned_before() -> None:
    auto = optimizer(scratch_lr=0.5, finetune_lr=0.125)
    model = net()
    assert auto.resolve_lr(model, from_random=True) == 0.5
    assert auto.resolve_lr(model, from_random=False) == 0.125
    assert {
        group["lr"] for group in auto.make(net(), from_random=False, fused=True).param_groups
    } == {0.125}
    fixed = optimizer(lr=0.25)
    assert fixed.resolve_lr(model, from_random=True) == 0.25
    assert fixed.resolve_lr(model, from_random=False) == 0.25


def test_the_automatic_rate_is_lower_for_a_model_with_attention_layers() -> None:
    model = nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(2, 6)})})
    auto = optimizer(scratch_lr=0.5, finetune_lr=0.125, attention_lr_factor=0.5)
    assert auto.resolve_lr(model, from_random=True) == 0.25
    assert auto.resolve_lr(model, from_random=False) == 0.0625
    built = auto.make(TrainedModules({"student": model}), from_random=True, fused=True)
    assert {group["initial_lr"] for group in built.param_groups} == {0.25}
    fixed = optimizer(lr=0.25, attention_lr_factor=0.5)
    assert fixed.resolve_lr(model, from_random=True) == 0.25


@pytest.mark.parametrize("fused", [True, False])
def test_the_fused_kernel_is_used_if_it_exists_and_is_allowed(fused: bool) -> None:
    assert {
        group["fused"]
        for group in optimizer().make(net(), from_random=True, fused=fused).param_groups
    } == {fused}
    assert {
        group["fused"]
        for group in (
            optimizer(kwargs={"fused": False})
            .make(net(), from_random=True, fused=fused)
            .param_groups
        )
    } == {False}
    assert not any(
        group["fused"]
        for group in (
            optimizer(kwargs={"foreach": True})
            .make(net(), from_random=True, fused=fused)
            .param_groups
        )
    )


def test_arguments_reach_the_optimizer() -> None:
    built = optimizer(kwargs={"betas": [0.5, 0.75]}).make(net(), from_random=True, fused=True)
    assert {tuple(group["betas"]) for group in built.param_groups} == {(0.5, 0.75)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "adamv"}, "There is no optimizer 'adamv'. Did you mean 'adam"),
        ({"lr": 0}, "lr"),
        ({"lr": "fast"}, "lr"),
        ({"weight_decay": -1}, "weight_decay=-1 does not fit"),
        ({"momentum": 1.5}, "momentum=1.5 does not fit"),
        ({"kwargs": {"bets": 1}}, r"The optimizer adamw does not accept kwargs=\{'bets': 1\}"),
        ({"kwargs": {"betas": [2, 2]}}, "The optimizer adamw does not accept kwargs"),
        (
            {"kwargs": {"fused": True, "foreach": True}},
            "The optimizer adamw does not accept kwargs",
        ),
        ({"kwargs": {"lr": 3}}, "The optimizer adamw does not accept kwargs"),
        ({"kwargs": {"layer_decay": 0.7}}, "optimizer.kwargs.layer_decay is not supported"),
        ({"speed": 1}, "Optimizer has no setting 'speed'"),
    ],
)
def test_wrong_settings_are_refused_early(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        optimizer(**wrong)


def test_asking_for_one_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    optimizer()
    assert torch.equal(torch.get_rng_state(), state)


def test_two_optimizers_share_no_settings() -> None:
    """Fault 9 of other toolkits: two instances share settings of the class."""
    one, other = optimizer(lr=0.5, kwargs={"eps": 1e-3}), optimizer(lr=0.125)
    assert (one.lr, other.lr, other.kwargs) == (0.5, 0.125, {})


# -- schedules


@given(SCHEDULES, SHARE)
def test_a_factor_lies_between_0_and_1(schedule: Schedule, progress: float) -> None:
    assert 0 <= schedule.compute_factor(progress) <= 1 + 1e-12


@given(SCHEDULES, SHARE, SHARE)
def test_a_schedule_rises_linearly_in_the_warm_up_and_never_afterwards(
    schedule: Schedule, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    if high < schedule.warmup:
        assert schedule.compute_factor(high) == pytest.approx(high / schedule.warmup)
    if low >= schedule.warmup:
        assert schedule.compute_factor(high) <= schedule.compute_factor(low) + 1e-9


@given(SHARE.filter(lambda warmup: warmup < 0.99), SHARE, SHARE)
def test_the_formulas(warmup: float, final: float, progress: float) -> None:
    at = warmup + (1 - warmup) * progress
    assert Cosine(warmup=warmup, final=final).compute_factor(at) == pytest.approx(
        final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2, abs=1e-6
    )
    assert Linear(warmup=warmup, final=final).compute_factor(at) == pytest.approx(
        1 - (1 - final) * progress, abs=1e-6
    )
    assert Constant(warmup=warmup).compute_factor(at) == 1


@given(st.lists(SHARE, max_size=4), SHARE, SHARE)
def test_a_step_down_at_each_milestone(
    milestones: list[float], gamma: float, progress: float
) -> None:
    result = MultiStep(warmup=0.0, milestones=milestones, gamma=gamma).compute_factor(progress)
    assert result == pytest.approx(gamma ** len([each for each in milestones if each <= progress]))


@pytest.mark.parametrize("file", sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml")))
def test_every_schedule_in_conf_ends_at_its_final_factor(file: str) -> None:
    settings = yaml.safe_load((CONF / "scheduler" / f"{file}.yaml").read_text())
    kind = {
        "cosine": Cosine,
        "linear": Linear,
        "one_cycle": OneCycle,
        "multistep": MultiStep,
        "constant": Constant,
        "warmup": Ramp,
        "ramp": Ramp,
    }[file]
    assert settings.pop("_target_") == f"kd_app.schedules.{kind.__name__}"
    end = {
        "cosine": settings.get("final"),
        "linear": settings.get("final"),
        "one_cycle": settings.get("final"),
        "multistep": 0.1**3,
    }.get(file, 1.0)
    assert kind(**settings).compute_factor(1.0) == pytest.approx(end)


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup": -0.1},
        {"warmup": 1.5},
        {"warmup": 0.1, "final": 2},
        {"warmup": 0.1, "finale": 0.5},
    ],
)
def test_schedules_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=list(wrong)[-1]):
        Cosine(**{"final": 0.0, **wrong})


@pytest.mark.parametrize("name", ["test_vit", "resnet8"])
def test_lower_layers_have_smaller_rates_as_in_timm_and_adapters_the_full_one(name: str) -> None:
    student, terms = timm.create_model(name, num_classes=2), nn.Linear(2, 2)
    built = optimizer(lr=0.2, layer_decay=0.5).make(
        TrainedModules({"student": student, "terms": terms}), from_random=True, fused=False
    )
    rates = {id(p): group["initial_lr"] for group in built.param_groups for p in group["params"]}
    timms = timm.optim.create_optimizer_v2(student, opt="adamw", lr=0.2, layer_decay=0.5)
    expected = {
        id(p): 0.2 * group["lr_scale"] for group in timms.param_groups for p in group["params"]
    }
    assert {key: rate for key, rate in rates.items() if key in expected} == expected
    assert {rates[id(p)] for p in terms.parameters()} == {0.2}
    classifier: nn.Module = student.get_classifier()  # type: ignore[operator]
    head = [rates[id(p)] for p in classifier.parameters()]
    assert set(head) == {0.2}
    assert min(rates.values()) < 0.1


def test_layer_decay_without_layers_and_in_the_wrong_place_is_refused() -> None:
    with pytest.raises(RequestError, match=r"layer_decay=0\.5 needs a student with"):
        optimizer(layer_decay=0.5).make(nn.Linear(2, 2), from_random=True, fused=False)
    with pytest.raises(RequestError, match=r"Set optimizer.layer_decay=0.7\."):
        optimizer(kwargs={"layer_decay": 0.7})
