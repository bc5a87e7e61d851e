"""Batches in an order that is a function of (seed, epoch), from any position, for any
number of ranks, with any number of workers.
"""

import math
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kd_app.config import InputSpec, RequestError
from kd_app.data.batch import Batch
from kd_app.data.mix import BatchMixer, mix_labels, mix_pixels
from kd_app.data.pixel_store import ImageSelection, PixelStore
from kd_app.data.views import EVALUATION, Keys, Pictures, View, compute_image_keys

Position = Callable[[], tuple[int, int]]
"""(epoch, batches of it that were already seen), asked whenever an iteration starts."""

PixelChange = Callable[[Pictures, Keys], Pictures]
"""What changes the images of a batch; all that is random follows from the keys."""


class BatchRequest(NamedTuple):
    """The numbers of the images of one batch, and of the view they are wanted in."""

    view: int
    images: Int64[np.ndarray, " batch"]


class Rank(NamedTuple):
    """Which of how many processes this is."""

    number: int
    world: int


SINGLE = Rank(0, 1)


@dataclass(frozen=True)
class BatchBuilder(Dataset[Batch]):
    """Makes the batch of a request: a pure function of it and of these settings.

    target: class numbers by image number. partners: by image number, the image that the
    teacher is shown in its place, in its own view of the same number; None: the image
    itself. labeled: by image number, whether its label may be used; None: every one. Of
    the others the batch's target is -1. after_view: what changes the images after their
    view, one after the other. mixing: how images are mixed, None: not at all; the target
    is shares of classes then.
    """

    store: PixelStore
    target: Int64[np.ndarray, " images"]
    view: View
    pixels: InputSpec
    seed: int
    partners: Int64[np.ndarray, " images"] | None = None
    labeled: Bool[np.ndarray, " images"] | None = None
    mixing: BatchMixer | None = None
    after_view: tuple[PixelChange, ...] = ()

    def __getitem__(self, request: BatchRequest) -> Batch:
        """The batch; ``image`` is uint8 in channels-last memory."""
        image, target = self._view_images(request)
        batch = Batch(
            image, torch.from_numpy(target), torch.from_numpy(request.images), view=request.view
        )
        if self.labeled is not None:
            batch.labeled = torch.from_numpy(self.labeled[request.images])
        if self.partners is not None:
            others = BatchRequest(request.view, self.partners[request.images])
            batch.other, batch.other_index = (
                self._view_images(others)[0],
                torch.from_numpy(others.images),
            )
        return batch

    def _view_images(
        self, request: BatchRequest
    ) -> tuple[Tensor, Int64[np.ndarray, " batch"] | Float32[np.ndarray, "batch classes"]]:
        """Images and labels of a request, mixed where they are to be."""
        keys, target = (
            compute_image_keys(self.seed, request.images, request.view),
            self._read_labels(request.images),
        )
        image = self._view(request, keys)
        if self.mixing is None or not len(keys):
            return _to_channels_first(image), target
        drawn = self.mixing.draw(keys, request.images, (self.pixels.height, self.pixels.width))
        partner = BatchRequest(request.view, drawn.partner)
        image = mix_pixels(
            image,
            self._view(partner, compute_image_keys(self.seed, partner.images, partner.view)),
            drawn,
        )
        return _to_channels_first(image), mix_labels(
            target, self._read_labels(partner.images), drawn, self.mixing.classes
        )

    def _read_labels(self, images: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, " batch"]:
        found: Int64[np.ndarray, " batch"] = self.target[images]
        return found if self.labeled is None else np.where(self.labeled[images], found, -1)

    def _view(
        self, request: BatchRequest, keys: Keys
    ) -> UInt8[np.ndarray, "batch height width channels"]:
        image = (
            self.view(ImageSelection(self.store, request.images), keys, self.pixels)
            if len(keys)
            else self._make_empty_batch()
        )
        image = _with_channels(image, self.pixels.channels)
        for change in self.after_view:
            image = change(image, keys)
        return image

    def is_slow(self) -> bool:
        """Whether worker processes pay."""
        return (
            len(self.after_view) > 0
            or not self.store.in_memory
            or self.view.is_slow(self.store.size, self.pixels)
        )

    def _make_empty_batch(self) -> UInt8[np.ndarray, "0 height width channels"]:
        return np.zeros(
            (0, self.pixels.height, self.pixels.width, self.pixels.channels), dtype=np.uint8
        )


def _to_channels_first(image: UInt8[np.ndarray, "batch height width channels"]) -> Tensor:
    return torch.from_numpy(image).permute(0, 3, 1, 2)


def _with_channels(
    image: UInt8[np.ndarray, "batch height width stored"], channels: int
) -> UInt8[np.ndarray, "batch height width channels"]:
    """Gray repeated as color; color as its luma (ITU-R 601, rounded as PIL rounds)."""
    if image.shape[3] == channels:
        return image
    if channels == 1:
        luma = image.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
        return ((luma + 2**15) >> 16).astype(np.uint8)[:, :, :, None]
    return np.repeat(image, channels, axis=3)


class _Stream:
    """Turns requests into batches in their order: in this process, or in worker
    processes that live as long as this object.
    """

    def __init__(self, maker: BatchBuilder, num_workers: int) -> None:
        self._maker = maker
        self._num_workers = num_workers
        self._requests = _Requests()
        self._workers: DataLoader[Any] | None = None

    def __call__(self, requests: Sequence[BatchRequest]) -> Iterator[Batch]:
        if not self._num_workers:
            for request in requests:
                yield _pin_batch(self._maker[request])
            return
        self._requests.wanted = requests
        for found in self._start():
            if isinstance(found, RequestError):
                raise found
            yield _pin_batch(found)

    def _start(self) -> Iterable[Any]:
        if self._workers is None:
            self._workers = DataLoader(
                _Guarded(self._maker),
                sampler=self._requests,
                batch_size=None,
                num_workers=self._num_workers,
                collate_fn=_as_it_is,
                worker_init_fn=_start_worker,
                persistent_workers=True,
            )
            weakref.finalize(self, _end_workers, self._workers)
        return self._workers

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_workers": None, "_requests": _Requests()}


class _Requests(Sampler[BatchRequest]):
    """Hands the requests of the present epoch to the workers."""

    wanted: Sequence[BatchRequest] = ()

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self.wanted)

    def __len__(self) -> int:
        return len(self.wanted)


@dataclass(frozen=True)
class _Guarded(Dataset[Batch | RequestError]):
    """Hands a user's error back as a value: raised in a worker it would come with that
    worker's traceback in its text.
    """

    maker: BatchBuilder

    def __getitem__(self, request: BatchRequest) -> Batch | RequestError:
        try:
            return self.maker[request]
        except RequestError as error:
            return error


def _end_workers(loader: DataLoader[Any]) -> None:
    """End them while their queues still work. Left to the collector of cycles, the
    queues go first and each worker is waited for in vain, for 5 s.
    """
    iterator = loader._iterator
    if iterator is not None:
        iterator._shutdown_workers()  # type: ignore[attr-defined]


def _as_it_is(value: Any) -> Any:
    return value


def _start_worker(_: int) -> None:
    """Signals are the main process's affair; a worker computes with one thread (torch's
    default there).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _pin_batch(batch: Batch) -> Batch:
    """In memory that a GPU copies from while it computes, where there is one."""
    if not torch.cuda.is_available():
        return batch
    return replace(
        batch,
        image=batch.image.pin_memory(),
        other=None if batch.other is None else batch.other.pin_memory(),
    )


@dataclass
class TrainingLoader:
    """The shuffled batches of the images `rows`, from the position on.

    A pass over them is a permutation that depends on (order_seed, number of the pass)
    alone, with `reshuffle` off that of pass 0 always; the view's number is that of the
    pass, modulo `views` where there are so many. Of each ``batch_size * rank.world``
    images in that order rank r takes every ``rank.world``-th from the r-th on, so that
    1 rank x 64 and 2 ranks x 32 see the same images in each step. What is left at the
    end of a pass is dropped; a set that is smaller than one such batch is one smaller
    batch, equal on all ranks. An epoch is one pass, or as many batches as one over
    `images_an_epoch` images has, in as many passes as that takes.
    """

    maker: BatchBuilder
    rows: Int64[np.ndarray, " rows"]
    batch_size: int
    num_workers: int
    order_seed: int
    position: Position
    rank: Rank = SINGLE
    reshuffle: bool = True
    views: int | None = None
    images_an_epoch: int | None = None

    def __post_init__(self) -> None:
        if len(self.rows) < self.rank.world:
            raise RequestError(
                f"{len(self.rows)} image(s) to train on are fewer than {self.rank.world} ranks. Set"
                " trainer.devices to less."
            )
        self._stream = _Stream(self.maker, self.num_workers)

    def __len__(self) -> int:
        return self._count_steps(self.images_an_epoch or len(self.rows))

    def _count_steps(self, images: int) -> int:
        return max(1, images // (self.batch_size * self.rank.world))

    def __iter__(self) -> Iterator[Batch]:
        epoch, seen = self.position()
        yield from self._stream(self._plan_epoch(epoch)[seen:])

    def state_dict(self) -> dict[str, int]:
        """What the position in an epoch depends on. Nothing is restored from it: the
        position is asked for.
        """
        own = {
            "images": len(self.rows),
            "images_a_step": self.batch_size * self.rank.world,
            "order_seed": self.order_seed,
        }
        more = {"images_an_epoch": self.images_an_epoch, "views": self.views}
        return {**own, **{name: value for name, value in more.items() if value is not None}}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises `RequestError` where the checkpoint's epochs were other ones: the
        images seen would not be those counted.
        """
        if state != self.state_dict():
            raise RequestError(
                f"The checkpoint was trained with {state}, this run has {self.state_dict()}."
                " Expected: the same, to go on in the middle of an epoch. Keep data.batch_size"
                " times trainer.devices, the data and the seed, or start afresh."
            )

    def _plan_epoch(self, epoch: int) -> list[BatchRequest]:
        steps = range(epoch * len(self), (epoch + 1) * len(self))
        a_pass = self._count_steps(len(self.rows))
        passes = {
            number: self._pass(number)
            for number in range(steps.start // a_pass, (steps.stop - 1) // a_pass + 1)
        }
        return [passes[step // a_pass][step % a_pass] for step in steps]

    def _pass(self, number: int) -> list[BatchRequest]:
        random = np.random.default_rng([self.order_seed, number if self.reshuffle else 0])
        order = self.rows[random.permutation(len(self.rows))]
        together = min(self.batch_size, len(order) // self.rank.world) * self.rank.world
        view = number if self.views is None else number % self.views
        starts = range(0, self._count_steps(len(order)) * together, together)
        return [
            BatchRequest(view, order[start + self.rank.number : start + together : self.rank.world])
            for start in starts
        ]


@dataclass
class EvaluationLoader:
    """Every image of `rows` once over all ranks, in order, in the view of that number:
    rank r has every ``rank.world``-th from the r-th on.

    All ranks give the same number of batches; the last one of a rank may have fewer
    rows than those of others, or none.
    """

    maker: BatchBuilder
    rows: Int64[np.ndarray, " rows"]
    batch_size: int
    num_workers: int
    rank: Rank = SINGLE
    view: int = EVALUATION

    def __post_init__(self) -> None:
        self._stream = _Stream(self.maker, self.num_workers)

    def __len__(self) -> int:
        return math.ceil(math.ceil(len(self.rows) / self.rank.world) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        own = self.rows[self.rank.number :: self.rank.world]
        yield from self._stream(
            [
                BatchRequest(self.view, own[step * self.batch_size : (step + 1) * self.batch_size])
                for step in range(len(self))
            ]
        )
