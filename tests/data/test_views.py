import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import UInt8
from PIL import Image

from kd_app.config import InputSpec, RequestError
from kd_app.data.crop import Crop
from kd_app.data.views import (
    CenterCropView,
    CropFlip,
    ImageView,
    ResizedCrop,
    View,
    compute_image_keys,
)

Array = UInt8[np.ndarray, "batch height width channels"]


@dataclass
class Pictures:
    """A `ViewInput` of images in memory."""

    items: list[Array]

    @property
    def size(self) -> tuple[int, int] | None:
        sizes = {item.shape[:2] for item in self.items}
        return next(iter(sizes)) if len(sizes) == 1 else None

    def to_array(self) -> Array:
        return np.stack(self.items)

    def iterate_images(self) -> Iterator[Image.Image]:
        yield from map(_to_image, self.items)

    def read_crop(self, position: int, crop: Crop) -> Image.Image:
        return crop.apply(_to_image(self.items[position]))


def _to_image(item: Array) -> Image.Image:
    return Image.fromarray(item if item.shape[2] == 3 else item[:, :, 0])


def input_spec(
    height: int, width: int | None = None, *, crop: float = 1.0, interpolation: str = "bilinear"
) -> InputSpec:
    return InputSpec(3, height, width or height, (0.5,) * 3, (0.5,) * 3, crop, interpolation)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def splitmix(state: int) -> int:
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def crop_resize(**changes: object) -> ResizedCrop:
    settings: Any = {"scale": (0.3, 1.0), "ratio": (0.75, 1.3333), "flip": True, "jitter": 0.3}
    return ResizedCrop(**{**settings, **changes})


@given(
    st.integers(0, 2**70),
    st.integers(-1, 10**6),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
)
def test_a_key_is_splitmix64_of_seed_view_and_index(
    seed: int, number: int, index: list[int]
) -> None:
    base = splitmix(splitmix(seed % 2**64) + number)
    assert compute_image_keys(seed, np.array(index), number).tolist() == [
        splitmix((base + i) % 2**64) for i in index
    ]


def test_splitmix64_has_its_published_first_number() -> None:
    assert splitmix(0) == 0xE220A8397B1DCDAF


@settings(max_examples=40)
@given(
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3]),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 1000),
)
def test_crop_flip_is_pad_then_crop_then_mirror(
    batch: int, height: int, width: int, channels: int, padding: int, flip: bool, number: int
) -> None:
    images, keys = (
        noise(batch, height, width, channels),
        compute_image_keys(3, np.arange(batch), number),
    )
    result = CropFlip(padding=padding, flip=flip)(
        Pictures(list(images)), keys, input_spec(height, width)
    )
    for image, key, got in zip(images, keys.tolist(), result, strict=True):
        top, left = (((key >> shift) % 2**21) * (2 * padding + 1) >> 21 for shift in (0, 21))
        expected = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))[
            top : top + height, left : left + width
        ]
        np.testing.assert_array_equal(got, expected[:, ::-1] if flip and key >> 63 else expected)


def test_crop_flip_reaches_every_place_and_both_mirrorings_equally_often() -> None:
    images = np.zeros((20_000, 5, 5, 1), dtype=np.uint8)
    images[:, 2, 2], images[:, 2, 3] = 1, 2
    result = CropFlip(padding=1, flip=True)(
        Pictures(list(images)), compute_image_keys(0, np.arange(len(images)), 0), input_spec(5)
    )
    counts = Counter(
        int((picture == 1).argmax()) * 2
        + int(picture.reshape(-1)[(picture == 1).argmax() + 1] == 2)
        for picture in result
    )
    assert len(counts) == 18
    assert (
        sum((count - 20_000 / 18) ** 2 / (20_000 / 18) for count in counts.values()) < 40.8
    )  # chi-square, 17 degrees, p = 0.001


def test_crop_flip_resizes_to_the_size_of_the_model() -> None:
    result = CropFlip(padding=2, flip=True)(
        Pictures([np.full((8, 8, 1), 200, dtype=np.uint8)] * 4),
        compute_image_keys(0, np.arange(4), 0),
        input_spec(20, 24),
    )
    assert result.shape == (4, 20, 24, 1)
    assert result.max() == 200


@pytest.mark.parametrize(
    "view",
    [CropFlip(padding=2, flip=True), crop_resize(), CenterCropView()],
    ids=lambda view: type(view).__name__,
)
def test_a_view_is_independent_of_the_batch_and_its_order(view: View) -> None:
    images, spec = list(noise(6, 12, 12, 3)), input_spec(12)
    index = np.arange(6)
    together = view(Pictures(images), compute_image_keys(1, index, 4), spec)
    order = [4, 1, 5]
    again = view(Pictures([images[i] for i in order]), compute_image_keys(1, index[order], 4), spec)
    np.testing.assert_array_equal(again, together[order])


@pytest.mark.parametrize(
    "view", [CropFlip(padding=2, flip=True), crop_resize()], ids=lambda view: type(view).__name__
)
@pytest.mark.parametrize(("seed", "number"), [(0, 1), (1, 0)])
def test_a_view_depends_on_seed_and_number(view: View, seed: int, number: int) -> None:
    images, index = Pictures(list(noise(6, 12, 12, 3))), np.arange(6)
    first, other = (
        view(images, compute_image_keys(*key), input_spec(12))
        for key in ((0, index, 0), (seed, index, number))
    )
    assert (first != other).any()


def test_a_view_of_single_images_keeps_the_global_generators() -> None:
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(1).item(), random.random()
    torch.manual_seed(5)
    random.seed(5)
    crop_resize()(
        Pictures(list(noise(2, 9, 9, 3))), compute_image_keys(0, np.arange(2), 0), input_spec(8)
    )
    assert (torch.rand(1).item(), random.random()) == expected


class Brightened(ImageView):
    def __init__(self, *, most: int) -> None:
        self.most = most

    def transform_image(self, image: Image.Image, input_spec: InputSpec) -> Image.Image:
        more = int(torch.randint(self.most, ())) + random.randrange(self.most)
        return image.resize((input_spec.width, input_spec.height)).point(lambda value: value + more)


def test_a_user_provided_view_is_replayed() -> None:
    images, spec = Pictures([np.zeros((5, 7, 3), dtype=np.uint8)] * 30), input_spec(4)
    keys = compute_image_keys(0, np.arange(30), 0)
    result = Brightened(most=50)(images, keys, spec)
    assert len(np.unique(result)) > 10
    np.testing.assert_array_equal(result, Brightened(most=50)(images, keys, spec))


class Unchanged(ImageView):
    def __init__(self) -> None:
        pass

    def transform_image(self, image: Image.Image, input_spec: InputSpec) -> Image.Image:
        return image


def test_a_view_with_a_wrong_output_size_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match=r"Unchanged.*\(7, 5\).*\(4, 4\)"):
        Unchanged()(
            Pictures([noise(5, 7, 3)]), compute_image_keys(0, np.arange(1), 0), input_spec(4)
        )


def timms_transform(image: Array, spec: InputSpec) -> Array:
    from timm.data.transforms_factory import create_transform

    size = (3, spec.height, spec.width)
    transform = create_transform(
        size,
        is_training=False,
        crop_pct=spec.crop,
        interpolation=spec.interpolation,
        use_prefetcher=True,
    )
    return np.asarray(transform(Image.fromarray(image))).transpose(1, 2, 0)


def plain(image: Array, spec: InputSpec) -> Array:
    other = noise(3, 3, 3)
    result: Array = CenterCropView()(
        Pictures([image, other]), compute_image_keys(0, np.arange(2), 0), spec
    )[0]
    return result


@settings(max_examples=40)
@given(
    st.integers(20, 80),
    st.integers(20, 80),
    st.tuples(st.integers(4, 19), st.integers(4, 40))
    | st.integers(4, 19).map(lambda side: (side, side)),
    st.floats(0.5, 1.0),
    st.sampled_from(["bilinear", "bicubic", "nearest", "lanczos"]),
)
def test_center_crop_is_timms_evaluation_transform(
    height: int, width: int, size: tuple[int, int], crop: float, interpolation: str
) -> None:
    image, spec = noise(height, width, 3), input_spec(*size, crop=crop, interpolation=interpolation)
    np.testing.assert_array_equal(plain(image, spec), timms_transform(image, spec))


@given(st.integers(3, 10), st.integers(50, 300), st.floats(0.5, 1.0), st.booleans())
def test_center_crop_differs_from_timm_by_two_roundings_on_strips(
    short: int, long: int, crop: float, upright: bool
) -> None:
    image, spec = (
        noise(*((long, short) if upright else (short, long)), 3),
        input_spec(12, crop=crop),
    )
    assert np.abs(plain(image, spec).astype(int) - timms_transform(image, spec)).max() <= 2


def test_center_crop_keeps_images_of_the_right_size() -> None:
    images = noise(3, 10, 10, 1)
    np.testing.assert_array_equal(
        CenterCropView()(
            Pictures(list(images)), compute_image_keys(0, np.arange(3), 0), input_spec(10, crop=0.8)
        ),
        images,
    )


def test_center_crop_and_resized_crop_accept_strips_and_tiny_images() -> None:
    images = Pictures([noise(3, 6, 3), noise(10, 10_000, 3), noise(2_000, 1, 3)])
    for view in (CenterCropView(), crop_resize()):
        assert view(
            images, compute_image_keys(0, np.arange(3), 0), input_spec(16, crop=0.9)
        ).shape == (
            3,
            16,
            16,
            3,
        )


def test_resized_crop_has_the_requested_area_and_ratio() -> None:
    ramp = np.stack(
        [*np.meshgrid(np.arange(200), np.arange(200)), np.zeros((200, 200))], axis=-1
    ).astype(np.uint8)
    view = crop_resize(scale=(0.2, 0.5), ratio=(0.5, 2.0), flip=False, jitter=0.0)
    result = view(
        Pictures([ramp] * 300), compute_image_keys(0, np.arange(300), 0), input_spec(50)
    ).astype(float)
    widths, heights = (
        (result[:, 25, -1, 0] - result[:, 25, 0, 0]) / 49 * 50,
        (result[:, -1, 25, 1] - result[:, 0, 25, 1]) / 49 * 50,
    )
    areas, ratios = widths * heights / 40_000, widths / heights
    assert 0.17 < areas.min() < 0.24
    assert 0.45 < areas.max() < 0.54
    assert areas.mean() == pytest.approx(0.35, abs=0.02)
    assert 0.45 < ratios.min() < 0.6
    assert 1.7 < ratios.max() < 2.1
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(("side", "least"), [(64, 0.85), (65, 0.35)])
def test_by_default_small_images_keep_more_of_themselves(side: int, least: float) -> None:
    ramp = np.stack(
        [*np.meshgrid(np.arange(side), np.arange(side)), np.zeros((side, side))], axis=-1
    ).astype(np.uint8)
    view = crop_resize(scale="auto", ratio="auto", flip=False, jitter=0.0)
    images, keys = Pictures([ramp] * 300), compute_image_keys(0, np.arange(300), 0)
    result = view(images, keys, input_spec(side)).astype(float)
    widths, heights = result[:, 9, -1, 0] - result[:, 9, 0, 0], np.ptp(result[:, :, 9, 1], axis=1)
    areas = (widths + 1) * (heights + 1) / side**2
    assert areas.min() == pytest.approx(least, abs=0.05)
    assert areas.max() == pytest.approx(1.0, abs=0.05)


def test_resized_crop_mirrors_half_of_the_images() -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (64, 1, 3))
    result = crop_resize(jitter=0.0)(
        Pictures([ramp] * 400), compute_image_keys(0, np.arange(400), 0), input_spec(8)
    ).astype(int)
    assert (result[:, 0, 0, 0] > result[:, 0, -1, 0]).mean() == pytest.approx(
        0.5, abs=4 * math.sqrt(0.25 / 400)
    )


def test_jitter_changes_the_brightness_of_each_image_by_its_own_factor() -> None:
    gray = np.full((8, 8, 3), 100, dtype=np.uint8)
    result = crop_resize(jitter=0.4)(
        Pictures([gray] * 200), compute_image_keys(0, np.arange(200), 0), input_spec(8)
    )
    assert result.min() in range(60, 66)
    assert result.max() in range(135, 141)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.3)},
        {"ratio": (2.0, 1.0)},
        {"jitter": 1.5},
        {"padding": 2},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        crop_resize(**wrong)


def test_an_unknown_interpolation_is_refused_with_the_closest_name() -> None:
    with pytest.raises(RequestError, match="Did you mean 'bicubic'"):
        CenterCropView()(
            Pictures([noise(5, 7, 3)]),
            compute_image_keys(0, np.arange(1), 0),
            input_spec(4, interpolation="bicubik"),
        )
