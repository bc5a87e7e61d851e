"""A LightningDataModule of the user as the data of a run."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from lightning.pytorch import LightningDataModule
from torch import Tensor

from kd_app.config import InputSpec, RequestError
from kd_app.data.base import Capability, Lack, capabilities_without, require
from kd_app.data.batch import Batch
from kd_app.data.corruptions import Corruption

_FIX = "Read the images by data=folder or data=csv"


class ExternalDataModule(LightningDataModule):
    """Wraps a data module of the user whose batches are (image, target), with float
    images that are normalized for the student, or `Batch`.

    Splits are its train, validation and test loaders; class names are its `classes` or
    `class_names`, else the numbers that its labels show. The order of the images in a
    loader is their number, so validation and test must not be shuffled. The order of an
    epoch of training follows from (order seed, epoch) where it comes from torch's default
    generator, as that of ``DataLoader(shuffle=True)`` does. It has no views: a resumed
    training starts its epoch again, and it serves no other sizes or normalizations than
    those of its batches.

    config: the node of the configuration that it was built from; None: it was passed as
    an object.
    """

    def __init__(
        self, module: LightningDataModule, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.module = module
        self.name = type(module).__qualname__
        self.license: str | None = getattr(module, "license", None)
        self.notes: tuple[str, ...] = ()
        self.num_labeled = None
        self.image_size = None
        self.classes: tuple[str, ...] = ()
        self._config = config
        self._order_seed = 0
        self._first: Batch | None = None
        self._targets: dict[str, Int64[np.ndarray, " images"]] = {}

    @property
    def lacks(self) -> dict[Capability, Lack]:
        """See `RunData`."""
        module = f"the data module {self.name}"
        return {
            "replay": Lack(f"{module} has no position in an epoch", _FIX),
            "views": Lack(f"{module} gives batches without views", _FIX),
            "partners": Lack(f"{module} gives batches, not images by number", _FIX),
            "options": Lack(f"{module} gives batches that are ready", _FIX),
            "uint8": Lack(f"{module} gives images that are normalized already", _FIX),
            "sharded": Lack(f"{module} gives every process the same batches", _FIX),
        }

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See `RunData`."""
        return capabilities_without(self.lacks)

    def identity(self, *, for_teacher: bool) -> dict[str, Any]:
        """See `RunData`."""
        if self._config is None:
            return {"module": self.name, "batch_size": getattr(self.module, "batch_size", None)}
        views = None if for_teacher else self._config.get("views")
        return {
            "view": self._config.get("view"),
            "batch_size": self._config.get("batch_size"),
            **({} if views is None else {"views": views}),
        }

    def count_steps_per_epoch(self, world_size: int) -> tuple[int, int]:
        """See `RunData`."""
        train, validation = len(self.train_dataloader()), len(self.val_dataloader())
        return max(1, train // world_size), max(1, validation // world_size)

    def describe_training(self) -> tuple[str, ...]:
        """See `RunData`."""
        return ()

    def scan_job(self, decode_size: int) -> None:
        """Its images are decoded already."""

    def list(self) -> None:
        """Nothing is known before it is set up."""

    def load(self, folder: Path | None) -> None:
        """Set it up and look at what it gives. Raises `RequestError` where that is no
        batch of images and labels.
        """
        self.module.prepare_data()
        self.module.setup("fit")
        self.module.setup("test")
        self._targets = {name: self._read_labels(name) for name in ("validation", "test")}
        self._first = next(iter(self.build_evaluation_loader("train", None)), None)
        if self._first is None:
            raise _build_empty_split_error("train")
        if self._first.image.dim() != 4 or self._first.image.dtype == torch.uint8:
            shape, kind = tuple(self._first.image.shape), self._first.image.dtype
            raise RequestError(
                f"The data module gives images of {shape}, {kind}. Expected float images [B, C, H,"
                " W], normalized for the student."
            )
        named = getattr(self.module, "classes", None) or getattr(self.module, "class_names", None)
        shown = 1 + max(
            int(self._first.to_hard_target().max()), *(int(t.max()) for t in self._targets.values())
        )
        counted = range(shown if self._first.target.dim() == 1 else self._first.target.shape[1])
        self.classes = tuple(str(name) for name in named or counted)

    def _read_labels(self, split: str) -> Int64[np.ndarray, " images"]:
        labels = [
            batch.to_hard_target().numpy() for batch in self.build_evaluation_loader(split, None)
        ]
        if not labels:
            raise _build_empty_split_error(split)
        return np.concatenate(labels)

    @property
    def batch_size(self) -> int:
        """That of the module where it has one, else that of its first batch."""
        return int(getattr(self.module, "batch_size", None) or len(self._first or ()))

    @property
    def channels(self) -> int:
        """Channels of its images."""
        assert self._first is not None
        return int(self._first.image.shape[1])

    @property
    def size(self) -> int:
        """Height of its images."""
        assert self._first is not None
        return int(self._first.image.shape[2])

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images by split; of train, that of its batches times their size."""
        train = len(self.module.train_dataloader()) * len(self._first or ())
        return {"train": train, **{name: len(targets) for name, targets in self._targets.items()}}

    @property
    def fingerprint(self) -> str:
        """sha256 of the first batch to train on and of all labels of validation and
        test.
        """
        assert self._first is not None
        digest = hashlib.sha256(
            self._first.image.numpy().tobytes() + self._first.target.numpy().tobytes()
        )
        for targets in self._targets.values():
            digest.update(targets.tobytes())
        return digest.hexdigest()

    @property
    def groups(self) -> tuple[str, ...]:
        """None that we know of."""
        return ()

    @property
    def files(self) -> Sequence[str]:
        """Made-up names."""
        return _Numbers()

    def make_thumbnail(self, index: int) -> bytes | None:
        """None: its images are normalized in an unknown way."""

    def compute_pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Its images are normalized already."""
        return (0.0,) * self.channels, (1.0,) * self.channels

    def bind(
        self,
        pixels: InputSpec,
        *,
        order_seed: int,
        partner_images: bool = False,
        labeled_only: bool = False,
        fresh_views: bool = False,
    ) -> None:
        """The same batches for every model, in an order that follows from `order_seed`.
        Raises `RequestError` for another size, and for `partner_images`.

        The module decides which images have a label, and what changes them:
        `labeled_only` and `fresh_views` have no effect.
        """
        if partner_images:
            require(self, "partners", because="partner_images", instead="leave it out")
        self._order_seed = order_seed
        if (pixels.channels, pixels.height) != (self.channels, self.size):
            raise RequestError(
                f"The data module gives {self.channels}x{self.size}x{self.size} images, "
                f"and this model wants {pixels.channels}x{pixels.height}x{pixels.width}. "
                "Set image_size of the model, or make the data module give that size."
            )

    def train_dataloader(self) -> "Ordered":
        """The module's own."""
        return Ordered(self.module.train_dataloader(), self._compute_epoch_seed)

    def _compute_epoch_seed(self) -> int:
        return self._order_seed * 1_000_003 + (
            self.trainer.current_epoch if self.trainer is not None else 0
        )

    def val_dataloader(self) -> "Numbered":
        """The module's own, with the images numbered."""
        return self.build_evaluation_loader("validation", None)

    def build_evaluation_loader(
        self,
        split: str,
        pixels: InputSpec | None,
        *,
        batch_size: int | None = None,
        corruption: Corruption | None = None,
    ) -> "Numbered":
        """The batches of a split, of the size that they have, with the images numbered
        in their order. Raises `RequestError` for a corruption.
        """
        if corruption is not None:
            require(self, "uint8", because="A corruption", instead="leave it out")
        loader = {
            "train": self.module.train_dataloader,
            "validation": self.module.val_dataloader,
            "test": self.module.test_dataloader,
        }[split]()
        if loader is None or isinstance(loader, list | dict):
            raise RequestError(
                f"The data module gives {type(loader).__name__} as its {split} loader. Expected one"
                " loader of (image, target) batches."
            )
        return Numbered(loader)

    def sample(self, split: str, pixels: InputSpec | None, images: int) -> Iterator[Batch]:
        """The first batches of a split, up to so many images or one batch."""
        seen = 0
        for batch in self.build_evaluation_loader(split, pixels):
            if seen and seen + len(batch) > images:
                return
            seen += len(batch)
            yield batch

    def list_targets(self, split: str) -> Int64[np.ndarray, " images"] | None:
        """Class numbers of validation or test; those of train are not looked at."""
        return self._targets.get(split)

    def list_rows(self, split: str) -> None:
        """Its images have no numbers before they are read."""

    def iterate_images(self, split: str) -> Iterator[tuple[int, np.ndarray]]:
        """Number and pixels, normalized, of each image of a split in its order."""
        for batch in self.build_evaluation_loader(split, None):
            for index, image in zip(batch.index.tolist(), batch.image, strict=True):
                yield index, image.permute(1, 2, 0).numpy()

    def read_image(self, index: int) -> None:
        """None: its images are normalized in an unknown way."""

    def replay(self, pixels: InputSpec) -> None:
        """None: it has no views."""

    def write_split(self, path: Path) -> None:
        """The split is the module's own; there is nothing to write."""


@dataclass
class Ordered:
    """Batches of a loader, in the order that follows from a seed, which is asked for
    when an iteration starts.
    """

    loader: Iterable[Any]
    seed: Callable[[], int]

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        yield from _start_loader(self.loader, self.seed())


def _start_loader(loader: Iterable[Any], seed: int) -> Iterator[Any]:
    """The loader's items. It draws what it shuffles by before its first one: then
    torch's generator is in the state of `seed`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        iterator = iter(loader)
        first = list(islice(iterator, 1))
    yield from first
    yield from iterator


@dataclass
class Numbered:
    """Batches of a loader as `Batch`, the images numbered in their order."""

    loader: Iterable[Any]

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        start = 0
        for item in _start_loader(self.loader, seed=0):
            batch = (
                item
                if isinstance(item, Batch)
                else Batch(*_split_item(item), index=torch.arange(start, start + len(item[0])))
            )
            start += len(batch)
            yield batch


def _build_empty_split_error(split: str) -> RequestError:
    return RequestError(
        f"The data module gives no batch to its {split} loader. Expected one at least; with"
        " drop_last=True the batch size must fit into the images."
    )


def _split_item(item: Any) -> tuple[Tensor, Tensor]:
    if not (
        isinstance(item, list | tuple)
        and len(item) == 2
        and all(isinstance(part, Tensor) for part in item)
    ):
        raise RequestError(
            f"A batch of the data module is a {type(item).__name__}. Expected (image, target), two"
            " tensors."
        )
    return item[0], item[1]


class _Numbers(Sequence[str]):
    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, number: Any) -> Any:
        return str(number)
