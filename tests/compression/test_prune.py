"""A pruned model is smaller, keeps its classes, and loads from its folder."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import timm
import torch

from kd_app.compression.prune import Prune
from kd_app.config import InputSpec, RequestError
from kd_app.models.cost import count_macs, count_params
from kd_app.models.create import create
from kd_app.models.layer_widths import Widths, find_changes, read_layer_sizes, resize
from kd_app.models.save import save_model
from kd_app.models.spec import ModelSpec

SLOW = {
    "wrn_16_1": 32,
    "test_convnext": 64,
    "mobilenetv3_small_050": 32,
    "regnetx_002": 64,
    "regnety_002": 64,
    "test_vit": 160,
}
CLASSES = tuple("abcde")


def pruning(**settings: object) -> Prune:
    defaults = {
        "macs": None,
        "params": None,
        "latency": None,
        "importance": "magnitude",
        "images": 8,
        "iterations": 1,
        "round_to": 8,
    }
    return Prune(**{**defaults, **settings})  # type: ignore[arg-type]


def build_model(name: str) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=len(CLASSES)).eval()


def pixels(side: int) -> InputSpec:
    return InputSpec(3, side, side, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("test_efficientnet", 32),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW.items()),
    ],
)
def test_half_of_the_multiply_adds_is_removed_and_the_folder_loads_the_same_model(
    name: str, side: int, tmp_path: Path
) -> None:
    model, input_spec = build_model(name), pixels(side)
    before, original = read_layer_sizes(model), count_macs(model, input_spec)
    left = pruning(macs=0.5).prune(model, input_spec, None, target=0.5)
    assert 0.35 <= left <= 0.5
    assert left == count_macs(model, input_spec) / original
    save_model(
        model,
        tmp_path,
        pixels=input_spec,
        classes=CLASSES,
        license="none",
        widths=find_changes(before, read_layer_sizes(model)),
    )
    spec = ModelSpec(
        role="student",
        name=None,
        pretrained="auto",
        checkpoint=tmp_path,
        kwargs={},
        image_size=None,
        factory=None,
    )
    loaded = create(spec, input_spec, len(CLASSES), seed=1).model
    image = torch.rand(3, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), model(image))
        torch.testing.assert_close(
            torch.export.load(tmp_path / "model.pt2").module()(image),
            model(image),
            rtol=1e-4,
            atol=1e-4,
        )
    assert count_params(loaded) == count_params(model)


@pytest.mark.parametrize("name", ["resnet8", "test_resnet"])
def test_a_model_with_the_recorded_widths_is_the_pruned_one(name: str) -> None:
    model, input_spec = build_model(name), pixels(16)
    before, original = read_layer_sizes(model), count_macs(model, input_spec)
    left = pruning(macs=0.7).prune(model, input_spec, None, target=0.7)
    assert 0.5 <= left == count_macs(model, input_spec) / original <= 0.7
    check_widths(build_model(name), before, model)


def check_widths(again: torch.nn.Module, before: Widths, pruned: torch.nn.Module) -> None:
    """Give `again` the layer sizes that changed; check that it has the same outputs."""
    resize(again, find_changes(before, read_layer_sizes(pruned)), source="a test")
    again.load_state_dict(pruned.state_dict())
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        logits = pruned(image)
        assert logits.shape == (2, len(CLASSES))
        torch.testing.assert_close(again(image), logits)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        pytest.param("deit_tiny_distilled_patch16_224", marks=pytest.mark.slow),
        "naflexvit_base_patch16_gap",
    ],
)
def test_the_heads_of_a_transformer_stay_and_become_narrower(name: str) -> None:
    kwargs: dict[str, Any] = {"img_size": 32, "depth": 2, "embed_dim": 64, "num_heads": 2}
    kwargs["num_classes"] = 5
    model, input_spec = timm.create_model(name, **kwargs).eval(), pixels(32)
    before, original = read_layer_sizes(model), count_macs(model, input_spec)
    left = pruning(macs=0.8).prune(model, input_spec, None, target=0.8)
    assert left == count_macs(model, input_spec) / original <= 0.8
    blocks: Any = model.blocks
    for block in blocks:
        assert block.attn.num_heads == 2
        assert block.attn.qkv.out_features == 3 * block.attn.proj.in_features
        assert block.attn.head_dim % 8 == 0
    check_widths(timm.create_model(name, **kwargs).eval(), before, model)


def test_numbers_of_channels_are_multiples_of_round_to() -> None:
    for multiple in (4, 8):
        model = build_model("resnet8")
        left = pruning(params=0.6, round_to=multiple).prune(model, pixels(32), None, target=0.6)
        assert left <= 0.6
        assert {
            each.out_channels % multiple
            for each in model.modules()
            if isinstance(each, torch.nn.Conv2d)
        } == {0}


def test_taylor_importance_keeps_the_channels_with_large_gradients() -> None:
    def favor_the_last(model: torch.nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
            if name == "layer2.0.conv1.weight":
                parameter.grad[-8:] = 1e3

    model = build_model("resnet8")
    norm = model.get_submodule("layer2.0.bn1")
    assert isinstance(norm, torch.nn.BatchNorm2d)
    norm.bias.data[:] = torch.arange(32)  # to recognize the channels
    pruning(macs=0.4, importance="taylor").prune(model, pixels(32), favor_the_last, target=0.4)
    bias = model.get_submodule("layer2.0.bn1").bias
    assert isinstance(bias, torch.Tensor)
    assert len(bias) < 32
    assert set(range(24, 32)) <= {int(number) for number in bias}


def test_importance_is_recomputed_in_each_iteration() -> None:
    shares: list[float] = []
    model, input_spec = build_model("resnet8"), pixels(32)
    original = count_macs(model, input_spec)

    def measure(model: torch.nn.Module) -> None:
        shares.append(count_macs(model, input_spec) / original)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)

    pruning(macs=0.3, importance="taylor", iterations=3).prune(
        model, input_spec, measure, target=0.3
    )
    assert len(shares) == 3
    assert shares[0] == 1 > shares[1] > shares[2] > 0.3


def test_an_impossible_target_is_refused_with_the_reachable_range() -> None:
    with pytest.raises(
        RequestError, match=r"prune.macs=0.001 can't be reached.*Reachable: 0\.\d+ to 1"
    ):
        pruning(macs=0.001).prune(build_model("resnet8"), pixels(16), None, target=0.001)


@pytest.mark.parametrize(
    "targets", [{}, {"macs": 0.5, "params": 0.5}, {"macs": 0.5, "latency": 0.5}]
)
def test_exactly_one_target_is_set(targets: dict[str, float]) -> None:
    with pytest.raises(RequestError, match="exactly one share"):
        pruning(**targets)


def test_without_torch_pruning_the_error_names_what_to_install() -> None:
    with (
        patch.dict(sys.modules, {"torch_pruning": None}),
        pytest.raises(RequestError, match=r"pip install kd_app\[deploy\]"),
    ):
        pruning(macs=0.5)


@pytest.mark.slow
def test_the_exported_program_needs_neither_kd_app_nor_timm(tmp_path: Path) -> None:
    model, input_spec = build_model("resnet8"), pixels(16)
    save_model(
        model,
        tmp_path,
        pixels=input_spec,
        classes=CLASSES,
        license="none",
        widths={"conv1": {"out_channels": 16}},
    )
    script = (
        "import sys; sys.modules['kd_app'] = sys.modules['timm'] = None; import torch; "
        "print(tuple(torch.export.load('model.pt2').module()(torch.rand(7, 3, 16, 16)).shape))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "(7, 5)", result.stderr


@pytest.mark.parametrize(
    "widths",
    [
        {"conv1": {"out_channels": 10**9}},
        {"conv1": {"out_channels": 0}},
        {"conv1": {"out_channels": "8"}},
        {"conv1": {"forward": 8}},
        {"nowhere": {"out_channels": 8}},
        {"conv1": 8},
    ],
)
def test_widths_that_do_not_fit_the_model_are_refused(widths: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=r"widths in the config.json of a folder"):
        resize(build_model("resnet8"), widths, source="a folder")


@pytest.mark.slow
def test_by_latency_the_largest_model_that_is_fast_enough_is_selected() -> None:
    model, input_spec = build_model("resnet8"), pixels(16)
    original = count_macs(model, input_spec)

    def measure_share(pruned: torch.nn.Module) -> float:
        # A third of the time does not depend on the multiply-adds.
        return 0.3 + 0.7 * count_macs(pruned, input_spec) / original

    step = pruning(latency=0.6, round_to=2)
    pruned, record = step.prune_by_latency(model, input_spec, None, measure_share)
    assert measure_share(pruned) == record["kept"] <= 0.6
    latencies = [each["latency"] for each in record["tried"]]
    assert record["kept"] == max(latency for latency in latencies if latency <= 0.6)
    assert record["kept"] > 0.5
    with pytest.raises(
        RequestError,
        match=r"prune.latency=0.2 can't be reached.*the fastest model that was tried takes 0\.3",
    ):
        pruning(latency=0.2, round_to=2).prune_by_latency(model, input_spec, None, measure_share)
