"""Loaders of training and evaluation batches.

The order of the batches is a function of (seed, epoch), independent of the number of
workers; reading can begin at any position of an epoch.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kd_app.config import InputSpec, RequestError, RunError
from kd_app.data.batch import Batch
from kd_app.data.crop import match_channels
from kd_app.data.mix import BatchMixer, mix_labels, mix_pixels
from kd_app.data.partners import Partners
from kd_app.data.pixel_store import ImageSelection, PixelStore
from kd_app.data.views import EVALUATION, Keys, Pictures, View, compute_image_keys
from kd_app.data.worker_loader import PipedBatch, iterate_workers, note_no_workers, pack_batch

Position = Callable[[], tuple[int, int]]
"""Returns (epoch, completed batches of this epoch); called when an iteration starts."""

PixelChange = Callable[[Pictures, Keys], Pictures]
"""Changes the images of a batch; the keys determine all random draws."""


class BatchRequest(NamedTuple):
    """The image numbers of one batch, and the number of the view."""

    view: int
    images: Int64[np.ndarray, " batch"]


class Rank(NamedTuple):
    """The number of this process among `world` processes."""

    number: int
    world: int


SINGLE = Rank(0, 1)


@dataclass(frozen=True)
class BatchBuilder(Dataset[Batch]):
    """Builds the batch of a request, as a pure function of request and settings.

    target: class numbers by image number. partners: other pixels for each image, see
    `Batch.other`; None: none. labeled: by image number, whether the label is used, else
    the batch's target is -1; None: all are used. after_view: changes applied after the
    view, in this order. mixing: how images are mixed; targets are then class shares;
    None: not mixed.
    """

    store: PixelStore
    target: Int64[np.ndarray, " images"]
    view: View
    input_spec: InputSpec
    seed: int
    partners: Partners | None = None
    labeled: Bool[np.ndarray, " images"] | None = None
    mixing: BatchMixer | None = None
    after_view: tuple[PixelChange, ...] = ()

    def __getitem__(self, request: BatchRequest) -> Batch:
        """Return the batch; ``image`` is uint8 in channels-last memory."""
        image, target = self._view_images(request)
        batch = Batch(
            image, torch.from_numpy(target), torch.from_numpy(request.images), view=request.view
        )
        if self.labeled is not None:
            batch.labeled = torch.from_numpy(self.labeled[request.images])
        if self.partners is not None:
            others = BatchRequest(
                request.view + self.partners.view_shift, self.partners.images[request.images]
            )
            batch.other, _ = self._view_images(others)
            batch.other_index = torch.from_numpy(others.images)
        return batch

    def _view_images(
        self, request: BatchRequest
    ) -> tuple[Tensor, Int64[np.ndarray, " batch"] | Float32[np.ndarray, "batch classes"]]:
        """Return the images and labels of a request, mixed if `mixing` is set."""
        keys = compute_image_keys(self.seed, request.images, request.view)
        target = self._read_labels(request.images)
        image = self._view(request, keys)
        if self.mixing is None or not len(keys):
            return _to_channels_first(image), target
        size = (self.input_spec.height, self.input_spec.width)
        draw = self.mixing.draw(keys, request.images, size)
        partner = BatchRequest(request.view, draw.partner)
        partner_keys = compute_image_keys(self.seed, partner.images, partner.view)
        partner_target = self._read_labels(partner.images)
        mixed = mix_pixels(image, self._view(partner, partner_keys), draw)
        mixed_target = mix_labels(target, partner_target, draw, self.mixing.classes)
        return _to_channels_first(mixed), mixed_target

    def _read_labels(self, images: Int64[np.ndarray, " batch"]) -> Int64[np.ndarray, " batch"]:
        target: Int64[np.ndarray, " batch"] = self.target[images]
        return target if self.labeled is None else np.where(self.labeled[images], target, -1)

    def _view(
        self, request: BatchRequest, keys: Keys
    ) -> UInt8[np.ndarray, "batch height width channels"]:
        if len(keys):
            image = self.view(ImageSelection(self.store, request.images), keys, self.input_spec)
        else:
            image = self._make_empty_batch()
        image = match_channels(image, self.input_spec.channels)
        for change in self.after_view:
            image = change(image, keys)
        return image

    def is_slow(self) -> bool:
        """Whether building a batch is so slow that worker processes help."""
        return (
            len(self.after_view) > 0
            or not self.store.in_memory
            or self.view.is_slow(self.store.size, self.input_spec)
        )

    def _make_empty_batch(self) -> UInt8[np.ndarray, "0 height width channels"]:
        return np.zeros(
            (0, self.input_spec.height, self.input_spec.width, self.input_spec.channels),
            dtype=np.uint8,
        )


def _to_channels_first(image: UInt8[np.ndarray, "batch height width channels"]) -> Tensor:
    return torch.from_numpy(image).permute(0, 3, 1, 2)


class _Stream:
    """Builds the batches of requests in order, here or in worker processes.

    Worker processes live as long as this object.
    """

    def __init__(self, builder: BatchBuilder, num_workers: int) -> None:
        self._builder = builder
        self._num_workers = num_workers
        self._requests = _Requests()
        self._workers: DataLoader[Any] | None = None

    def __call__(self, requests: Sequence[BatchRequest]) -> Iterator[Batch]:
        if not self._num_workers:
            for request in requests:
                yield _pin_batch(self._builder[request])
            return
        self._requests.current = requests
        items = iterate_workers(self._open_workers())
        try:
            first = list(islice(items, 1))
        except OSError as error:
            note_no_workers(error)
            self._num_workers = 0
            yield from self(requests)
            return
        for item in chain(first, items):
            if isinstance(item, Exception):
                raise item
            yield _pin_batch(item.unpack() if isinstance(item, PipedBatch) else item)

    def _open_workers(self) -> DataLoader[Any]:
        if self._workers is None:
            self._workers = DataLoader(
                _WorkerBuilder(self._builder),
                sampler=self._requests,
                batch_size=None,
                num_workers=self._num_workers,
                collate_fn=_return_unchanged,
                persistent_workers=True,
            )
            weakref.finalize(self, _end_workers, self._workers)
        return self._workers

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_workers": None, "_requests": _Requests()}


class _Requests(Sampler[BatchRequest]):
    """Passes the requests of the current epoch to the workers."""

    current: Sequence[BatchRequest] = ()

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)


@dataclass(frozen=True)
class _WorkerBuilder(Dataset[Batch | PipedBatch | Exception]):
    """Builds batches in a worker process, and returns errors that are not faults of the
    program instead of raising them: torch would add the worker's traceback.
    """

    builder: BatchBuilder

    def __getitem__(self, request: BatchRequest) -> Batch | PipedBatch | Exception:
        try:
            return pack_batch(self.builder[request])
        except (RequestError, RunError, OSError, MemoryError) as error:
            return error


def _end_workers(loader: DataLoader[Any]) -> None:
    """End the worker processes while their queues still work."""
    # The garbage collector would delete the queues first, and torch would then wait 5 s
    # for each worker.
    iterator = loader._iterator
    if iterator is not None:
        iterator._shutdown_workers()  # type: ignore[attr-defined]


def _return_unchanged(value: Any) -> Any:
    return value


def _pin_batch(batch: Batch) -> Batch:
    """Move the images to pinned memory if there is a GPU, for asynchronous copies."""
    if not torch.cuda.is_available():
        return batch
    return replace(
        batch,
        image=batch.image.pin_memory(),
        other=None if batch.other is None else batch.other.pin_memory(),
    )


@dataclass
class TrainingLoader:
    """The shuffled batches of the images `rows`, from the current position on.

    A pass over the images is a permutation that depends only on order_seed and on the
    number of the pass (0 if not `reshuffle`). The number of the view is that of the
    pass, modulo `views` if set. A step reads the next ``batch_size * rank.world``
    images; rank r uses every ``rank.world``-th of them, beginning at the r-th, so that
    1 rank x 64 and 2 ranks x 32 train on the same images in each step. Images left over
    at the end of a pass are dropped; fewer images than one step form one smaller step,
    with batches of equal size on all ranks. An epoch has the number of steps of one
    pass over `images_an_epoch` images (None: over `rows`), and may need several passes.
    """

    builder: BatchBuilder
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
                f"{len(self.rows)} training image(s) are fewer than {self.rank.world} processes."
                " Set trainer.devices to a smaller number."
            )
        self._stream = _Stream(self.builder, self.num_workers)

    def __len__(self) -> int:
        return self._count_steps(self.images_an_epoch or len(self.rows))

    def _count_steps(self, images: int) -> int:
        return max(1, images // (self.batch_size * self.rank.world))

    def __iter__(self) -> Iterator[Batch]:
        epoch, completed = self.position()
        yield from self._stream(self._plan_epoch(epoch)[completed:])

    def state_dict(self) -> dict[str, int]:
        """Return the settings that the position in an epoch depends on.

        `load_state_dict` only compares them; `position` returns the position itself.
        """
        state = {
            "images": len(self.rows),
            "images_a_step": self.batch_size * self.rank.world,
            "order_seed": self.order_seed,
        }
        optional = {"images_an_epoch": self.images_an_epoch, "views": self.views}
        return {**state, **{name: value for name, value in optional.items() if value is not None}}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raise `RequestError` if the epochs of the checkpoint had other batches."""
        if state != self.state_dict():
            raise RequestError(
                f"The checkpoint was trained with {state}, but this run has {self.state_dict()}."
                " Expected: equal values, to resume in the middle of an epoch. Keep data.batch_size"
                " times trainer.devices, the data and the seed, or start a new run."
            )

    def _plan_epoch(self, epoch: int) -> list[BatchRequest]:
        steps = range(epoch * len(self), (epoch + 1) * len(self))
        per_pass = self._count_steps(len(self.rows))
        passes = {
            number: self._plan_pass(number)
            for number in range(steps.start // per_pass, (steps.stop - 1) // per_pass + 1)
        }
        return [passes[step // per_pass][step % per_pass] for step in steps]

    def _plan_pass(self, number: int) -> list[BatchRequest]:
        order = _shuffle(self.rows, self.order_seed, number if self.reshuffle else 0)
        step_size = min(self.batch_size, len(order) // self.rank.world) * self.rank.world
        view = number if self.views is None else number % self.views
        starts = range(0, self._count_steps(len(order)) * step_size, step_size)
        return [
            BatchRequest(
                view, order[start + self.rank.number : start + step_size : self.rank.world]
            )
            for start in starts
        ]


def plan_views(
    rows: Int64[np.ndarray, " rows"],
    *,
    order_seed: int,
    views: int,
    images_a_step: int,
    epochs: int,
    steps: int,
) -> dict[int, Int64[np.ndarray, " some"]]:
    """Return, by view, the ascending numbers of the images that `TrainingLoader` serves
    in the first `steps` steps of each of the first `epochs` passes, over all ranks.
    """
    images: dict[int, Int64[np.ndarray, " some"]] = {}
    for epoch in range(epochs):
        order = _shuffle(rows, order_seed, epoch)[: steps * images_a_step]
        earlier = images.get(epoch % views, order[:0])
        images[epoch % views] = np.union1d(earlier, order)
    return images


def _shuffle(
    rows: Int64[np.ndarray, " rows"], order_seed: int, number: int
) -> Int64[np.ndarray, " rows"]:
    """Return the order of the images in a pass."""
    order = np.random.default_rng([order_seed, number]).permutation(len(rows))
    shuffled: Int64[np.ndarray, " rows"] = rows[order]
    return shuffled


@dataclass
class EvaluationLoader:
    """Every image of `rows` once over all ranks, in order, in the view number `view`.

    Rank r reads every ``rank.world``-th image, beginning at the r-th. All ranks have
    the same number of batches; the last batch of a rank may be smaller or empty.
    """

    builder: BatchBuilder
    rows: Int64[np.ndarray, " rows"]
    batch_size: int
    num_workers: int
    rank: Rank = SINGLE
    view: int = EVALUATION

    def __post_init__(self) -> None:
        self._stream = _Stream(self.builder, self.num_workers)

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
