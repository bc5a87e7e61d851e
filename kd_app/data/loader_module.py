"""Loaders passed from Python, as a LightningDataModule."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule

from kd_app.config import RequestError

_SPLITS = ("train", "validation", "test")
_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_EXPECTED = (
    "Expected: a LightningDataModule, or three loaders of (image, target) batches:"
    " data=(train, validation, test), or data={'train': ..., 'validation': ..., 'test': ...}."
)


class LoaderModule(LightningDataModule):
    """Three loaders of (image, target) batches as a data module."""

    def __init__(self, train: Any, validation: Any, test: Any) -> None:
        super().__init__()
        self._loaders = {"train": train, "validation": validation, "test": test}
        dataset = getattr(train, "dataset", None)
        self.classes = getattr(dataset, "classes", None)
        self.batch_size = getattr(train, "batch_size", None)

    def train_dataloader(self) -> Any:
        return self._loaders["train"]

    def val_dataloader(self) -> Any:
        return self._loaders["validation"]

    def test_dataloader(self) -> Any:
        return self._loaders["test"]


def wrap_loaders(data: Any) -> LightningDataModule:
    """A data module of `data`: a data module itself, or three loaders in the order
    train, validation, test or by name.

    Raises `RequestError` for anything else.
    """
    if isinstance(data, LightningDataModule):
        return data
    if isinstance(data, Mapping):
        loaders = {_NAMES.get(str(name), str(name)): loader for name, loader in data.items()}
        if set(loaders) == set(_SPLITS):
            return LoaderModule(**_check_loaders(loaders))
        raise RequestError(f"data= has the keys {', '.join(map(str, data)) or 'none'}. {_EXPECTED}")
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        if len(data) == len(_SPLITS):
            return LoaderModule(**_check_loaders(dict(zip(_SPLITS, data, strict=True))))
        raise RequestError(f"data= has {len(data)} entries. {_EXPECTED}")
    kind = type(data).__name__
    if hasattr(data, "__iter__") and hasattr(data, "dataset"):
        raise RequestError(
            f"data= is one loader ({kind}), but a run needs three splits: one to train on, one to"
            f" choose by, one to test on. {_EXPECTED}"
        )
    raise RequestError(f"data= is of type {kind}. {_EXPECTED}")


def _check_loaders(loaders: Mapping[str, Any]) -> Mapping[str, Any]:
    for split, loader in loaders.items():
        is_set = hasattr(loader, "__getitem__") and not isinstance(loader, list | tuple)
        if is_set or not hasattr(loader, "__iter__"):
            raise RequestError(
                f"data= has a {type(loader).__name__} as its {split} loader. Expected: a loader of"
                " (image, target) batches, for example torch.utils.data.DataLoader(dataset,"
                " batch_size=64)."
            )
    return loaders
