import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from torch import Tensor

from kd_app.config import InputSpec, RequestError
from kd_app.config.compose import compose_config
from kd_app.config.paths import list_choices
from kd_app.data.batch import Batch
from kd_app.data.images import BadImageError
from kd_app.data.module import ImageData
from kd_app.data.source import Listing, Source
from kd_app.data.views import CenterCropView, CropFlip, ResizedCrop

GRAY = InputSpec(1, 6, 6, (0.5,), (0.5,))
PER_CLASS = 20


class Arrays(Source):
    """60 gray images of 6x6 in memory, three classes."""

    channels = 1
    size: int | None = 6

    def __init__(self, *, images: int) -> None:
        self.images = images

    def list_images(self) -> Listing:
        files = tuple(f"{number:03d}" for number in range(self.images))
        none = ("",) * self.images
        return Listing(
            ("a", "b", "c"), files, np.arange(self.images) % 3, none, none, fingerprint="f" * 64
        )

    def store(self) -> Tensor | None:
        return torch.from_numpy(
            np.random.default_rng(0).integers(0, 256, (self.images, 1, 6, 6), dtype=np.uint8)
        )

    def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
        raise NotImplementedError


class Files(Arrays):
    """60 color images of several sizes; reading those in `bad` fails."""

    channels = 3
    size: int | None = None

    def __init__(self, *, root: Path, bad: tuple[int, ...]) -> None:
        super().__init__(images=60)
        self.root = root
        self.bad = bad

    def store(self) -> None:
        return None

    def read(self, index: int, *, shorter_side: int | None = None) -> Image.Image:
        if index in self.bad:
            raise BadImageError(f"{self.root}/{index:03d} is truncated")
        shape = (40 + index % 3, 36 + index % 5, 3)
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8))


def build_images(source: Callable[..., Source], **changes: Any) -> ImageData:
    settings: dict[str, Any] = {
        "source": source,
        "root": None,
        "view": CropFlip(padding=1, flip=True),
        "batch_size": 8,
        "num_workers": 0,
        "cache": "ram",
        "on_error": "raise",
        "decoder": "exact",
        "seed": 0,
        "image_size": None,
        "split": {"validation": 0.1, "test": 0.2},
        "views": None,
        "label_fraction": None,
        "unlabeled": None,
        "mix": None,
        "augment": None,
    }
    return ImageData(**{**settings, **changes})


def arrays(**changes: Any) -> ImageData:
    data = build_images(partial(Arrays, images=60), **changes)
    data.list()
    data.load(None)
    return data


def files(
    folder: Path, *, bad: tuple[int, ...] = (), decode_size: int = 32, **changes: Any
) -> ImageData:
    view = ResizedCrop(scale=(0.3, 1.0), ratio=(0.7, 1.4), flip=True, jitter=0.0)
    data = build_images(
        partial(Files, bad=bad), **{"root": Path("photos"), "view": view, **changes}
    )
    data.list()
    scan = data.scan_job(decode_size)
    assert scan is not None
    if not (folder / "scan.json").exists():
        scan.run(folder, lambda done, total: None)
    data.load(folder)
    return data


def subfolder(parent: Path, name: str) -> Path:
    (parent / name).mkdir(exist_ok=True)
    return parent / name


def test_construction_reads_no_data() -> None:
    class Untouched(Arrays):
        def list_images(self) -> Listing:
            raise AssertionError("read")

        def store(self) -> Tensor:
            raise AssertionError("read")

    assert build_images(partial(Untouched, images=6)).batch_size == 8


def test_the_fingerprint_covers_what_determines_the_pixels(tmp_path: Path) -> None:
    folder = partial(subfolder, tmp_path)
    reference = files(folder("a")).fingerprint
    assert (
        files(
            folder("b"), cache="none", num_workers=2, batch_size=3, root=Path("elsewhere")
        ).fingerprint
        == reference
    )
    others = [
        files(folder("a"), seed=1),
        files(folder("a"), split={"validation": 0.2, "test": 0.2}),
        files(folder("c"), decode_size=20),
        files(folder("d"), bad=(3,), on_error="skip"),
    ]
    assert len({reference, *(data.fingerprint for data in others)}) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_in_every_cache_mode(tmp_path: Path, workers: int) -> None:
    input_spec = InputSpec(3, 16, 16, (0.5,) * 3, (0.5,) * 3, crop=0.9)
    results = []
    for cache in ("ram", "disk", "none"):
        data = files(subfolder(tmp_path, cache), cache=cache, num_workers=workers)
        data.bind(input_spec, order_seed=4)
        results.append(
            [
                batch.image
                for loader in (
                    data.train_dataloader(),
                    data.build_evaluation_loader("test", input_spec),
                )
                for batch in loader
            ]
        )
    assert len(results[0]) == 5 + 2
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_evaluation_has_the_size_and_channels_of_the_model_in_row_order() -> None:
    data = arrays()
    batches = list(
        data.build_evaluation_loader(
            "test", InputSpec(3, 9, 7, (0.5,) * 3, (0.5,) * 3), batch_size=5
        )
    )
    assert [tuple(batch.image.shape) for batch in batches] == [
        (5, 3, 9, 7),
        (5, 3, 9, 7),
        (2, 3, 9, 7),
    ]
    assert torch.cat([batch.index for batch in batches]).tolist() == data.list_rows("test").tolist()
    assert len(list(data.build_evaluation_loader("test", GRAY))) == 2


def test_the_order_depends_on_the_order_seed_and_views_on_the_data_seed() -> None:
    def first(order_seed: int, seed: int) -> Batch:
        data = arrays(seed=seed)
        data.bind(GRAY, order_seed=order_seed)
        return next(iter(data.train_dataloader()))

    assert first(1, 0).index.tolist() == first(1, 0).index.tolist() != first(2, 0).index.tolist()
    image = first(1, 0).image
    assert torch.equal(first(1, 0).image, image)
    assert not torch.equal(first(1, 9).image, image)


def test_loaders_before_bind_raise_an_error() -> None:
    with pytest.raises(RequestError, match=r"data\.bind"):
        arrays().train_dataloader()


def test_bind_refuses_a_view_that_does_not_fit_the_images(tmp_path: Path) -> None:
    data = files(tmp_path, view=CropFlip(padding=1, flip=True))
    with pytest.raises(RequestError, match=r"differ in size.*data\.view"):
        data.bind(GRAY, order_seed=0)


def test_files_without_a_scan_raise_an_error() -> None:
    with pytest.raises(RequestError, match=r"data\.scan_job"):
        build_images(partial(Files, bad=()), root=Path("photos"), view=CenterCropView()).setup(
            "fit"
        )


def test_a_root_for_data_that_reads_no_folder_is_refused() -> None:
    with pytest.raises(RequestError, match=r"data\.root=photos has no effect"):
        build_images(partial(Arrays, images=6), root=Path("photos"))


def test_a_missing_root_is_named_in_the_message() -> None:
    with pytest.raises(RequestError, match=r"Set data\.root"):
        build_images(partial(Files, bad=()))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_workers": -1}, "num_workers"),
        ({"cache": "rom"}, "'ram', 'disk' or 'none'"),
        ({"on_error": "ignore"}, "'raise' or 'skip'"),
        ({"split": {"validation": 1.5, "test": 0.2}}, r"split\.validation=1\.5"),
        ({"split": {"validation": 0.1, "tset": 0.2}}, "tset"),
        ({"image_size": 0}, "image_size"),
        ({"imagesize": 3}, "Did you mean 'image_size'"),
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build_images(partial(Arrays, images=6), **wrong)


@pytest.mark.parametrize(
    "remake",
    [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))],
    ids=["copied", "pickled"],
)
def test_copied_or_pickled_data_has_the_same_batches(
    remake: Callable[[ImageData], ImageData],
) -> None:
    data = arrays()
    data.bind(GRAY, order_seed=4)
    again = remake(data)
    assert torch.equal(
        next(iter(again.train_dataloader())).image, next(iter(data.train_dataloader())).image
    )


def settings_of(name: str) -> Any:
    """Return the arguments of the data module in a data group."""
    config = compose_config("distill", [f"data={name}"])["data"]
    others = ("name", "presets", "license", "refit", "judge")
    return {key: value for key, value in config.items() if key not in others}


def test_every_data_configuration_can_be_built(tmp_path: Path) -> None:
    names = list_choices("data")
    assert set(names) >= {"csv", "digits", "digits_few_labels", "fashion_mnist", "folder", "timm"}
    for name in names:
        config = settings_of(name)
        config["root"] = None if name.startswith("digits") else str(tmp_path)
        data = instantiate(config)
        assert isinstance(data, ImageData)
        assert data.batch_size == (128 if "digits" in name or name == "fashion_mnist" else 64)
        assert (
            data.index.cache,
            data.index.on_error,
            data.loaders.num_workers,
            data.index.seed,
        ) == (
            "ram",
            "raise",
            "auto",
            0,
        )


def test_the_digits_are_built_from_their_configuration() -> None:
    data = instantiate(settings_of("digits"))
    data.setup("fit")
    data.bind(InputSpec(1, 8, 8, (0.5,), (0.5,)), order_seed=0)
    batch = next(iter(data.train_dataloader()))
    assert (tuple(batch.image.shape), sum(data.sizes.values())) == ((128, 1, 8, 8), 1797)


def test_the_smallest_label_fraction_keeps_one_label_per_class() -> None:
    assert len(arrays(label_fraction=1e-6).index.labeled_rows) == 3
    whole = arrays(label_fraction=1)
    whole.bind(GRAY, order_seed=0)
    assert len(whole.index.labeled_rows) == len(whole.index.training_rows)
    assert next(iter(whole.train_dataloader())).labeled is None
    assert whole.notes == arrays().notes


def test_a_batch_of_more_images_than_there_are_is_one_step_of_all() -> None:
    data = arrays(batch_size=1000)
    images = len(data.index.training_rows)
    data.bind(GRAY, order_seed=0)
    (batch,) = data.train_dataloader()
    assert len(batch.image) == images
    assert data.count_steps_per_epoch(1) == (1, 1)
    assert data.notes == ()


def test_metrics_use_all_labels_and_training_samples_labeled_images_only() -> None:
    data = arrays(label_fraction=0.2)
    measured = list(data.build_evaluation_loader("train", GRAY))
    assert all(batch.labeled is None and bool((batch.target >= 0).all()) for batch in measured)
    sampled = torch.cat([batch.index for batch in data.sample("train", GRAY, 1000)])
    assert sampled.tolist() == data.index.labeled_rows.tolist()


@pytest.mark.parametrize("epoch", [0, 3])
def test_views_repeat_and_can_be_replayed(epoch: int) -> None:
    data = arrays(views=2)
    data.bind(GRAY, order_seed=4)
    loader = data.train_dataloader()
    loader.position = lambda: (epoch, 0)
    training_images = {
        number: image
        for batch in loader
        for number, image in zip(batch.index.tolist(), batch.image, strict=True)
    }
    replay = data.replay(GRAY)
    assert replay is not None
    replayed_images = {
        n: image
        for batch in replay.batches(epoch % 2, replay.rows)
        for n, image in zip(batch.index.tolist(), batch.image, strict=True)
    }
    assert list(replayed_images) == data.index.training_rows.tolist()
    assert all(
        torch.equal(image, replayed_images[number]) for number, image in training_images.items()
    )
