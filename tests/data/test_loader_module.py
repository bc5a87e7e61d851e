"""Loaders passed from Python in place of a data module."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from kd_app.config import RequestError
from kd_app.data.external import ExternalDataModule
from kd_app.data.loader_module import wrap_loaders


def loader(images: int = 4) -> DataLoader[Any]:
    data = TensorDataset(torch.zeros(images, 3, 8, 8), torch.arange(images) % 2)
    return DataLoader(data, batch_size=2)


def test_a_data_module_stays_itself() -> None:
    module = LightningDataModule()
    assert wrap_loaders(module) is module


@pytest.mark.parametrize(
    "loaders",
    [
        (loader(8), loader(4), loader(6)),
        [loader(8), loader(4), loader(6)],
        {"test": loader(6), "train": loader(8), "val": loader(4)},
        {"train": loader(8), "validation": loader(4), "test": loader(6)},
    ],
)
def test_three_loaders_are_the_splits(loaders: Any) -> None:
    data = ExternalDataModule(wrap_loaders(loaders))
    data.load(None)
    assert data.sizes == {"train": 8, "validation": 4, "test": 6}
    assert (data.batch_size, data.classes) == (2, ("0", "1"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (loader(), "is one loader .DataLoader., but a run needs three splits"),
        ((loader(), loader()), "has 2 entries"),
        ({"train": loader(), "test": loader()}, "has the keys train, test"),
        ({}, "has the keys none"),
        ("photos", "is of type str"),
        (torch.zeros(3), "is of type Tensor"),
        (TensorDataset(torch.zeros(3)), "is of type TensorDataset"),
        (
            (loader(), loader(), TensorDataset(torch.zeros(3))),
            "has a TensorDataset as its test loader",
        ),
        ((loader(), None, loader()), "has a NoneType as its validation loader"),
    ],
)
def test_anything_else_is_answered_with_what_is_expected(data: Any, message: str) -> None:
    with pytest.raises(RequestError, match=rf"data= {message}.*Expected: a"):
        wrap_loaders(data)
