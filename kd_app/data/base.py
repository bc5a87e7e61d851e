"""The contract between the data of a run and everything that trains or measures on them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int64, UInt8

from kd_app.config import InputSpec, RequestError
from kd_app.data.batch import Batch
from kd_app.data.corruptions import Corruption
from kd_app.data.scan import Progress

Capability = Literal["replay", "views", "partners", "options", "uint8", "sharded"]

NEEDS: Final[Mapping[Capability, str]] = {
    "replay": "batches that can be read from the middle of an epoch",
    "views": "the same views of each image again",
    "partners": "another image of the same class for each image",
    "options": "images that kd_app reads itself",
    "uint8": "images of 8 bits",
    "sharded": "a different share of the images for each process",
}
"""What a user of each capability needs, as the object of a sentence."""


class Lack(NamedTuple):
    """Why data lack a capability (a clause), and what a user can do about it (an
    imperative that begins with a capital letter).
    """

    reason: str
    fix: str


@dataclass(frozen=True)
class ScanJob:
    """The one-time decoding of all images, as a stage: its configuration, the hashes of
    its inputs, and what fills its folder.
    """

    config: dict[str, Any]
    inputs: dict[str, str]
    run: Callable[[Path, Progress], None]


@dataclass(frozen=True)
class ViewReplay:
    """The images `rows` in each of their `views`, with the pixels that a training shows.

    identity: what decides these pixels beside the data's fingerprint. batches: the
    batches of a view in the order of `rows`, from the row ``start`` on, as ``batches(view,
    start)``.
    """

    views: int
    rows: Int64[np.ndarray, " rows"]
    identity: dict[str, Any]
    batches: Callable[[int, int], Iterable[Batch]]


class BatchLoader(Sized, Iterable[Any], Protocol):
    """Batches, and how many there are."""


class RunData(Protocol):
    """Images with labels in three splits, served to one model after the other.

    Call ``list()``, run the `scan_job` where there is one, then ``load(folder)``:
    everything but `capabilities`, `lacks`, `name` and `license` is known after that.
    ``bind`` selects the model that `train_dataloader` and `val_dataloader` serve;
    `evaluation`, `sample` and `replay` need no binding.
    """

    @property
    def lacks(self) -> Mapping[Capability, Lack]:
        """The capabilities that these data do not have, and why."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What these data can do."""

    @property
    def name(self) -> str | None:
        """Name of the data module's class; None where the configuration names the data."""

    @property
    def license(self) -> str | None:
        """License of the images, where the data know it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class number."""

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images by split."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the images, their labels and their splits."""

    @property
    def batch_size(self) -> int:
        """Images of a batch in one process."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user about these data."""

    @property
    def channels(self) -> int:
        """Channels of the images: 1 or 3."""

    @property
    def size(self) -> int:
        """Side in pixels to make models for."""

    @property
    def image_size(self) -> int | None:
        """`size` where the user sets it; None where it follows from the images."""

    @property
    def files(self) -> Sequence[str]:
        """Names by image number."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Group by image number; empty where the images have none."""

    @property
    def num_labeled(self) -> int | None:
        """Number of images to train on whose label is used; None: all of them."""

    def list(self) -> None:
        """Find the images without reading them."""

    def scan_job(self, decode_size: int) -> ScanJob | None:
        """How to decode all images with shorter sides of at least `decode_size`; None
        where there is nothing to decode.
        """

    def load(self, folder: Path | None) -> None:
        """Make the images readable; `folder` is what the `scan_job` filled."""

    def identity(self, *, for_teacher: bool) -> dict[str, Any]:
        """What decides the batches of a training beside `fingerprint`.

        for_teacher: of the teacher's own training, which has fresh views.
        """

    def count_steps_per_epoch(self, world_size: int) -> tuple[int, int]:
        """Batches to train on and to validate on in an epoch, in each of so many
        processes.
        """

    def describe_training(self) -> tuple[str, ...]:
        """What is special about the images of a training, in phrases for the plan."""

    def bind(
        self,
        pixels: InputSpec,
        *,
        order_seed: int,
        partner_images: bool = False,
        labeled_only: bool = False,
        fresh_views: bool = False,
    ) -> None:
        """Serve the model that expects `pixels` from now on, the images to train on in
        an order that follows from `order_seed`.

        partner_images: each batch also holds another image of the class of each image.
        labeled_only: only images with a label, in as many steps per epoch as all images
        take. fresh_views: a fresh view in every epoch.
        """

    def train_dataloader(self) -> BatchLoader:
        """Batches to train on."""

    def val_dataloader(self) -> BatchLoader:
        """Batches to validate on."""

    def build_evaluation_loader(
        self,
        split: str,
        pixels: InputSpec,
        *,
        batch_size: int | None = None,
        corruption: Corruption | None = None,
    ) -> BatchLoader:
        """All images of a split in order, for a model that expects `pixels`, in this
        process.
        """

    def sample(self, split: str, pixels: InputSpec, images: int) -> Iterable[Batch]:
        """Up to so many images of a split."""

    def replay(self, pixels: InputSpec) -> ViewReplay | None:
        """The views that a model which expects `pixels` is trained on; None without the
        capability "views".
        """

    def compute_pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel in train, in 0..1."""

    def list_rows(self, split: str) -> Int64[np.ndarray, " list_rows"] | None:
        """Image numbers of a split, ascending; None where they are not known."""

    def list_targets(self, split: str) -> Int64[np.ndarray, " list_rows"] | None:
        """Class numbers of a split in order; None where they are not known."""

    def iterate_images(self, split: str) -> Iterator[tuple[int, np.ndarray]]:
        """Number and pixels ``[H, W, C]`` of each image of a split, in an order that
        does not depend on its content.
        """

    def read_image(self, index: int) -> UInt8[np.ndarray, "height width channels"] | None:
        """Image `index` as it was decoded; None without the capability "uint8"."""

    def make_thumbnail(self, index: int) -> bytes | None:
        """Image `index` as a small PNG; None where it can't be shown."""

    def write_split(self, path: Path) -> None:
        """Write which image is in which split as CSV, where that is known."""


def require(data: RunData, capability: Capability, *, because: str, instead: str) -> None:
    """Raise `RequestError` unless `data` have the capability.

    because: the setting that needs it, as the subject of the message. instead: what to
    do without it, as an imperative in lower case ("use trainer.devices=1").
    """
    if capability in data.capabilities:
        return
    reason, fix = data.lacks[capability]
    raise RequestError(f"{because} needs {NEEDS[capability]}, but {reason}. {fix}, or {instead}.")


def capabilities_without(lacks: Iterable[Capability]) -> frozenset[Capability]:
    """All capabilities but these."""
    return frozenset(NEEDS).difference(lacks)
