"""Tests of timm's readers as sources: folders and tars, and a simulated stream."""

import io
import pickle
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from timm.data.readers import reader_factory

from kd_app.config import RequestError
from kd_app.data.images import BadImageError
from kd_app.data.timm_reader import TimmReader


def photos(root: Path, names: list[str]) -> Path:
    """Write a 3x2 image of another shade for each name."""
    for shade, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2), shade).save(root / name)
    return root


def source(root: Path | None, reader: str = "folder", channels: Any = 1) -> TimmReader:
    return TimmReader(root=root, reader=reader, channels=channels)


def shade(source_reader: TimmReader, index: int) -> int:
    return int(np.asarray(source_reader.read(index)).max())


def test_a_folder_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    source_reader = source(photos(tmp_path, ["class10/1.png", "class9/10.png", "class9/9.png"]))
    listing = source_reader.list_images()
    assert listing.classes == ("class9", "class10")  # timm orders names naturally
    assert listing.files == ("class9/9.png", "class9/10.png", "class10/1.png")
    assert listing.target.tolist() == [0, 0, 1]
    assert [shade(source_reader, index) for index in range(3)] == [2, 1, 0]
    assert set(listing.split) == {""}
    assert source(tmp_path, channels=3).read(0).mode == "RGB"


def test_predefined_splits_are_folders_with_classes_by_name(tmp_path: Path) -> None:
    names = [
        "train/a/1.png",
        "train/b/1.png",
        "train/c/1.png",
        "val/b/1.png",
        "val/c/1.png",
        "test/c/1.png",
    ]
    listing = source(photos(tmp_path, names)).list_images()
    rows = zip(listing.files, listing.split, listing.target.tolist(), strict=True)
    assert {(file, split, listing.classes[number]) for file, split, number in rows} == {
        ("train/a/1.png", "train", "a"),
        ("train/b/1.png", "train", "b"),
        ("train/c/1.png", "train", "c"),
        ("validation/b/1.png", "validation", "b"),
        ("validation/c/1.png", "validation", "c"),
        ("test/c/1.png", "test", "c"),
    }


def test_split_words_inside_names_are_read_as_in_data_folder(tmp_path: Path) -> None:
    names = [f"{part}/{name}/1.png" for part in ("training_set", "test_set") for name in "ab"]
    listing = source(photos(tmp_path, names)).list_images()
    assert listing.classes == ("a", "b")
    assert sorted(listing.split) == ["test", "test", "train", "train"]


def test_a_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="missing in train: z"):
        source(photos(tmp_path, ["train/a/1.png", "train/b/1.png", "test/z/1.png"])).list_images()


def test_the_fingerprint_is_independent_of_the_path_and_covers_every_byte(tmp_path: Path) -> None:
    photos(tmp_path / "x", ["a/1.png", "b/1.png"])
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    before = source(tmp_path / "x").list_images().fingerprint
    assert source(tmp_path / "y").list_images().fingerprint == before
    Image.new("L", (3, 2), 99).save(tmp_path / "y" / "a" / "1.png")
    assert source(tmp_path / "y").list_images().fingerprint != before


def tar(tmp_path: Path, count: int) -> Path:
    photos(tmp_path / "x", [f"{name}/{number}.png" for name in "ab" for number in range(count)])
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name in "ab":
            archive.add(tmp_path / "x" / name, name)
    return tmp_path / "photos.tar"


def _shades(source_reader: TimmReader) -> list[int]:
    return [shade(source_reader, index) for index in range(len(source_reader.list_images().files))]


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # timm's reader keeps its tar open for good
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_tar_is_read_by_threads_and_by_forked_processes_at_once(tmp_path: Path) -> None:
    source_reader = source(tar(tmp_path, 20))
    assert source_reader.list_images().classes == ("a", "b")
    expected = list(range(40))
    assert _shades(source_reader) == expected
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(_shades, [source_reader] * 4)) == [expected] * 4
    with get_context("fork").Pool(2) as processes:
        assert processes.map(_shades, [source_reader] * 4) == [expected] * 4


def test_a_source_can_be_pickled(tmp_path: Path) -> None:
    source_reader = source(photos(tmp_path, ["a/1.png", "b/1.png"]))
    source_reader.list_images()
    again = pickle.loads(pickle.dumps(source_reader))
    assert shade(again, 1) == 1


def test_the_message_names_a_bad_image(tmp_path: Path) -> None:
    photos(tmp_path, ["a/1.png", "b/1.png"])
    (tmp_path / "b" / "1.png").write_bytes(b"no image")
    with pytest.raises(BadImageError, match=r"b/1\.png"):
        source(tmp_path).read(1)


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        ("foldr", "Did you mean 'folder'"),
        ("torch/cifar10", "There is no timm reader 'torch/cifar10'"),
        ("hfds", "There is no timm reader"),
        ("wds/photos", "no train split|not installed"),
        ("folder", "can't read"),
    ],
)
def test_unreadable_data_raise_a_request_error(tmp_path: Path, reader: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        source(tmp_path, reader).list_images()


def test_the_index_of_a_tar_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "photos.tar").touch()
    (tmp_path / "_photos_tarinfos.pickle").symlink_to(tmp_path / "victim")
    with pytest.raises(RequestError, match=r"_photos_tarinfos.pickle', where timm .* is a link"):
        source(tmp_path / "photos.tar").list_images()
    assert not (tmp_path / "victim").exists()


def test_a_missing_root_and_a_single_class_raise_a_request_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="There is no"):
        source(tmp_path / "none").list_images()
    with pytest.raises(RequestError, match=r"data\.root is not set"):
        source(None).list_images()
    with pytest.raises(RequestError, match="single class, 'a'"):
        source(photos(tmp_path, ["a/1.png"])).list_images()


class Stream:
    """A sequential reader like timm's TFDS, WebDataset and streaming HF readers."""

    class_to_idx: ClassVar[dict[str, int]] = {"cat": 0, "dog": 1}

    def __init__(self, count: int, targets: tuple[Any, ...] = (0, 1)) -> None:
        self.count = count
        self.targets = targets
        self.dist_rank, self.dist_num_replicas = 1, 2

    def __iter__(self) -> Iterator[tuple[Image.Image, Any]]:
        for number in range(self.dist_rank, self.count, self.dist_num_replicas):
            yield Image.new("RGB", (3, 2), (number, 0, 0)), self.targets[number % len(self.targets)]


def offer(monkeypatch: pytest.MonkeyPatch, **streams: Stream) -> None:
    def create_reader(name: str, root: str | None, split: str) -> Stream:
        assert (name, root) == ("tfds/pets", None)
        if split not in streams:
            raise ValueError(f"Unknown split {split!r}")
        return streams[split]

    monkeypatch.setattr(reader_factory, "create_reader", create_reader)


def test_a_stream_is_held_in_memory_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, train=Stream(5), valid=Stream(2))
    source_reader = source(None, "tfds/pets", channels=3)
    listing = source_reader.list_images()
    assert listing.split == ("train",) * 5 + ("validation",) * 2
    assert listing.files[6] == "validation/00000001"
    assert [listing.classes[number] for number in listing.target[:3]] == ["cat", "dog", "cat"]
    assert [source_reader.read(index).getpixel((0, 0)) for index in (0, 4, 6)] == [
        (0, 0, 0),
        (4, 0, 0),
        (1, 0, 0),
    ]
    assert pickle.loads(pickle.dumps(source_reader)).read(4).size == (3, 2)
    assert source(None, "tfds/pets", channels=3).list_images().fingerprint == listing.fingerprint
    offer(monkeypatch, train=Stream(5), valid=Stream(3))
    assert source(None, "tfds/pets", channels=3).list_images().fingerprint != listing.fingerprint


def test_a_stream_without_train_or_with_several_labels_an_image_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offer(monkeypatch, test=Stream(5))
    with pytest.raises(RequestError, match=r"no train split .*Unknown split 'train'"):
        source(None, "tfds/pets").list_images()
    offer(monkeypatch, train=Stream(5, targets=([0, 1], [1])))
    with pytest.raises(RequestError, match=r"label \[0, 1\].*one class number"):
        source(None, "tfds/pets").list_images()


def test_a_stream_above_the_memory_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, train=Stream(5))
    monkeypatch.setattr("kd_app.data.timm_reader._HELD_LIMIT", 100)
    with pytest.raises(RequestError, match="data=folder"):
        source(None, "tfds/pets").list_images()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_reader(*_: Any, **__: Any) -> None:
        raise ImportError("No module named 'tensorflow_datasets'")

    monkeypatch.setattr(reader_factory, "create_reader", create_reader)
    with pytest.raises(RequestError, match="tensorflow_datasets"):
        source(None, "tfds/pets").list_images()


def test_classes_without_names_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "class_to_idx", {})
    offer(monkeypatch, train=Stream(12, targets=(10, 9, 2)))
    listing = source(None, "tfds/pets").list_images()
    assert listing.classes == ("2", "9", "10")
    assert listing.target[:3].tolist() == [2, 1, 0]


def test_images_in_memory_are_read_as_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Table:
        """As timm's Hugging Face reader: by number, with bytes, and perhaps without a
        name.
        """

        class_to_idx: ClassVar[dict[str, int]] = {"x": 0, "y": 1}

        def __len__(self) -> int:
            return 2

        def __getitem__(self, number: int) -> tuple[io.BytesIO, np.int64]:
            buffer = io.BytesIO()
            Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(buffer, "png")
            return io.BytesIO(buffer.getvalue()), np.int64(number)

        def filename(self, number: int) -> str | None:
            return None if number else "/home/me/.cache/first.png"

    monkeypatch.setattr(reader_factory, "create_reader", lambda name, root, split: Table())
    source_reader = source(None, "hfds/pets")
    assert source_reader.list_images().files[:2] == ("train/00000000-first.png", "train/00000001")
    assert shade(source_reader, 1) == 255
