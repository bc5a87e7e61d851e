"""Batches of a user's loaders: their order, their numbers, and their kind."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from kd_app.config import RequestError
from kd_app.data.batch import Batch


@dataclass
class OrderedLoader:
    """The batches of a loader, in an order that `seed` determines.

    seed: called at the start of each iteration. num_classes: larger labels raise
    `RequestError`; None: not checked.
    """

    loader: Iterable[Any]
    seed: Callable[[], int]
    num_classes: int | None = None

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for item in _start_loader(self.loader, self.seed()):
            yield item if isinstance(item, Batch) else self._check(*split_item(item))

    def _check(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.num_classes is not None and target.dim() == 1 and len(target):
            largest = int(target.max())
            if largest >= self.num_classes:
                raise RequestError(
                    f"The train loader of the data module has the label {largest}, but there are"
                    f" {self.num_classes} classes. Set the attribute `classes` of the data module"
                    " to the names of all classes, or correct the labels."
                )
        return image, target


def _start_loader(loader: Iterable[Any], seed: int) -> Iterator[Any]:
    """Yield the loader's items, with the shuffling seeded by `seed`."""
    # A loader draws its order before the first item, so the seed is set until then.
    own = _list_generators(loader)
    states = [generator.get_state() for generator in own]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for generator in own:
            generator.manual_seed(seed)
        iterator = iter(loader)
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

    length: the number of batches, for a loader that does not know it.
    """

    loader: Iterable[Any]
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
            yield batch


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
    image, target = item
    if len(image) != len(target) or target.dim() not in (1, 2):
        raise RequestError(
            f"A batch of the data module has images of shape {tuple(image.shape)} and targets of"
            f" shape {tuple(target.shape)}. Expected: one class number [B] or one row of class"
            " shares [B, K] for each image. Change the data module."
        )
    return image, _read_target(target)


def _read_target(target: Tensor) -> Tensor:
    """Class numbers as int64; class shares as they are. Raises `RequestError` for
    numbers that are no classes.
    """
    if target.dim() == 2 and target.shape[1] == 1 and not target.is_floating_point():
        target = target[:, 0]
    if target.dim() == 2:
        return target if target.is_floating_point() else target.float()
    if target.is_floating_point() and not torch.equal(target, target.round()):
        raise RequestError(
            f"The data module provides the target {float(target[0]):g}, which is no class number."
            " Expected: whole numbers from 0. Regression is not supported."
        )
    target = target.long()
    if len(target) and int(target.min()) < 0:
        raise RequestError(
            f"The data module provides the label {int(target.min())}. Expected: class numbers from"
            " 0. Leave these images out, or give their class a number."
        )
    return target


def check_images(image: Tensor) -> None:
    """Raise `RequestError` for images that are not normalized floats."""
    if image.dim() != 4 or not image.is_floating_point():
        raise RequestError(
            f"The data module provides images of shape {tuple(image.shape)} and type"
            f" {image.dtype}. Expected: float images [B, C, H, W], normalized for the student."
            " Change the data module."
        )
