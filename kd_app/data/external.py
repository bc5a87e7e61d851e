"""User-provided LightningDataModules as the data of a run."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from kd_app.config import InputSpec, RequestError
from kd_app.config.errors import quote_some, take_first_line
from kd_app.data.base import Capability, Lack, exclude_capabilities, require
from kd_app.data.batch import Batch
from kd_app.data.corruptions import Corruption
from kd_app.data.evaluation import Evaluation
from kd_app.data.external_batches import (
    ImageNumbers,
    NumberedLoader,
    OrderedLoader,
    check_images,
    hash_images,
    hash_repeated,
    note_values,
    read_class_names,
)
from kd_app.data.external_dataset import hash_contents, read_train_labels
from kd_app.data.partners import PartnerKind
from kd_app.data.targets import check_target

_FIX = "Read the images with data=folder or data=csv"


class ExternalDataModule(LightningDataModule):
    """Wrapper of a user's data module.

    Batches of the module are (image, target), with float images normalized for the
    student, or `Batch`. The splits are the module's train, validation and test loaders.
    Class names are the module's `classes` or `class_names`, else the class numbers.

    Images are numbered by their order in a loader, so the validation and test loaders
    must not shuffle. The order of a training epoch is a function of (order seed, epoch)
    if the loader draws the order from torch's default generator, as
    ``DataLoader(shuffle=True)`` does. There are no views, so a resumed training repeats
    the interrupted epoch. Images have one size and one normalization only.

    config: the data group that the module was built from; None: the module was passed
    as an object.
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
        self.listing = None
        self.image_size = None
        self.contents = None
        self.classes: tuple[str, ...] = ()
        self._config = config
        self._order_seed = 0
        self._first: Batch | None = None
        self._contents = b""
        self._targets: dict[str, Int64[np.ndarray, " images"]] = {}
        self._lengths: dict[str, int] = {}
        self._digests: dict[str, list[bytes]] = {}

    @property
    def lacks(self) -> dict[Capability, Lack]:
        module = f"the data module {self.name}"
        return {
            "replay": Lack(f"{module} can't resume in the middle of an epoch", _FIX),
            "views": Lack(f"{module} provides batches without views", _FIX),
            "partners": Lack(f"{module} provides batches, not single images", _FIX),
            "unlabeled": Lack(f"{module} determines the labels", _FIX),
            "options": Lack(f"{module} provides finished batches", _FIX),
            "uint8": Lack(f"{module} provides normalized images", _FIX),
            "sharded": Lack(f"{module} provides the same batches to every process", _FIX),
        }

    @property
    def capabilities(self) -> frozenset[Capability]:
        return exclude_capabilities(self.lacks)

    def describe_identity(self, *, for_teacher: bool) -> dict[str, Any]:
        if self._config is None:
            return {"module": self.name, "batch_size": getattr(self.module, "batch_size", None)}
        views = None if for_teacher else self._config.get("views")
        return {
            "view": self._config.get("view"),
            "batch_size": self._config.get("batch_size"),
            **({} if views is None else {"views": views}),
        }

    def count_steps_per_epoch(self, world_size: int) -> tuple[int, int]:
        train, validation = len(self.train_dataloader()), len(self.val_dataloader())
        return max(1, train // world_size), max(1, validation // world_size)

    def describe_training(self) -> tuple[str, ...]:
        return ()

    def scan_job(self, decode_size: int) -> None:
        """Return None: the module decodes its images."""

    def evaluate_only(self, evaluation: Evaluation) -> None:
        """Do nothing: the module determines classes and splits."""

    def leave_out(self, numbers: Iterable[int]) -> None:
        """Do nothing: images can't be left out of finished batches."""

    def hash_images(self, *, whole: bool) -> Sequence[bytes]:
        """Return nothing: the images have no digests."""
        return ()

    def list(self) -> None:
        """Do nothing: the images are known after `load` only."""

    def load(self, folder: Path | None) -> None:
        """Set up the module, and read its labels and first training batch.

        Raises `RequestError` if a loader has no batches of images and labels.
        """
        for step, *arguments in (("prepare_data",), ("setup", "fit"), ("setup", "test")):
            self._call(step, *arguments)
        self._check_length()
        self._targets = {name: self._read_labels(name) for name in ("validation", "test")}
        self._first = next(iter(self.build_evaluation_loader("train", None)), None)
        if self._first is None:
            raise _build_empty_split_error("train")
        check_images(self._first.image)
        self._contents = self._hash_train(self._first)
        self.notes += (*note_values(self._first.image), *self._note_copies())
        numbers = map(str, range(self._count_classes(self._first)))
        self.classes = read_class_names(self.module) or tuple(numbers)
        self.notes += self._note_untrained()
        for split, targets in self._targets.items():
            check_target(torch.from_numpy(targets), None, len(self.classes), where=split)
        check_target(self._first.target, self._first.labeled, len(self.classes), where="train")

    def _hash_train(self, first: Batch) -> bytes:
        again = next(iter(self.build_evaluation_loader("train", None)))
        return hash_repeated(first, again) + hash_contents(self._call("train_dataloader"))

    def _call(self, step: str, *arguments: str) -> Any:
        """Call a method of the module; its failure is a wrong request."""
        try:
            return getattr(self.module, step)(*arguments)
        except RequestError:
            raise
        except Exception as error:
            call = f"{step}({', '.join(map(repr, arguments))})"
            raise RequestError(
                f"The data module {self.name} failed in {call}: {type(error).__name__}:"
                f" {take_first_line(error).rstrip('.')}. Correct the data module. Expected: a"
                " LightningDataModule with train_dataloader, val_dataloader and test_dataloader."
            ) from error

    def _check_length(self) -> None:
        """Raise `RequestError` if the number of training batches is unknown: the
        schedule of the learning rate needs it.
        """
        loader = self._call("train_dataloader")
        try:
            len(loader)
        except TypeError:
            if loader is None or isinstance(loader, list | dict):
                return
            raise RequestError(
                "The train loader of the data module has no length, which the schedule of the"
                " learning rate needs (an IterableDataset without __len__). Give the dataset a"
                " __len__, or use a dataset with __getitem__."
            ) from None

    def _note_copies(self) -> tuple[str, ...]:
        """Return a note about images that are in validation and in test."""
        copies = len({*self._digests["validation"]} & {*self._digests["test"]})
        if not copies:
            return ()
        return (
            f"{copies:,} images are in the validation and in the test loader of the data module:"
            " they choose the best epoch and measure it, so metrics on test are too high.",
        )

    def _note_untrained(self) -> tuple[str, ...]:
        """Return a note about classes of validation or test that train lacks, if the
        labels of train are known.
        """
        trained = read_train_labels(self._call("train_dataloader"))
        if trained is None:
            return ()
        measured = np.unique(np.concatenate([*self._targets.values()]))
        missing = [
            self.classes[number]
            for number in np.setdiff1d(measured, trained.numpy())
            if number < len(self.classes)
        ]
        if not missing:
            return ()
        return (
            f"Validation or test have images of {quote_some(missing)}, but train has none, so no"
            " model can learn them. Expected: images of every class in train.",
        )

    def _count_classes(self, first: Batch) -> int:
        if first.target.dim() == 2:
            return first.target.shape[1]
        targets = (first.target.numpy(), *self._targets.values())
        return 1 + max(int(target.max()) for target in targets)

    def _read_labels(self, split: str) -> Int64[np.ndarray, " images"]:
        loader = self.build_evaluation_loader(split, None)
        labels: list[np.ndarray] = []
        first: Batch | None = None
        digests: list[bytes] = []
        for batch in loader:
            first = first or batch
            digests += hash_images(batch.image)
            labels.append(batch.to_hard_target().numpy())
        if first is None:
            raise _build_empty_split_error(split)
        self._lengths[split] = len(labels)
        # The seed that `_start_loader` sets does not reach the second batch.
        again = list(islice(self.build_evaluation_loader(split, None), 2))
        if not again or not torch.equal(first.to_hard_target(), again[0].to_hard_target()):
            raise RequestError(
                f"The {split} loader of the data module gives other images when it is read again."
                " Expected: the same images in the same order, because the models are compared"
                " image by image. Remove the shuffling (shuffle=False)."
            )
        repeated = [digest for batch in again for digest in hash_images(batch.image)]
        self._digests[split] = digests
        if repeated != digests[: len(repeated)]:
            self._digests[split] = []
            self.notes += (
                f"The {split} loader of the data module gives other pixels when it is read again:"
                " metrics vary, and a change of its images is not noticed. Remove the random"
                " augmentation.",
            )
        return np.concatenate(labels)

    @property
    def batch_size(self) -> int:
        """The `batch_size` of the module if set, else the size of the first batch."""
        return int(getattr(self.module, "batch_size", None) or len(self._first or ()))

    @property
    def smallest_batch(self) -> int | None:
        """Images of the last batch of the train loader, if its sampler has a length."""
        loader = self.module.train_dataloader()
        if not isinstance(loader, DataLoader) or loader.batch_size is None:
            return None
        try:
            images = len(loader.sampler)  # type: ignore[arg-type]
        except TypeError:
            return None
        rest = images % loader.batch_size
        return loader.batch_size if loader.drop_last or not rest else rest

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        assert self._first is not None
        return int(self._first.image.shape[1])

    @property
    def size(self) -> int:
        """Height of the images in pixels."""
        assert self._first is not None
        return int(self._first.image.shape[2])

    @property
    def width(self) -> int:
        """Width of the images in pixels."""
        assert self._first is not None
        return int(self._first.image.shape[3])

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images by split; for train, number of batches times batch size."""
        loader = self.module.train_dataloader()
        images = len(loader) * len(self._first or ())
        if isinstance(loader, DataLoader) and loader.batch_size and not loader.drop_last:
            images = len(loader.dataset)  # type: ignore[arg-type]
        return {"train": images, **{name: len(labels) for name, labels in self._targets.items()}}

    @property
    def fingerprint(self) -> str:
        """sha256 of all images and labels of validation and test; of train, of the
        first batch, the number of images, their labels and `hash_contents`.
        """
        trained = read_train_labels(self._call("train_dataloader"))
        digest = hashlib.sha256(self._contents)
        for targets in self._targets.values():
            digest.update(targets.tobytes())
        digest.update(b"".join(each for images in self._digests.values() for each in images))
        digest.update(str(self.sizes["train"]).encode())
        digest.update(b"" if trained is None else trained.numpy().tobytes())
        return digest.hexdigest()

    @property
    def groups(self) -> tuple[str, ...]:
        """Empty: groups are unknown."""
        return ()

    @property
    def files(self) -> Sequence[str]:
        """Image numbers as text: file names are unknown."""
        return ImageNumbers()

    def make_thumbnail(self, index: int) -> bytes | None:
        """Return None: the normalization of the images is unknown."""

    def compute_pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return 0 and 1: the images are already normalized."""
        return (0.0,) * self.channels, (1.0,) * self.channels

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
        """Serve a model from now on, with the training order seeded by `order_seed`.

        The module determines labels and augmentation: `labeled_only` and `fresh_views`
        have no effect. Raises `RequestError` for an `input_spec` of another size, and
        for `partners` and `pseudo_labels`.
        """
        assert not with_validation, "is_refit_due requires ImageData"
        if partners is not None:
            require(self, "partners", because=f"partners={partners}", instead="leave it out")
        if pseudo_labels is not None:
            require(self, "unlabeled", because="pseudo_labels", instead="leave it out")
        self._order_seed = order_seed
        expected = (input_spec.channels, input_spec.height, input_spec.width)
        if expected != (self.channels, self.size, self.width):
            raise RequestError(
                f"The data module provides {self.channels}x{self.size}x{self.width} images, but"
                f" this model expects {'x'.join(map(str, expected))}. Set image_size=[{self.size},"
                f"{self.width}] and kwargs.in_chans={self.channels} of the teacher or student, or"
                " change the data module."
            )

    def train_dataloader(self) -> "OrderedLoader":
        """Return the module's loader, with a seeded order."""
        return OrderedLoader(
            self.module.train_dataloader(), self._compute_epoch_seed, len(self.classes) or None
        )

    def _compute_epoch_seed(self) -> int:
        return self._order_seed * 1_000_003 + (
            self.trainer.current_epoch if self.trainer is not None else 0
        )

    def val_dataloader(self) -> "NumberedLoader":
        """Return the module's loader, with numbered images."""
        return self.build_evaluation_loader("validation", None)

    def build_evaluation_loader(
        self,
        split: str,
        input_spec: InputSpec | None,
        *,
        batch_size: int | None = None,
        corruption: Corruption | None = None,
    ) -> "NumberedLoader":
        """Return the batches of a split, with the images numbered in their order.

        `input_spec` and `batch_size` have no effect. Raises `RequestError` for a
        corruption.
        """
        if corruption is not None:
            require(self, "uint8", because="A corruption", instead="leave it out")
        method = {
            "train": "train_dataloader",
            "validation": "val_dataloader",
            "test": "test_dataloader",
        }[split]
        loader = self._call(method)
        if loader is None or isinstance(loader, list | dict):
            raise RequestError(
                f"The data module provides {type(loader).__name__} as its {split} loader."
                " Expected: one loader of (image, target) batches. Change the data module."
            )
        return NumberedLoader(loader, split, len(self.classes) or None, self._lengths.get(split))

    def sample(self, split: str, input_spec: InputSpec | None, images: int) -> Iterator[Batch]:
        """Yield the first batches of a split: at most `images` images or one batch."""
        count = 0
        for batch in self.build_evaluation_loader(split, input_spec):
            if count and count + len(batch) > images:
                return
            count += len(batch)
            yield batch

    def list_targets(self, split: str) -> Int64[np.ndarray, " images"] | None:
        """Return the class numbers of validation or test; None for train."""
        return self._targets.get(split)

    def count_labels(self) -> None:
        """Return None: the training labels are known only while a loader is read."""

    def list_rows(self, split: str) -> None:
        """Return None: images are numbered only while a loader is read."""

    def list_unlabeled_rows(self) -> None:
        """Return None: images are numbered only while a loader is read."""

    def iterate_images(self, split: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield number and normalized pixels of each image of a split, in order."""
        for batch in self.build_evaluation_loader(split, None):
            for index, image in zip(batch.index.tolist(), batch.image, strict=True):
                yield index, image.permute(1, 2, 0).numpy()

    def read_image(self, index: int) -> None:
        """Return None: the normalization of the images is unknown."""

    def replay(self, input_spec: InputSpec) -> None:
        """Return None: there are no views."""

    def limit_views(self, count: int) -> None:
        """Do nothing: there are no views."""

    def write_split(self, path: Path) -> None:
        """Do nothing: the images have no file names."""


def _build_empty_split_error(split: str) -> RequestError:
    return RequestError(
        f"The {split} loader of the data module has no batches. Expected: at least one. Add"
        " images; with drop_last=True, also make the batch size no larger than the split."
    )
