"""Tests of capabilities, identities and plan phrases of the data of a run."""

from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest

from kd_app.config import RequestError
from kd_app.data.base import NEEDS, Capability, RunData, require
from kd_app.data.external import ExternalDataModule
from kd_app.data.module import ImageData
from kd_app.data.views import CropFlip
from tests.data.test_external import Module
from tests.data.test_module import GRAY, Arrays, arrays, build_images

ALL = frozenset(NEEDS)
HERE = Path(__file__).parent
VIEW = {"_target_": "kd_app.data.views.CropFlip", "padding": 1, "flip": True}
MIX = {"mixup": 0.2, "cutmix": None, "probability": 1.0}
AUGMENT = {"operations": 2, "magnitude": 9, "erasing": 0.0}


def images(**settings: Any) -> ImageData:
    """Build data without listing the images."""
    return build_images(partial(Arrays, images=60), **settings)


def external(**config: Any) -> ExternalDataModule:
    return ExternalDataModule(Module(), config or None)


# -- capabilities


def test_every_capability_has_a_text_for_messages() -> None:
    assert set(NEEDS) == set(get_args(Capability))


@pytest.mark.parametrize(
    ("data", "capabilities"),
    [
        (images(views=4), ALL - {"unlabeled"}),
        (images(), ALL - {"views", "unlabeled"}),
        (images(views=2, label_fraction=0.1), ALL - {"partners"}),
        (images(views=2, label_fraction=1.0), ALL - {"unlabeled"}),
        (images(views=2, unlabeled=HERE), ALL - {"partners"}),
        (external(), frozenset()),
    ],
)
def test_capabilities_depend_on_the_settings_only(
    data: RunData, capabilities: frozenset[Capability]
) -> None:
    assert data.capabilities == capabilities
    assert data.capabilities.isdisjoint(data.lacks)
    assert data.capabilities | set(data.lacks) == ALL


# -- require


def test_an_existing_capability_raises_no_error() -> None:
    require(images(views=4), "views", because="A setting", instead="leave it out")


def test_the_message_has_the_setting_the_reason_and_both_fixes() -> None:
    with pytest.raises(RequestError) as error:
        require(external(), "sharded", because="trainer.devices=2", instead="use trainer.devices=1")
    assert str(error.value) == (
        "trainer.devices=2 needs a different share of the images for each process, but the data"
        " module Module provides the same batches to every process. Read the images with"
        " data=folder or data=csv, or use trainer.devices=1."
    )


@pytest.mark.parametrize(
    ("data", "capability", "reason"),
    [
        (images(), "views", r"data\.views=null .* Set data\.views, for example data\.views=4, or"),
        (
            images(label_fraction=0.1),
            "partners",
            r"data\.label_fraction=0\.1 .* Set data\.label_fraction=null, or",
        ),
        (
            images(unlabeled=HERE),
            "partners",
            r"data\.unlabeled=.* Set data\.unlabeled=null, or",
        ),
    ],
)
def test_the_message_names_the_setting_that_removes_the_capability(
    data: RunData, capability: Capability, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        require(data, capability, because="It", instead="leave it out")


# -- identity: part of the hash in the names of stages


def test_the_identity_contains_active_options_only() -> None:
    assert images().describe_identity(for_teacher=False) == {"view": VIEW, "batch_size": 8}
    off = {
        "mix": {**MIX, "mixup": None},
        "augment": {**AUGMENT, "operations": 0},
        "label_fraction": 1.0,
    }
    assert images(**off).describe_identity(for_teacher=False) == {"view": VIEW, "batch_size": 8}
    on = images(views=4, label_fraction=0.5, mix=MIX, augment=AUGMENT)
    assert on.describe_identity(for_teacher=False) == {
        "view": VIEW,
        "batch_size": 8,
        "views": 4,
        "label_fraction": 0.5,
        "mix": MIX,
        "augment": AUGMENT,
    }


def test_the_training_of_a_teacher_has_new_views() -> None:
    assert "views" not in images(views=4).describe_identity(for_teacher=True)
    assert "views" not in external(views=4).describe_identity(for_teacher=True)
    assert external(views=4).describe_identity(for_teacher=False)["views"] == 4


def test_another_view_is_another_identity() -> None:
    one, other = (images(view=CropFlip(padding=2, flip=flip)) for flip in (True, False))
    assert one.describe_identity(for_teacher=False) != other.describe_identity(for_teacher=False)


def test_the_identity_of_a_module_is_its_class_or_its_configuration() -> None:
    assert external().describe_identity(for_teacher=False) == {"module": "Module", "batch_size": 4}
    config = {"view": VIEW, "batch_size": 16, "images": 50}
    assert external(**config).describe_identity(for_teacher=False) == {
        "view": VIEW,
        "batch_size": 16,
    }


def test_the_identity_of_a_replay_includes_the_label_fraction_only_with_mixing() -> None:
    plain, mixed = arrays(views=2, label_fraction=0.5), arrays(views=2, label_fraction=0.5, mix=MIX)
    for data, more in ((plain, {}), (mixed, {"mix": MIX, "label_fraction": 0.5})):
        replay = data.replay(GRAY)
        assert replay is not None
        assert replay.identity == {"view": VIEW, **more}
    assert arrays().replay(GRAY) is None


# -- steps and plan


@pytest.mark.parametrize(("world_size", "steps"), [(1, (5, 1)), (2, (2, 1)), (8, (1, 1))])
def test_the_steps_of_an_epoch_are_those_of_its_loaders(
    world_size: int, steps: tuple[int, int]
) -> None:
    data = arrays()
    assert data.count_steps_per_epoch(world_size) == steps
    if world_size == 1:
        data.bind(GRAY, order_seed=0)
        assert (len(data.train_dataloader()), len(data.val_dataloader())) == steps


def test_the_plan_lists_special_settings() -> None:
    assert arrays().describe_training() == ()
    assert arrays(label_fraction=0.5, views=3, mix=MIX, augment=AUGMENT).describe_training() == (
        "21 of the training images have a label",
        "3 views of each in turn",
        "RandAugment 2 x 9, erasing 0",
        "mixed by mixup",
    )
