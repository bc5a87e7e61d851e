"""Tests of the digits of scikit-learn."""

import importlib
import sys
from unittest.mock import patch

import numpy as np
from sklearn.datasets import load_digits

from kd_app.data.digits import Digits


def test_the_digits_are_those_of_scikit_learn_scaled_to_a_byte() -> None:
    source, reference = Digits(), load_digits()
    store = source.store()
    assert store.shape == (1797, 1, 8, 8)
    assert (store[:, 0].numpy() == np.rint(reference.images * 255 / 16)).all()
    assert (int(store.min()), int(store.max())) == (0, 255)
    assert (source.list_images().target == reference.target).all()


def test_the_listing_names_every_image_and_leaves_the_splits_open() -> None:
    source = Digits()
    listing = source.list_images()
    assert listing.files[12] == "digits/0012"
    assert len(set(listing.files)) == len(listing.files) == 1797
    assert listing.classes == tuple("0123456789")
    assert set(listing.split) == set(listing.group) == {""}
    assert (source.channels, source.size) == (1, 8)


def test_read_returns_the_image_of_the_store() -> None:
    source = Digits()
    image = source.read(1000)
    assert image.mode == "L"
    assert (np.asarray(image) == source.store()[1000, 0].numpy()).all()


def test_loading_imports_neither_scikit_learn_nor_scipy() -> None:
    ours = [name for name in sys.modules if name.partition(".")[0] == "kd_app"]
    # None: importing it raises ImportError
    with patch.dict(sys.modules, dict.fromkeys(("sklearn", "scipy", "pandas"))):
        for name in ours:
            del sys.modules[name]
        fresh = importlib.import_module("kd_app.data.digits")
        assert len(fresh.Digits().list_images().files) == 1797
