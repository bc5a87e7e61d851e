"""Weights keep their hash when license and teacher are added to the metadata."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kd_app.digest import hash_file
from kd_app.models.weights_metadata import hash_weights, read_metadata, write_with_metadata

STATE = {
    "conv.weight": torch.arange(24.0).reshape(2, 3, 4),
    "count": torch.tensor(7),
    "bias": torch.ones(3, dtype=torch.bfloat16),
}


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"format": "pt", "who": 'Zoë "Q" \\ \n'}]
)
def test_a_labeled_file_holds_the_same_weights_under_the_same_hash(
    metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    plain, labeled, again = (
        tmp_path / f"{name}.safetensors" for name in ("plain", "labeled", "again")
    )
    save_file(STATE, plain, metadata=metadata)
    write_with_metadata(plain, labeled, license="cc-by-nc-4.0", teacher="größe.net")
    write_with_metadata(labeled, again, license="mit", teacher=None)
    assert hash_file(labeled) != hash_file(plain) == hash_weights(plain)
    for file, license in ((labeled, "cc-by-nc-4.0"), (again, "mit")):
        assert hash_weights(file) == hash_weights(plain)
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == read_metadata(file)
        assert {**(metadata or {}), "license": license}.items() <= read_metadata(file).items()
        assert all(torch.equal(tensor, STATE[name]) for name, tensor in load_file(file).items())


def test_other_weights_or_foreign_metadata_have_another_hash(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(4)]
    save_file(STATE, files[0])
    save_file({**STATE, "count": torch.tensor(8)}, files[1])
    save_file(STATE, files[2], metadata={"license": "mit"})
    write_with_metadata(files[1], files[3], license="mit", teacher=None)
    assert len({hash_weights(file) for file in files}) == 3
    assert hash_weights(files[2]) == hash_file(files[2])


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x20" + b"\0" * 7 + b'{"cut']
)
def test_an_invalid_file_has_no_metadata(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    assert read_metadata(tmp_path / "x.safetensors") == read_metadata(tmp_path / "nowhere") == {}
    assert hash_weights(tmp_path / "x.safetensors") == hash_file(tmp_path / "x.safetensors")
