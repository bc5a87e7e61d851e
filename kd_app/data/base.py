"""`RunData`, the interface between the data of a run and the code that uses them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int64, UInt8

from kd_app.config import InputSpec, RequestError
from kd_app.data.batch import Batch
from kd_app.data.corruptions import Corruption
from kd_app.data.duplicates import PictureContents
from kd_app.data.evaluation import Evaluation
from kd_app.data.partners import PartnerKind
from kd_app.data.scan import Progress
from kd_app.data.source import Listing

Capability = Literal["replay", "views", "partners", "unlabeled", "options", "uint8", "sharded"]

NEEDS: Final[Mapping[Capability, str]] = {
    "replay": "batches that can be read from the middle of an epoch",
    "views": "views of each image that can be replayed",
    "partners": "another image of the same class for each image",
    "unlabeled": "training images without labels",
    "options": "images that kd_app decodes itself",
    "uint8": "8-bit images",
    "sharded": "a different share of the images for each process",
}
"""Capability -> its meaning, as the object of "needs" in an error message."""


class Lack(NamedTuple):
    """A missing capability of the data.

    reason: why it is missing, as a clause. fix: what a user can change, as an
    imperative with a capital letter.
    """

    reason: str
    fix: str


@dataclass(frozen=True)
class ScanJob:
    """The one-time decoding of all images, as a cached stage.

    config, inputs: configuration and input hashes, which key the cache. run: fills the
    folder of the stage.
    """

    config: dict[str, Any]
    inputs: dict[str, str]
    run: Callable[[Path, Progress], None]


@dataclass(frozen=True)
class ViewReplay:
    """The training images `rows` in each of their `views`, with the training's pixels.

    identity: settings that determine these pixels, in addition to the fingerprint of
    the data. batches: ``batches(view, rows)`` returns the batches of a view of some of
    the `rows`, in their order. plan: ``plan(order_seed, epochs, images_a_step, steps)``
    returns, by view, the ascending numbers of the images that a training with the first
    ``steps`` of each epoch reads.
    """

    views: int
    rows: Int64[np.ndarray, " rows"]
    identity: dict[str, Any]
    batches: Callable[[int, Int64[np.ndarray, " some"]], Iterable[Batch]]
    plan: Callable[[int, int, int, int], dict[int, Int64[np.ndarray, " some"]]]


class BatchLoader(Sized, Iterable[Any], Protocol):
    """An iterable of batches with a known length."""


class RunData(Protocol):
    """Labeled images in three splits, served to one model at a time.

    Call ``list()``, run the `scan_job` if there is one, then call ``load(folder)``.
    Before that, only `capabilities`, `lacks`, `name` and `license` are valid. ``bind``
    selects the model that `train_dataloader` and `val_dataloader` serve;
    `build_evaluation_loader`, `sample` and `replay` need no binding.
    """

    @property
    def lacks(self) -> Mapping[Capability, Lack]:
        """The capabilities that these data lack, with reasons."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The capabilities that these data have."""

    @property
    def name(self) -> str | None:
        """Class name of an external data module; None for `ImageData`."""

    @property
    def license(self) -> str | None:
        """License of the images; None if unknown."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, indexed by class number."""

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images by split."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the images, labels and splits."""

    @property
    def batch_size(self) -> int:
        """Images per batch in one process."""

    @property
    def smallest_batch(self) -> int | None:
        """Images of the smallest training batch of an epoch; None if unknown."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about these data for the user, one sentence each."""

    @property
    def channels(self) -> int:
        """Number of channels of the images."""

    @property
    def size(self) -> int:
        """Side length in pixels to build models for; the height if `width` differs."""

    @property
    def width(self) -> int:
        """Width in pixels to build models for."""

    @property
    def image_size(self) -> int | None:
        """`size` if the user set it; None if `size` is derived from the images."""

    @property
    def files(self) -> Sequence[str]:
        """File names, indexed by image number."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Group names, indexed by image number; empty if the images have no groups."""

    @property
    def num_labeled(self) -> int | None:
        """Number of training images whose label is used; None: all."""

    @property
    def listing(self) -> Listing | None:
        """The images without their pixels, listed on first use; None if unknown."""

    def evaluate_only(self, evaluation: Evaluation) -> None:
        """Use the images only to measure models, before ``list()``; without effect on
        data without a listing.
        """

    def leave_out(self, numbers: Iterable[int]) -> None:
        """Leave out these image numbers from now on; after ``load()``."""

    def hash_images(self, *, whole: bool) -> Sequence[bytes]:
        """Return the digests of the listed images; whole: see `Listing`."""

    def list(self) -> None:
        """List the images without decoding them."""

    def scan_job(self, decode_size: int) -> ScanJob | None:
        """Return the job that decodes all images; None if there is nothing to decode.

        decode_size: the shorter side, in pixels, to which larger images are reduced.
        """

    def load(self, folder: Path | None) -> None:
        """Make the images readable; `folder` is the output folder of the `scan_job`."""

    def describe_identity(self, *, for_teacher: bool) -> dict[str, Any]:
        """Return the settings that, with `fingerprint`, determine the training batches.

        for_teacher: describe the training of a teacher, which uses fresh views.
        """

    def count_steps_per_epoch(self, world_size: int) -> tuple[int, int]:
        """Return the training and validation batches per epoch of each process."""

    def describe_training(self) -> tuple[str, ...]:
        """Return phrases for the plan about special settings of the training images."""

    def bind(
        self,
        input_spec: InputSpec,
        *,
        order_seed: int,
        partners: PartnerKind | None = None,
        pseudo_labels: Int64[np.ndarray, " images"] | None = None,
        labeled_only: bool = False,
        fresh_views: bool = False,
        with_validation: bool = False,
    ) -> None:
        """Serve a model with this `input_spec` from now on.

        order_seed: seed of the order of the training images. partners: add to each
        batch, for each image, another image or view of this kind. pseudo_labels: by
        image number, labels of images whose own label is not used; -1: none.
        labeled_only: use only labeled images, with as many steps per epoch as all
        images take. fresh_views: use a new view of each image in every epoch.
        with_validation: train on the images of validation, too, with their labels.
        """

    def train_dataloader(self) -> BatchLoader:
        """Return the training batches."""

    def val_dataloader(self) -> BatchLoader:
        """Return the validation batches."""

    def build_evaluation_loader(
        self,
        split: str,
        input_spec: InputSpec,
        *,
        batch_size: int | None = None,
        corruption: Corruption | None = None,
    ) -> BatchLoader:
        """Return all images of a split, in order, for a model with this `input_spec`.

        This process receives all images, also in distributed runs. batch_size: images
        per batch; None: that of the data. corruption: applied to each image.
        """

    def sample(self, split: str, input_spec: InputSpec, images: int) -> Iterable[Batch]:
        """Return up to `images` images of a split."""

    def replay(self, input_spec: InputSpec) -> ViewReplay | None:
        """Return the training views for a model with this `input_spec`.

        None if the data lack the capability "views".
        """

    def limit_views(self, count: int) -> None:
        """Use at most `count` views of each image in turn, from now on."""

    def compute_pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel of train, in 0..1."""

    def list_rows(self, split: str) -> Int64[np.ndarray, " rows"] | None:
        """Return the image numbers of a split, ascending; None if unknown."""

    def list_targets(self, split: str) -> Int64[np.ndarray, " rows"] | None:
        """Return the class numbers of a split in order; None if unknown."""

    def list_unlabeled_rows(self) -> Int64[np.ndarray, " rows"] | None:
        """Return the numbers of the training images whose label is not used; None if
        unknown.
        """

    def count_labels(self) -> Int64[np.ndarray, " classes"] | None:
        """Return the number of labeled training images of each class; None if
        unknown.
        """

    @property
    def contents(self) -> PictureContents | None:
        """Which images are copies of others; None if the images are not known."""

    def iterate_images(self, split: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield number and pixels ``[H, W, C]`` of each image of a split.

        The order does not depend on the images' content.
        """

    def read_image(self, index: int) -> UInt8[np.ndarray, "height width channels"] | None:
        """Return image `index` as decoded; None without the capability "uint8"."""

    def make_thumbnail(self, index: int) -> bytes | None:
        """Return image `index` as a small PNG; None if the image can't be shown."""

    def write_split(self, path: Path) -> None:
        """Write a CSV with the split of each image, if the splits are known."""


def require(data: RunData, capability: Capability, *, because: str, instead: str) -> None:
    """Raise `RequestError` unless `data` have the capability.

    because: the setting that needs the capability, as the subject of the message.
    instead: the alternative, as an imperative in lower case ("use trainer.devices=1").
    """
    if capability in data.capabilities:
        return
    reason, fix = data.lacks[capability]
    raise RequestError(f"{because} needs {NEEDS[capability]}, but {reason}. {fix}, or {instead}.")


def exclude_capabilities(lacks: Iterable[Capability]) -> frozenset[Capability]:
    """Return all capabilities except `lacks`."""
    return frozenset(NEEDS).difference(lacks)
