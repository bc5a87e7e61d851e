"""Several loaders as one."""

from collections.abc import Iterator
from typing import Any

from kd_app.data.batch import Batch


class Chained:
    """The batches of several loaders, one after the other."""

    def __init__(self, loaders: list[Any]) -> None:
        self._loaders = loaders

    def __len__(self) -> int:
        return sum(len(loader) for loader in self._loaders)

    def __iter__(self) -> Iterator[Batch]:
        for loader in self._loaders:
            yield from loader
