"""Creating a model from its spec: weights, input spec, errors."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_app.config import InputSpec, RequestError
from kd_app.digest import hash_file
from kd_app.models.create import create, resolve_input
from kd_app.models.save import save_model
from kd_app.models.spec import ImageStats, LoadedModel
from kd_app.models.weights import hash_state
from kd_app.models.weights_source import _select_arguments
from tests.builders import DIGITS, GRAY, teacher_folder
from tests.models.test_spec import request

STATS = ImageStats(1, 8, (0.3,), (0.4,))
COLOR = ImageStats(3, 200, (0.3, 0.4, 0.5), (0.1, 0.2, 0.3))


def load(
    classes: int = 10, *, seed: int = 0, image_stats: ImageStats = STATS, **settings: Any
) -> LoadedModel:
    spec = request(**settings)
    return create(spec, resolve_input(spec, image_stats), classes, seed=seed)


def equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def test_a_model_with_random_weights_fits_the_data() -> None:
    loaded = load(name="resnet8")
    assert loaded.pixels == InputSpec(1, 8, 8, (0.3,), (0.4,))
    assert loaded.model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert not loaded.model.training
    assert (loaded.weights.source, loaded.weights.matched) == ("random", 0)
    assert loaded.weights.sha256 == hash_state(loaded.model.state_dict())


def test_one_seed_gives_one_model_and_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, same, other = (load(name="test_resnet", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(first.model, same.model)
    assert first.weights.sha256 == same.weights.sha256 != other.weights.sha256


def test_arguments_reach_the_model() -> None:
    loaded = load(
        name="vit_tiny_patch16_224",
        kwargs={"patch_size": 2, "embed_dim": 24, "depth": 3, "num_heads": 2},
    )
    assert len(loaded.model.blocks) == 3  # type: ignore[arg-type]
    assert loaded.model.patch_embed.proj.kernel_size == (2, 2)  # type: ignore[union-attr]
    assert loaded.model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_configured_size_and_channels_override_the_data() -> None:
    loaded = load(name="test_resnet", image_size=32, kwargs={"in_chans": 3})
    assert (
        loaded.pixels.channels,
        loaded.pixels.height,
        loaded.pixels.mean,
        loaded.pixels.std,
    ) == (
        3,
        32,
        (0.3,) * 3,
        (0.4,) * 3,
    )
    assert loaded.model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_input_need_not_be_square_nor_have_1_or_3_channels() -> None:
    stats = ImageStats(4, 48, (0.3,) * 4, (0.4,) * 4, 20)
    loaded = load(name="test_efficientnet", image_stats=stats)
    assert (loaded.pixels.channels, loaded.pixels.height, loaded.pixels.width) == (4, 48, 20)
    tall = load(name="test_vit", image_size=[64, 32])
    assert (tall.pixels.height, tall.pixels.width) == (64, 32)
    assert tall.model(torch.zeros(2, 1, 64, 32)).shape == (2, 10)
    with pytest.raises(RequestError, match="image_size"):
        load(name="test_resnet", image_size=[64, 0])


def test_the_arguments_of_timm_s_training_give_the_normalization(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=10).state_dict()
    for mean, expected in ((None, (0.5,) * 3), ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3))):
        arguments = Namespace(mean=mean, std=None, crop_pct=None, interpolation="", img_size=None)
        torch.save({"state_dict": state, "args": arguments}, tmp_path / "x.pth")
        loaded = load(name="test_resnet", checkpoint=tmp_path / "x.pth", image_stats=COLOR)
        assert loaded.pixels.mean == expected
    torch.save(state, tmp_path / "x.pth")
    plain = load(name="test_resnet", checkpoint=tmp_path / "x.pth", image_stats=COLOR)
    assert plain.pixels.mean == COLOR.mean


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": "imagenet"},
        {"mean": 0.5},
        {"mean": [float("nan")] * 3},
        {"mean": [0.1, 0.2]},
        {"input_size": "a"},
        {"img_size": [10**9]},
        {"crop_pct": 1e308},
        {"interpolation": "x" * 1000},
    ],
)
def test_arguments_that_timm_never_writes_are_those_of_another_script(changes: Any) -> None:
    plain = {"mean": None, "std": [0.1, 0.2, 0.3], "lr": 0.1}
    assert _select_arguments(plain) == {"mean": None, "std": (0.1, 0.2, 0.3)}
    assert _select_arguments({**plain, **changes}) == {}


def test_small_images_are_used_whole_and_large_ones_cropped_as_timm_crops() -> None:
    timm_config = timm.get_pretrained_cfg("resnet18")
    assert timm_config is not None
    assert resolve_input(request(name="resnet18"), COLOR).crop == timm_config.crop_pct
    assert resolve_input(request(name="resnet18"), STATS).crop == 1.0


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
def test_a_checkpoint_file_gives_its_weights(tmp_path: Path, suffix: str) -> None:
    trained = timm.create_model("resnet8", num_classes=10, in_chans=1)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(trained.state_dict(), path)
    else:
        wrapped = {f"student.{name}": tensor for name, tensor in trained.state_dict().items()}
        torch.save({"state_dict": wrapped} if suffix == ".ckpt" else trained.state_dict(), path)
    loaded = load(name="resnet8", checkpoint=path)
    assert equal(loaded.model, trained)
    assert loaded.weights.source == f"file weights{suffix}"
    assert loaded.weights.sha256 == hash_file(path)
    assert not loaded.weights.new_head


def test_a_folder_as_timm_saves_it_by_default_is_read(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "model")
    expected = load(checkpoint=folder).model
    torch.save(expected.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert equal(load(checkpoint=folder).model, expected)


def test_a_folder_gives_weights_arguments_and_pixels_and_a_new_head_for_other_classes(
    tmp_path: Path,
) -> None:
    pixels = InputSpec(3, 24, 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.9, "bicubic")
    shape: dict[str, Any] = {
        "img_size": (24, 16),
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
    }
    folder = teacher_folder(tmp_path / "model", "vit_tiny_patch16_224", pixels=pixels, **shape)
    same, other = load(checkpoint=folder), load(4, checkpoint=folder)
    assert same.pixels == other.pixels == pixels
    assert len(same.model.blocks) == 2  # type: ignore[arg-type]
    assert (same.weights.missing, other.weights.missing) == ((), ("head.bias", "head.weight"))
    assert other.weights.new_head
    body = {
        name: tensor
        for name, tensor in same.model.state_dict().items()
        if not name.startswith("head.")
    }
    assert all(torch.equal(other.model.state_dict()[name], tensor) for name, tensor in body.items())


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet14", num_classes=10, in_chans=1).state_dict(), path)
    with pytest.raises(
        RequestError,
        match=(
            r"The weights from file weights.pth do not fit this model: of its 56 entries, all are"
            r" in the file; 30 of the file are left over \(layer1.1.conv1.weight"
        ),
    ):
        load(name="resnet8", checkpoint=path)


TAG = "test_resnet.r160_in1k"


@pytest.fixture
def tagged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A model with the weights of TAG, read like hub weights except for the
    download.
    """
    trained: nn.Module = timm.create_model("test_resnet")
    save_file(trained.state_dict(), tmp_path / "tagged.safetensors")
    known = timm.models._registry._model_pretrained_cfgs
    monkeypatch.setitem(
        known,
        TAG,
        replace(known[TAG], file=str(tmp_path / "tagged.safetensors"), hf_hub_id=None, url=None),
    )
    return trained


def test_a_tag_gives_its_weights_its_pixels_and_a_new_head_for_other_classes(
    tagged_model: nn.Module,
) -> None:
    full, other = load(1000, name=TAG), load(10, name=TAG, seed=1)
    assert equal(full.model, tagged_model)
    assert (full.pixels.channels, full.pixels.height, full.pixels.mean) == (3, 160, (0.5, 0.5, 0.5))
    assert full.weights.missing == ()
    assert other.weights.missing == ("fc.bias", "fc.weight")
    assert other.weights.source == f"hub {TAG}"
    assert torch.equal(
        other.model.state_dict()["conv1.0.weight"], tagged_model.state_dict()["conv1.0.weight"]
    )
    assert torch.equal(
        other.model.state_dict()["fc.weight"],
        load(10, name=TAG, seed=1).model.state_dict()["fc.weight"],
    )
    assert not torch.equal(
        other.model.state_dict()["fc.weight"],
        load(10, name=TAG, seed=2).model.state_dict()["fc.weight"],
    )


def test_color_weights_serve_gray_images_as_timm_adapts_them(tagged_model: nn.Module) -> None:
    loaded = load(1000, name=TAG, kwargs={"in_chans": 1}, image_size=32)
    assert loaded.pixels == InputSpec(
        1, 32, 32, (0.5,), (0.5,), loaded.pixels.crop, loaded.pixels.interpolation
    )
    gray = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(
        loaded.model(gray), tagged_model.eval()(gray.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
    )


def test_a_hub_out_of_reach_is_one_paragraph() -> None:
    with pytest.raises(
        RequestError,
        match=(
            r"The weights of 'test_resnet.r160_in1k' could not be fetched from their"
            r" hub.*pretrained=false starts"
        ),
    ) as raised:
        load(name=TAG)
    assert "\n" not in str(raised.value)


class Own(nn.Module):
    """A net that timm does not know."""

    def __init__(self, num_classes: int = 10, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Linear(64, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(image.flatten(1)).relu())  # type: ignore[no-any-return]


def test_a_factory_gets_the_arguments_that_it_accepts() -> None:
    loaded = load(7, factory=Own, kwargs={"width": 6})
    assert isinstance(loaded.model, Own)
    assert loaded.model.head.weight.shape == (7, 6)
    assert loaded.weights.source == f"own {Own.__module__}:Own"
    assert equal(loaded.model, load(7, factory=Own, kwargs={"width": 6}).model)


def test_weights_of_a_run_load_into_a_user_provided_module(tmp_path: Path) -> None:
    trained = Own()
    save_model(trained, tmp_path / "student", pixels=GRAY, classes=DIGITS, license="none")
    loaded = load(factory=Own, checkpoint=tmp_path / "student" / "model.safetensors")
    assert equal(loaded.model, trained)
    with pytest.raises(RequestError, match=r"2 are of another shape \(head.weight is 10x4 in"):
        load(7, factory=Own, checkpoint=tmp_path / "student" / "model.safetensors")


def test_a_module_that_outputs_an_embedding_has_the_width_of_its_training(tmp_path: Path) -> None:
    trained, entries = Own(6), {"embedding": {"width": 6}}
    save_model(trained, tmp_path / "m", pixels=GRAY, classes=(), license="none", entries=entries)
    loaded = load(0, factory=Own, checkpoint=tmp_path / "m" / "model.safetensors")
    assert equal(loaded.model, trained)


def test_a_vit_at_another_size_says_what_it_loses(tmp_path: Path) -> None:
    net: dict[str, Any] = {"patch_size": 2, "embed_dim": 24, "depth": 1, "num_heads": 2}
    folder = teacher_folder(tmp_path, "vit_tiny_patch16_224", img_size=8, **net)
    notes = " ".join(load(checkpoint=folder, image_size=11).weights.notes)
    assert "pos_embed resampled from (1, 17, 24) to (1, 26, 24)" in notes
    assert "reads 10x10 of 11x11 pixels, because its patches have 2x2" in notes
    notes = " ".join(load(checkpoint=folder, image_size=8).weights.notes)
    assert "resampled" not in notes
    assert "patches" not in notes


def build_diverged() -> nn.Module:
    model = Own(10)
    next(iter(model.parameters())).data[0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factory": lambda: 3}, "returned a int, expected a torch.nn.Module"),
        (
            {"factory": nn.Flatten},
            r"returns \(2, 64\) for two images, expected logits of shape \(2, 10\)",
        ),
        (
            {"factory": lambda: Own(3)},
            r"returns \(2, 3\) for two images, expected logits of shape \(2, 10\)",
        ),
        ({"factory": lambda: nn.Linear(5, 10)}, "can't take images of 1x8x8"),
        (
            {"name": "test_resnet", "kwargs": {"features_only": True}},
            "returns a list for a batch .*features_only returns maps",
        ),
        (
            {"name": "test_resnet", "kwargs": {"global_pool": ""}},
            "can't take images of 1x8x8 with {'global_pool': ''}",
        ),
        ({"factory": build_diverged}, "NaN or infinite weights"),
        ({"factory": lambda num_classes, mood: Own(num_classes)}, "can't be built .*mood"),
        ({"name": "vit_tiny_patch16_224"}, "vit_tiny_patch16_224 can't .*8x8.*patch_size"),
    ],
)
def test_a_module_without_logits_for_these_images_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        load(**settings)


@pytest.mark.parametrize("size", [8, 12])
def test_a_size_at_which_an_architecture_fails_is_answered_with_one_that_works(size: int) -> None:
    stats = ImageStats(3, size, (0.5,) * 3, (0.25,) * 3)
    spec = request(name="maxvit_rmlp_pico_rw_256", pretrained=False)
    with pytest.raises(RequestError, match=r"can't .*student.image_size=\d+ works. Change"):
        create(spec, resolve_input(spec, stats), 3, seed=0)


@pytest.mark.parametrize("name", ["resnet8", "test_vit"])
def test_images_need_not_be_square_and_may_have_any_number_of_channels(name: str) -> None:
    stats = ImageStats(4, 160, (0.5,) * 4, (0.25,) * 4, 96)
    input_spec = resolve_input(request(name=name, pretrained=False), stats)
    assert (input_spec.channels, input_spec.height, input_spec.width) == (4, 160, 96)
    model = create(request(name=name, pretrained=False), input_spec, 3, seed=0).model
    assert model(torch.zeros(1, 4, 160, 96)).shape == (1, 3)
    configured = request(name=name, pretrained=False, image_size=[48, 32])
    assert resolve_input(configured, stats).height == 48
