import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from kd_app.config import InputSpec, RequestError
from kd_app.data.corruptions import KINDS, SETTINGS, Corrupted, Corruption, Kind, RobustnessSettings
from kd_app.data.pixel_store import HeldStore, ImageSelection
from kd_app.data.views import CenterCropView, compute_image_keys

ALL = [Corruption(kind, severity) for kind in KINDS for severity in range(1, 6)]


def photo(side: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Build an image of soft shapes with some detail, similar to a photograph."""
    rng = np.random.default_rng(seed)
    rough = gaussian_filter(rng.standard_normal((side, side, channels)), (side / 14, side / 14, 0))
    fine = gaussian_filter(rng.standard_normal((side, side, channels)), (0.7, 0.7, 0))
    mixed = rough / rough.std() + 0.3 * fine / fine.std()
    picture: np.ndarray = np.clip(127 + 45 * mixed, 0, 255).astype(np.uint8)
    return picture


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean((one.astype(float) - other) ** 2)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_grows_with_severity_and_keeps_the_image_recognizable(
    kind: Kind, side: int, channels: int
) -> None:
    picture = photo(side, channels)
    corrupted = [Corruption(kind, severity)(picture, 7) for severity in range(1, 6)]
    for each in corrupted:
        assert each.shape == picture.shape
        assert each.dtype == np.uint8
    distances = [distance(each, picture) for each in corrupted]
    assert distances == sorted(distances)
    assert distances[0] > 0.5
    assert np.corrcoef(corrupted[4].ravel(), picture.ravel())[0, 1] > 0.5


@settings(max_examples=15)
@given(
    key=st.integers(0, 2**64 - 1),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
)
def test_a_corruption_is_a_function_of_image_and_key(
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


def test_noise_depends_on_the_key_and_has_the_documented_deviation() -> None:
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
def test_the_blur_is_a_gaussian_of_the_documented_width(side: int) -> None:
    picture = photo(side)
    for severity in (1, 3, 5):
        sigma = SETTINGS["gaussian_blur"][severity - 1] * side**0.5
        expected = gaussian_filter(picture.astype(float), (sigma, sigma, 0), mode="nearest")
        result = Corruption("gaussian_blur", severity)(picture, 0)
        np.testing.assert_allclose(result, expected, atol=0.51)


def test_brightness_contrast_jpeg_and_pixelate_follow_their_formulas() -> None:
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


def test_models_of_all_sizes_see_the_same_corrupted_image() -> None:
    pictures = np.stack([photo(48, seed=seed) for seed in range(4)])
    store = HeldStore(pictures.reshape(-1), np.full((4, 2), 48), 3)
    index = np.arange(4)
    keys = compute_image_keys(0, index, -1)
    corruption = Corruption("gaussian_noise", 4)
    corrupted = [
        corruption(picture, key) for picture, key in zip(pictures, keys.tolist(), strict=True)
    ]
    for side in (24, 48):
        input_spec = InputSpec(3, side, side, (0.5,) * 3, (0.5,) * 3)
        expected = [
            np.asarray(CenterCropView().transform_image(Image.fromarray(each), input_spec))
            for each in corrupted
        ]
        result = Corrupted(corruption)(ImageSelection(store, index), keys, input_spec)
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(
            Corrupted(corruption)(ImageSelection(store, index[2:]), keys[2:], input_spec),
            result[2:],
        )


@pytest.mark.parametrize(
    ("corruptions", "severities", "message"),
    [
        (["fog"], [1], "robustness: corruptions.0='fog' does not fit: expected 'gaussian_noise'"),
        (["jpeg"], [0], "robustness: severities.0=0 does not fit"),
        (["jpeg"], [6], "robustness: severities.0=6 does not fit"),
        (["jpeg"], [], "needs at least one severity"),
        (["jpeg", "jpeg"], [1], "lists a value twice"),
        (["jpeg"], [2, 2], "lists a value twice"),
    ],
)
def test_invalid_corruptions_and_severities_are_refused_by_name(
    corruptions: list[Kind], severities: list[int], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        RobustnessSettings(corruptions=corruptions, severities=severities)
    assert RobustnessSettings(corruptions=[], severities=[1, 3]).chosen == ()
