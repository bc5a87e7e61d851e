"""Tests of what the dataset of a user's loader states about its images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from kd_app.data import external_dataset
from kd_app.data.external_dataset import hash_contents
from tests.data.test_external import Loader, images, serve


class Stored(Dataset[Any]):
    """A dataset that has one attribute for all of its images."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.mean = np.random.default_rng().random(3)

    def __len__(self) -> int:
        return len(self.value)


def hash_value(value: Any) -> bytes:
    return hash_contents(DataLoader(Stored(value)))


def test_a_changed_image_beyond_the_first_batch_is_other_data() -> None:
    def fingerprint(*, last: float = 0.0) -> str:
        pixels = images(12)
        pixels[-1] += last
        return serve(train=DataLoader(TensorDataset(pixels, torch.arange(12) % 3), 4)).fingerprint

    assert fingerprint() == fingerprint()
    assert fingerprint() != fingerprint(last=1.0)


def test_random_pixels_of_training_are_no_other_data() -> None:
    class Random(Loader):
        def __iter__(self) -> Any:
            return iter([(torch.from_numpy(np.random.rand(2, 3, 8, 8)), torch.tensor([0, 1]))])

    first = serve(train=Random(None)).fingerprint
    assert serve(train=Random(None)).fingerprint == first


@pytest.mark.parametrize(
    "build",
    [
        lambda change: np.array([0, 1, 2, 3 + change]),
        lambda change: torch.tensor([0, 1, 2, 3 + change], dtype=torch.bfloat16),
        lambda change: [f"/photos/cat/{name}.png" for name in (1, 2, 3, 4 + change)],
        lambda change: [(Path(f"/photos/{name}.png"), 0) for name in (1, 2, 3, 4 + change)],
    ],
)
def test_arrays_and_lists_of_files_are_compared(build: Callable[[int], Any]) -> None:
    assert hash_value(build(0)) == hash_value(build(0)) != hash_value(build(1))


def test_files_are_compared_by_size_wherever_they_are(tmp_path: Path) -> None:
    digests = []
    for folder, content in (("a", b"12"), ("b", b"34"), ("c", b"345")):
        (tmp_path / folder / "cat").mkdir(parents=True)
        (tmp_path / folder / "cat" / "1.png").write_bytes(content)
        digests.append(hash_value([str(tmp_path / folder / "cat" / "1.png")] * 4))
    assert digests[0] == digests[1] != digests[2]


def test_parts_of_datasets_are_compared() -> None:
    whole = Stored(np.arange(6))
    parts = [Subset(whole, [0, 1, 2, 3]), Subset(whole, [0, 1, 2, 4])]
    digests = {hash_contents(DataLoader(part)) for part in parts}
    digests.add(hash_contents(DataLoader(ConcatDataset(parts))))
    assert len(digests) == 3


def test_objects_and_loaders_without_a_dataset_have_equal_digests() -> None:
    objects = [np.array([object(), None]) for _ in range(2)]
    assert hash_value(objects[0]) == hash_value(objects[1])
    assert hash_contents([]) == hash_contents([1])


def test_streams_and_single_numbers_are_no_contents() -> None:
    class Stream(IterableDataset[Any]):
        scale = torch.tensor(0.5)

        def __init__(self) -> None:
            self.mean = np.array(0.5)

        def __iter__(self) -> Any:
            return iter(())

    dataset = Stored([0, 1])
    dataset.mean = torch.tensor(0.5)  # type: ignore[assignment]
    assert hash_contents(DataLoader(dataset)) == hash_contents(DataLoader(Stream()))


def test_a_very_large_array_is_compared_by_some_of_its_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(external_dataset, "WHOLE_LIMIT", 16)
    assert hash_value(np.array([1, 2, 3, 4, 5])) == hash_value(np.array([1, 0, 0, 4, 0]))
