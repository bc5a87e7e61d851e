"""Batches of a user's loaders: order, labels and images that are right, or refused."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from kd_app.config import InputSpec, RequestError
from tests.data.test_external import Loader, Module, gather, images, serve


def build_shuffled_module(split: str, generator: torch.Generator | None = None) -> Module:
    module = Module()
    module.loaders[split] = DataLoader(module.sets[split], 4, shuffle=True, generator=generator)
    return module


@pytest.mark.parametrize("own", [False, True])
def test_a_shuffled_validation_has_the_same_order_each_time(own: bool) -> None:
    """Predictions of several models are compared image by image."""
    data = serve(
        build_shuffled_module("validation", torch.Generator().manual_seed(3) if own else None)
    )
    first, targets, _ = gather(data.val_dataloader())
    for _ in range(2):
        again, _, index = gather(data.build_evaluation_loader("validation", None))
        assert torch.equal(again, first)
        assert index.tolist() == list(range(7))
    expected = data.list_targets("validation")
    assert expected is not None
    assert targets.tolist() == expected.tolist()


class Unstable(Loader):
    """Every reading begins with another image."""

    def __iter__(self) -> Iterator[Any]:
        self.batches = (*self.batches[1:], self.batches[0])
        return iter(self.batches)


def test_an_order_that_changes_is_refused() -> None:
    batches = [(images(2), torch.tensor([first, 1])) for first in (0, 1, 2)]
    with pytest.raises(RequestError, match=r"test loader .*other images when it is read again"):
        serve(test=Unstable(*batches))


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter([(torch.full((3, 8, 8), float(i)), i % 3) for i in range(self.count)])


def test_a_stream_can_be_measured_but_not_trained_on_without_a_length() -> None:
    data = serve(validation=DataLoader(Stream(7), 4), test=DataLoader(Stream(5), 4))
    assert data.sizes["validation"] == 7
    assert len(data.val_dataloader()) == 2
    with pytest.raises(
        RequestError, match=r"train loader .* has no length.*Give the dataset a __l"
    ):
        serve(train=DataLoader(Stream(12), 4))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32])
def test_class_numbers_of_any_type_become_integers(dtype: torch.dtype) -> None:
    target = torch.tensor([0, 2], dtype=dtype)
    column = target if target.is_floating_point() else target[:, None]
    data = serve(train=Loader((images(2), target)), test=Loader((images(2), column)))
    (_, read), *_ = data.train_dataloader()
    assert read.dtype == torch.int64
    assert read.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([-1, 0]), r"is -1, which is no class\. Expected: class numbers \[B\] from 0"),
        (torch.tensor([0.5, 1.0]), r"is 0\.5, which is no class number"),
        (torch.tensor([0]), r"images of shape \(2, 3, 8, 8\) and targets of shape \(1,\)"),
    ],
)
def test_targets_that_are_no_classes_are_refused(target: Tensor, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        serve(train=Loader((images(2), target)))


def test_labels_beyond_the_named_classes_are_refused() -> None:
    module = Module(classes=3)
    module.classes = ["cat", "dog"]  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match="is 2, but there are 2 classes"):
        serve(module)
    late = Loader((images(2), torch.tensor([0, 1])), (images(2), torch.tensor([1, 9])))
    data = serve(train=late, classes=2)
    with pytest.raises(RequestError, match="is 9, but there are 2 classes"):
        list(data.train_dataloader())


def test_a_module_that_fails_is_a_wrong_request() -> None:
    class NoTest(Module):
        def setup(self, stage: str) -> None:
            raise FileNotFoundError("photos.h5")

    with pytest.raises(
        RequestError, match=r"NoTest failed in setup\('fit'\): FileNotFoundError: photos.h5\."
    ):
        serve(NoTest())


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_may_have_any_shape_that_the_model_has(channels: int) -> None:
    batch = (torch.zeros(2, channels, 48, 20), torch.tensor([0, 1]))
    loader = Loader(batch)
    data = serve(train=loader, validation=loader, test=loader)
    assert (data.channels, data.size, data.width) == (channels, 48, 20)
    statistics = (0.0,) * channels, (1.0,) * channels
    data.bind(InputSpec(channels, 48, 20, *statistics), order_seed=0)
    with pytest.raises(RequestError, match=rf"{channels}x48x20 images.*image_size=\[48,20\]"):
        data.bind(InputSpec(channels, 48, 48, *statistics), order_seed=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_images_of_any_precision_get_that_of_the_weights(dtype: torch.dtype) -> None:
    batches = [(images(2).to(dtype), torch.tensor([0, 1]))]
    data = serve(train=Loader(*batches), test=Loader(*batches))
    assert next(iter(data.train_dataloader()))[0].dtype == torch.float32
    assert gather(data.build_evaluation_loader("test", None))[0].dtype == torch.float32


def test_images_with_the_channels_last_are_refused() -> None:
    with pytest.raises(RequestError, match=r"\[B, H, W, C\].*image.permute\(0, 3, 1, 2\)"):
        serve(train=Loader((torch.zeros(2, 8, 8, 3), torch.tensor([0, 1]))))


def test_images_that_are_not_normalized_are_noted() -> None:
    batch = (images(2) * 100 + 100, torch.tensor([0, 1]))
    assert "Normalized images have values of about -3 to 3" in serve(train=Loader(batch)).notes[0]


def test_the_same_images_to_choose_by_and_to_test_on_are_noted() -> None:
    module = Module()
    module.loaders["test"] = module.loader("validation")
    (note,) = serve(module).notes
    assert note.startswith("7 images are in the validation and in the test loader")
    module.loaders["test"] = Loader((images(2) + 9, torch.tensor([0, 1])))
    assert serve(module).notes == ()


def test_classes_that_only_validation_or_test_have_are_noted() -> None:
    module = Module(classes=5)
    some = Subset(module.sets["train"], [0, 1, 2, 5, 6, 7])
    module.loaders["train"] = DataLoader(some, 2)
    assert any(
        "have images of '3', '4', but train has none" in note for note in serve(module).notes
    )
    module.loaders["train"] = Loader(*DataLoader(some, 2))
    assert not any("train has none" in note for note in serve(module).notes)


@pytest.mark.parametrize(
    "names", [["b", "a"], {"a": 1, "b": 0}, {1: "a", 0: "b"}, np.array(["b", "a"])]
)
def test_class_names_are_read_in_the_order_of_the_numbers(names: Any) -> None:
    module = Module(classes=2)
    module.class_names = names
    assert serve(module).classes == ("b", "a")


@pytest.mark.parametrize("names", [{"a", "b"}, "ab", {"a": 1, "b": 2}, {0: "a", 2: "b"}])
def test_class_names_without_an_order_are_refused(names: Any) -> None:
    module = Module(classes=2)
    module.class_names = names
    with pytest.raises(RequestError, match="Expected: a list of their names in the order"):
        serve(module)


def test_other_images_with_the_same_labels_are_other_data() -> None:
    batch = (images(2), torch.tensor([0, 1]))
    first = serve(test=Loader(batch)).fingerprint
    assert serve(test=Loader(batch)).fingerprint == first
    assert serve(test=Loader((batch[0] + 1, batch[1]))).fingerprint != first
    more = serve(test=Loader(batch), train=Loader(*DataLoader(Module().sets["train"], 4), batch))
    assert more.fingerprint != first


def test_pixels_that_change_with_each_reading_are_noted() -> None:
    class Random(Loader):
        def __iter__(self) -> Iterator[Any]:
            return iter((torch.rand(2, 3, 8, 8), torch.tensor([0, 1])) for _ in range(2))

    (note,) = serve(test=Random(None, None)).notes[:1]
    assert "test loader of the data module gives other pixels when it is read again" in note
