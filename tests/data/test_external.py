"""Tests of user-provided data modules."""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from kd_app.config import InputSpec, RequestError
from kd_app.data.batch import Batch
from kd_app.data.external import ExternalDataModule

SIZES = {"train": 12, "validation": 7, "test": 5}


def images(number: int, channels: int = 3, side: int = 8) -> Tensor:
    """Build images; all values of image i are i."""
    return (
        torch.arange(number, dtype=torch.float32)
        .view(-1, 1, 1, 1)
        .expand(-1, channels, side, side)
        .contiguous()
    )


class Loader:
    """A loader of fixed batches."""

    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Module(LightningDataModule):
    """A typical data module with batches of (image, target).

    loaders: replace the loader of a split.
    """

    def __init__(
        self, *, classes: int = 3, channels: int = 3, batch_size: int = 4, **loaders: Any
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.diary: list[str] = []
        self.sets = {
            name: TensorDataset(images(n, channels), torch.arange(n) % classes)
            for name, n in SIZES.items()
        }
        self.loaders = loaders
        self.class_names: Any = None

    def prepare_data(self) -> None:
        self.diary.append("prepare")

    def setup(self, stage: str) -> None:
        self.diary.append(stage)

    def loader(self, split: str, **more: Any) -> Any:
        return (
            self.loaders[split]
            if split in self.loaders
            else DataLoader(self.sets[split], self.batch_size, **more)
        )

    def train_dataloader(self) -> Any:
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> Any:
        return self.loader("validation")

    def test_dataloader(self) -> Any:
        return self.loader("test")


def serve(module: LightningDataModule | None = None, **kwargs: Any) -> ExternalDataModule:
    data = ExternalDataModule(module or Module(**kwargs))
    data.list()
    data.load(None)
    return data


def gather(batches: Iterable[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    items = list(batches)
    assert all(isinstance(batch, Batch) for batch in items)
    return (
        torch.cat([b.image for b in items]),
        torch.cat([b.target for b in items]),
        torch.cat([b.index for b in items]),
    )


def order(data: ExternalDataModule) -> list[float]:
    """Return the images of a training epoch, in order."""
    return [value for image, _ in data.train_dataloader() for value in image[:, 0, 0, 0].tolist()]


def test_the_module_is_set_up_before_it_is_read() -> None:
    module = Module()
    serve(module)
    assert module.diary == ["prepare", "fit", "test"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_images_are_numbered_in_the_order_of_the_loader(split: str) -> None:
    data = serve()
    for _ in range(2):
        image, target, index = gather(data.build_evaluation_loader(split, None))
        assert index.tolist() == list(range(SIZES[split]))
        assert torch.equal(image[:, 0, 0, 0], index.float())
        assert torch.equal(target, index % 3)
    assert torch.equal(
        gather(data.val_dataloader())[2],
        gather(data.build_evaluation_loader("validation", None))[2],
    )
    assert [data.files[number] for number in (0, 3)] == ["0", "3"]


def test_sizes_and_statistics_come_from_the_module() -> None:
    data = serve(channels=1)
    assert (data.channels, data.size, data.batch_size, data.sizes) == (1, 8, 4, SIZES)
    assert data.compute_pixel_statistics() == ((0.0,), (1.0,))
    assert len(data.build_evaluation_loader("validation", None)) == 2
    assert len(data.train_dataloader()) == 3


@pytest.mark.parametrize("attribute", ["classes", "class_names"])
def test_class_names_are_the_modules_own(attribute: str) -> None:
    module = Module()
    setattr(module, attribute, ["cat", "dog", "eel"])
    assert serve(module).classes == ("cat", "dog", "eel")


def test_without_names_the_classes_are_counted() -> None:
    assert serve(classes=5).classes == ("0", "1", "2", "3", "4")
    assert len(serve(test=Loader((images(2), torch.tensor([0, 6])))).classes) == 7


def test_the_number_of_classes_is_the_number_of_share_columns() -> None:
    """The last class may have the largest share in no image."""
    shares = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.1, 0.8, 0.1, 0.0]])
    measured = Loader((images(2), torch.tensor([0, 1])))
    assert (
        len(serve(train=Loader((images(2), shares)), validation=measured, test=measured).classes)
        == 4
    )


def test_batches_of_type_batch_are_unchanged() -> None:
    own = Batch(
        images(2), torch.tensor([1, 0]), torch.tensor([41, 17]), labeled=torch.tensor([True, False])
    )
    _, _, index = gather(serve(validation=Loader(own)).build_evaluation_loader("validation", None))
    assert index.tolist() == [41, 17]


# -- the order of an epoch


def build_bound(seed: int, epoch: int = 0) -> ExternalDataModule:
    data = serve()
    data.bind(InputSpec(3, 8, 8, (0.0,) * 3, (1.0,) * 3), order_seed=seed)
    trainer: Any = SimpleNamespace(current_epoch=epoch)
    data.trainer = trainer
    return data


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    torch.manual_seed(1)
    first = order(build_bound(3))
    torch.manual_seed(2)
    assert order(build_bound(3)) == first
    assert sorted(first) == list(range(SIZES["train"]))
    assert len({tuple(order(build_bound(seed, epoch))) for seed in (3, 4) for epoch in (0, 1)}) == 4


def test_reading_keeps_the_global_random_state() -> None:
    data = build_bound(3)
    before = torch.get_rng_state()
    order(data)
    gather(data.build_evaluation_loader("train", None))
    assert torch.equal(torch.get_rng_state(), before)


# -- errors


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            (images(2).to(torch.uint8), torch.tensor([0, 1])),
            r"\(2, 3, 8, 8\) and type torch.uint8. Expected: float images",
        ),
        (
            (images(2)[:, 0], torch.tensor([0, 1])),
            r"\(2, 8, 8\) and type torch.float32. Expected: float images \[B, C, H, W\]",
        ),
        ({"image": images(2), "label": torch.tensor([0, 1])}, "is of type dict. Expected"),
        (
            (images(2), torch.tensor([0, 1]), torch.tensor([0, 1])),
            r"is of type tuple. Expected: \(image, target\), two tensors",
        ),
        ((images(2), [0, 1]), "two tensors"),
        (images(2), "is of type Tensor. Expected"),
    ],
)
def test_batches_of_another_kind_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        serve(train=Loader(batch))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (None, "NoneType"),
        ([DataLoader([1]), DataLoader([1])], "list"),  # type: ignore[arg-type]
        ({"a": DataLoader([1])}, "dict"),  # type: ignore[arg-type]
    ],
)
def test_none_or_several_loaders_are_refused(split: str, loader: Any, message: str) -> None:
    with pytest.raises(
        RequestError, match=f"provides {message} as its {split} loader. Expected: one loader"
    ):
        serve(**{split: loader})


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 16)])
def test_a_model_with_another_input_size_is_refused(channels: int, side: int) -> None:
    with pytest.raises(
        RequestError,
        match=f"provides 3x8x8 images, but this model expects {channels}x{side}x{side}",
    ):
        serve().bind(
            InputSpec(channels, side, side, (0.0,) * channels, (1.0,) * channels), order_seed=0
        )


# -- fingerprint and targets


def build_changed_module(split: str, what: int) -> Module:
    module = Module()
    tensors = [tensor.clone() for tensor in module.sets[split].tensors]
    tensors[what][0] += 1
    module.sets[split] = TensorDataset(*tensors)
    return module


def test_the_fingerprint_depends_on_the_data_only() -> None:
    first = serve().fingerprint
    torch.manual_seed(9)
    assert serve().fingerprint == first
    others = [
        serve(build_changed_module(split, what)).fingerprint
        for split, what in (("validation", 1), ("test", 1))
    ]
    whole = Module(batch_size=SIZES["train"])
    changed_train = Module(batch_size=SIZES["train"])
    changed_train.sets["train"] = build_changed_module("train", 0).sets["train"]
    assert len({first, *others, serve(whole).fingerprint, serve(changed_train).fingerprint}) == 5


def test_validation_and_test_targets_are_known_after_loading() -> None:
    data = serve()
    for split in ("validation", "test"):
        assert np.array_equal(
            gather(data.build_evaluation_loader(split, None))[1].numpy(),
            np.arange(SIZES[split]) % 3,
        )
        assert data.sizes[split] == SIZES[split]


def test_a_target_that_is_no_label_is_refused_in_each_split() -> None:
    two = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    for split in ("train", "validation", "test"):
        parts: dict[str, Any] = {split: Loader((images(2), two))}
        module = ExternalDataModule(Module(**parts))
        with pytest.raises(RequestError, match=f"of the {split} images has shares of 2 in sum"):
            module.load(None)


def test_a_label_without_a_class_is_refused_when_it_is_read() -> None:
    wrong = Loader((images(2), torch.tensor([0, 1])), (images(2), torch.tensor([2, 3])))
    data = ExternalDataModule(Module(train=wrong))
    data.load(None)
    with pytest.raises(RequestError, match="of the train images is 3, but there are 3 classes"):
        list(data.train_dataloader())
    module: Any = Module(validation=wrong)
    module.classes = ["a", "b", "c"]
    with pytest.raises(RequestError, match="of the validation images is 3, but there are 3"):
        ExternalDataModule(module).load(None)


def test_columns_of_class_numbers_are_class_numbers() -> None:
    """Some data sets come with labels [B, 1]."""
    column = Loader((images(3), torch.tensor([[0], [2], [1]], dtype=torch.uint8)))
    data = ExternalDataModule(Module(train=column, validation=column, test=column))
    data.load(None)
    targets = data.list_targets("test")
    assert targets is not None
    assert targets.tolist() == [0, 2, 1]
    (batch,) = data.train_dataloader()
    assert batch[1].tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        ({"batch_size": 4}, 1),
        ({"batch_size": 4, "shuffle": True, "drop_last": True}, 4),
        ({"batch_size": 3}, 3),
        ({"batch_size": 4, "sampler": range(6)}, 2),
        ({"batch_sampler": [[0, 1], [2]]}, None),
    ],
)
def test_the_size_of_the_last_training_batch_is_known_from_the_loader(
    loader: dict[str, Any], expected: int | None
) -> None:
    images_and_labels = TensorDataset(images(9), torch.arange(9) % 3)
    module = Module(train=DataLoader(images_and_labels, **loader))
    assert ExternalDataModule(module).smallest_batch == expected
    assert ExternalDataModule(Module(train=Loader())).smallest_batch is None
