"""Batches of a user's loaders: their order, their numbers, and their kind."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kd_app.config import RequestError
from kd_app.data.batch import Batch
from kd_app.data.targets import check_target
from kd_app.data.worker_loader import iterate_workers

_CHANNELS = (1, 3, 4)
_UNUSUAL = 50.0
"""Largest value from which images are not normalized; 8-bit images reach 255."""


@dataclass
class OrderedLoader:
    """The batches of a loader, in an order that `seed` determines.

    seed: called at the start of each iteration. num_classes: None if unknown. Targets
    that are not one label raise `RequestError`.
    """

    loader: Iterable[Any]
    seed: Callable[[], int]
    num_classes: int | None = None

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for item in _start_loader(self.loader, self.seed()):
            yield self._check(item)

    def _check(self, item: Any) -> Any:
        if isinstance(item, Batch):
            return check_batch(item, "train", self.num_classes)
        image, target = split_item(item)
        return image, check_target(target, None, self.num_classes, where="train")


def _start_loader(loader: Iterable[Any], seed: int) -> Iterator[Any]:
    """Yield the loader's items, with the shuffling seeded by `seed`."""
    # A loader draws its order before the first item, so the seed is set until then.
    own = _list_generators(loader)
    states = [generator.get_state() for generator in own]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for generator in own:
            generator.manual_seed(seed)
        iterator = iterate_workers(loader) if isinstance(loader, DataLoader) else iter(loader)
        first = list(islice(iterator, 1))
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)
    yield from first
    yield from iterator


def _list_generators(loader: Any) -> list[torch.Generator]:
    """The generators from which a loader draws its order, in place of torch's own."""
    parts = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    generators = [getattr(part, "generator", None) for part in parts]
    return list({id(each): each for each in generators if each is not None}.values())


@dataclass
class NumberedLoader:
    """The batches of a loader as `Batch`, with the images numbered in their order.

    num_classes: None if unknown. length: the number of batches, for a loader that does
    not know it. Targets that are not one label raise `RequestError`.
    """

    loader: Iterable[Any]
    split: str
    num_classes: int | None = None
    length: int | None = None

    def __len__(self) -> int:
        return self.length or len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        start = 0
        for item in _start_loader(self.loader, seed=0):
            batch = (
                item
                if isinstance(item, Batch)
                else Batch(*split_item(item), index=torch.arange(start, start + len(item[0])))
            )
            start += len(batch)
            yield check_batch(batch, self.split, self.num_classes)


def check_batch(batch: Batch, split: str, num_classes: int | None) -> Batch:
    """Return the batch with converted images and checked targets. Only images of train
    may lack a label.
    """
    labeled = batch.labeled if split == "train" else None
    target = check_target(batch.target, labeled, num_classes, where=split)
    image = convert_images(batch.image)
    is_same = target is batch.target and image is batch.image
    return batch if is_same else replace(batch, image=image, target=target)


def split_item(item: Any) -> tuple[Tensor, Tensor]:
    """Images and targets of a batch; raises `RequestError` for another kind."""
    if not (
        isinstance(item, list | tuple)
        and len(item) == 2
        and all(isinstance(part, Tensor) for part in item)
    ):
        raise RequestError(
            f"A batch of the data module is of type {type(item).__name__}. Expected: (image,"
            " target), two tensors. Change the data module."
        )
    image, target = convert_images(item[0]), item[1]
    if len(image) != len(target) or target.dim() not in (1, 2):
        raise RequestError(
            f"A batch of the data module has images of shape {tuple(image.shape)} and targets of"
            f" shape {tuple(target.shape)}. Expected: one class number [B] or one row of class"
            " shares [B, K] for each image. Change the data module."
        )
    return image, target


def check_images(image: Tensor) -> None:
    """Raise `RequestError` for images that are not normalized floats [B, C, H, W]."""
    if image.dim() != 4 or not image.is_floating_point():
        raise RequestError(
            f"The data module provides images of shape {tuple(image.shape)} and type"
            f" {image.dtype}. Expected: float images [B, C, H, W], normalized for the student."
            " Change the data module."
        )
    _, channels, height, width = image.shape
    if width in _CHANNELS and channels > max(_CHANNELS) and height > max(_CHANNELS):
        raise RequestError(
            f"The data module provides images of shape {tuple(image.shape)}, which seems to be"
            f" [B, H, W, C]: {channels} channels, {width} pixels wide. Expected: [B, C, H, W]."
            " Change the data module: image.permute(0, 3, 1, 2)."
        )


def note_values(image: Tensor) -> tuple[str, ...]:
    """Return a note about images that can't be normalized: values up to 255."""
    largest = float(image.abs().max()) if image.numel() else 0.0
    if not _UNUSUAL < largest < float("inf"):
        return ()
    return (
        f"The images of the data module have values up to {largest:,.0f}. Normalized images have"
        " values of about -3 to 3: subtract the mean of the images and divide by their deviation.",
    )


def convert_images(image: Tensor) -> Tensor:
    """Return images of 16 or 64 bits in the 32 bits of the weights."""
    return image.float() if image.is_floating_point() else image


def read_class_names(module: Any) -> tuple[str, ...]:
    """Return the `classes` or `class_names` of a data module: a sequence, or a dict of
    names by number or of numbers by name; nothing without them.
    """
    names = getattr(module, "classes", None)
    names = getattr(module, "class_names", None) if names is None else names
    if isinstance(names, Mapping):
        is_by_name = all(isinstance(number, int) for number in names.values())
        numbers = {n: name for name, n in names.items()} if is_by_name else dict(names)
        if set(numbers) == set(range(len(names))):
            return tuple(str(numbers[number]) for number in range(len(numbers)))
    elif names is None or not isinstance(names, str | set | frozenset):
        return () if names is None else tuple(map(str, names))
    raise RequestError(
        f"The classes of the data module {type(module).__name__} are {names!r}. Expected: a list"
        " of their names in the order of the class numbers, or a dict of name -> number from 0."
    )


def hash_images(image: Tensor) -> list[bytes]:
    """Return the sha256 of each image of a batch."""
    return [hashlib.sha256(each.tobytes()).digest() for each in image.cpu().numpy()]


def hash_repeated(first: Batch, again: Batch) -> bytes:
    """Return images and targets of a batch, as far as a second reading has the same."""
    digest = hashlib.sha256()
    for one, other in ((first.image, again.image), (first.target, again.target)):
        if torch.equal(one, other):
            digest.update(one.cpu().numpy().tobytes())
    return digest.digest()


class ImageNumbers(Sequence[str]):
    """Image numbers as text, in place of file names."""

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, number: Any) -> Any:
        return str(number)
