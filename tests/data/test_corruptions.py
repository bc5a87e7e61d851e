import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from kd_app.config import InputSpec, RequestError
from kd_app.data.corruptions import KINDS, SETTINGS, Corrupted, Corruption, Kind, Robustness
from kd_app.data.pixel_store import HeldStore, ImageSelection
from kd_app.data.views import CenterCropView, compute_image_keys

ALL = [Corruption(kind, severity) for kind in KINDS for severity in range(1, 6)]


def photo(side: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Soft shapes with some detail, as photographs have."""
    rng = np.random.default_rng(seed)
    rough = gaussian_filter(rng.standard_normal((side, side, channels)), (side / 14, side / 14, 0))
    fine = gaussian_filter(rng.standard_normal((side, side, channels)), (0.7, 0.7, 0))
    mixed = rough / rough.std() + 0.3 * fine / fine.std()
    made: np.ndarray = np.clip(127 + 45 * mixed, 0, 255).astype(np.uint8)
    return made


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean((one.astype(float) - other) ** 2)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_is_worse_at_each_severity_and_leaves_something_to_be_seen(
    kind: Kind, side: int, channels: int
) -> None:
    picture = photo(side, channels)
    made = [Corruption(kind, severity)(picture, 7) for severity in range(1, 6)]
    for each in made:
        assert each.shape == picture.shape
        assert each.dtype == np.uint8
    distances = [distance(each, picture) for each in made]
    assert distances == sorted(distances)
    assert distances[0] > 0.5
    assert np.corrcoef(made[4].ravel(), picture.ravel())[0, 1] > 0.5


@settings(max_examples=15, deadline=None)
@given(
    key=st.integers(0, 2**64 - 1),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
)
def test_any_image_in_any_corruption_is_a_function_of_the_image_and_its_key(
    key: int, height: int, width: int, channels: int
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    before = picture.copy()
    picture.setflags(write=False)
    for corruption in ALL:
        one, again = corruption(picture, key), corruption(picture, key)
        np.testing.assert_array_equal(one, again)
        assert one.shape == picture.shape
    np.testing.assert_array_equal(picture, before)


def test_the_noise_of_an_image_is_its_own_and_has_the_deviation_that_is_told() -> None:
    gray = np.full((224, 224, 3), 128, dtype=np.uint8)
    for severity, sigma in enumerate(SETTINGS["gaussian_noise"][:3], start=1):
        noise = Corruption("gaussian_noise", severity)(gray, 1).astype(float) - 128
        assert noise.std() == pytest.approx(255 * sigma, rel=0.02)
        assert abs(noise.mean()) < 0.3
    assert (
        distance(Corruption("gaussian_noise", 1)(gray, 1), Corruption("gaussian_noise", 1)(gray, 2))
        > 5
    )


@pytest.mark.parametrize("side", [28, 224])
def test_the_blur_is_a_gaussian_of_the_width_that_is_told(side: int) -> None:
    picture = photo(side)
    for severity in (1, 3, 5):
        sigma = SETTINGS["gaussian_blur"][severity - 1] * side**0.5
        expected = gaussian_filter(picture.astype(float), (sigma, sigma, 0), mode="nearest")
        found = Corruption("gaussian_blur", severity)(picture, 0)
        np.testing.assert_allclose(found, expected, atol=0.51)


def test_brightness_contrast_jpeg_and_pixelate_do_what_they_say() -> None:
    picture = photo(28)
    np.testing.assert_array_equal(
        Corruption("brightness", 2)(picture, 0), np.minimum(picture.astype(int) + 51, 255)
    )
    flat = Corruption("contrast", 5)(picture, 0)
    mean = picture.mean(axis=(0, 1))
    np.testing.assert_allclose(flat, mean + 0.15 * (picture - mean), atol=0.51)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "jpeg", quality=25)
    np.testing.assert_array_equal(Corruption("jpeg", 3)(picture, 0), np.asarray(Image.open(file)))
    coarse = Corruption("pixelate", 3)(picture, 0)
    np.testing.assert_array_equal(coarse, coarse[::2, ::2].repeat(2, 0).repeat(2, 1))
    np.testing.assert_allclose(
        coarse[::2, ::2], picture.reshape(14, 2, 14, 2, 3).mean(axis=(1, 3)), atol=1.01
    )


def test_models_of_all_sizes_are_shown_the_same_corrupted_image_and_the_batch_changes_nothing() -> (
    None
):
    pictures = np.stack([photo(48, seed=seed) for seed in range(4)])
    store = HeldStore(pictures.reshape(-1), np.full((4, 2), 48), 3)
    index = np.arange(4)
    keys = compute_image_keys(0, index, -1)
    corruption = Corruption("gaussian_noise", 4)
    spoiled = [
        corruption(picture, key) for picture, key in zip(pictures, keys.tolist(), strict=True)
    ]
    for side in (24, 48):
        pixels = InputSpec(3, side, side, (0.5,) * 3, (0.5,) * 3)
        expected = [
            np.asarray(CenterCropView().transform_image(Image.fromarray(each), pixels))
            for each in spoiled
        ]
        found = Corrupted(corruption)(ImageSelection(store, index), keys, pixels)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(
            Corrupted(corruption)(ImageSelection(store, index[2:]), keys[2:], pixels), found[2:]
        )


@pytest.mark.parametrize(
    ("corruptions", "severities", "said"),
    [
        (["fog"], [1], "robustness: corruptions.0='fog' does not fit: expected 'gaussian_noise'"),
        (["jpeg"], [0], "robustness: severities.0=0 does not fit"),
        (["jpeg"], [6], "robustness: severities.0=6 does not fit"),
        (["jpeg"], [], "at no severity"),
        (["jpeg", "jpeg"], [1], "has one of them twice"),
        (["jpeg"], [2, 2], "has one of them twice"),
    ],
)
def test_what_is_no_corruption_or_no_severity_is_refused_by_name(
    corruptions: list[Kind], severities: list[int], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        Robustness(corruptions=corruptions, severities=severities)
    assert Robustness(corruptions=[], severities=[1, 3]).chosen == ()
