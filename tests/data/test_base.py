"""What the data of a run can do, and the message where they can't."""

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
from tests.data.test_module import GRAY, Arrays, arrays, made

ALL = frozenset(NEEDS)
HERE = Path(__file__).parent
VIEW = {"_target_": "kd_app.data.views.CropFlip", "padding": 1, "flip": True}
MIX = {"mixup": 0.2, "cutmix": None, "probability": 1.0}
AUGMENT = {"operations": 2, "magnitude": 9, "erasing": 0.0}


def images(**settings: Any) -> ImageData:
    """Before anything is listed."""
    return made(partial(Arrays, images=60), **settings)


def external(**config: Any) -> ExternalDataModule:
    return ExternalDataModule(Module(), config or None)


# -- capabilities


def test_every_capability_has_a_need_that_a_message_can_name() -> None:
    assert set(NEEDS) == set(get_args(Capability))


@pytest.mark.parametrize(
    ("data", "capabilities"),
    [
        (images(views=4), ALL),
        (images(), ALL - {"views"}),
        (images(views=2, label_fraction=0.1), ALL - {"partners"}),
        (images(views=2, label_fraction=1.0), ALL),
        (images(views=2, unlabeled=HERE), ALL - {"partners"}),
        (external(), frozenset()),
    ],
)
def test_capabilities_follow_from_the_settings_and_need_no_reading(
    data: RunData, capabilities: frozenset[Capability]
) -> None:
    assert data.capabilities == capabilities
    assert data.capabilities.isdisjoint(data.lacks)
    assert data.capabilities | set(data.lacks) == ALL


# -- require


def test_a_capability_that_is_there_is_no_error() -> None:
    require(images(views=4), "views", because="A setting", instead="leave it out")


def test_the_message_says_what_needs_it_why_it_is_missing_and_both_ways_out() -> None:
    with pytest.raises(RequestError) as error:
        require(external(), "sharded", because="trainer.devices=2", instead="use trainer.devices=1")
    assert str(error.value) == (
        "trainer.devices=2 needs a different share of the images for each process, but the data"
        " module Module gives every process the same batches. Read the images by data=folder or"
        " data=csv, or use trainer.devices=1."
    )


@pytest.mark.parametrize(
    ("data", "capability", "reason"),
    [
        (images(), "views", r"data\.views=null .* Set data\.views, for example data\.views=4, or"),
        (
            images(label_fraction=0.1),
            "partners",
            r"data\.label_fraction=0\.1 .* Use data\.label_fraction=null, or",
        ),
        (
            images(unlabeled=HERE),
            "partners",
            r"data\.unlabeled=.* Use data\.unlabeled=null, or",
        ),
    ],
)
def test_a_setting_of_our_own_data_that_stands_in_the_way_is_named(
    data: RunData, capability: Capability, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        require(data, capability, because="It", instead="leave it out")


# -- identity: what it holds is hashed into the names of stages


def test_the_identity_of_images_holds_the_options_that_are_on() -> None:
    assert images().identity(for_teacher=False) == {"view": VIEW, "batch_size": 8}
    off = {"mix": {**MIX, "mixup": None}, "augment": {**AUGMENT, "operations": 0}, "labels": 1.0}
    assert images(**off).identity(for_teacher=False) == {"view": VIEW, "batch_size": 8}
    on = images(views=4, label_fraction=0.5, mix=MIX, augment=AUGMENT)
    assert on.identity(for_teacher=False) == {
        "view": VIEW,
        "batch_size": 8,
        "views": 4,
        "labels": 0.5,
        "mix": MIX,
        "augment": AUGMENT,
    }


def test_the_teachers_own_training_has_fresh_views() -> None:
    assert "views" not in images(views=4).identity(for_teacher=True)
    assert "views" not in external(views=4).identity(for_teacher=True)
    assert external(views=4).identity(for_teacher=False)["views"] == 4


def test_another_view_is_another_identity() -> None:
    one, other = (images(view=CropFlip(padding=2, flip=flip)) for flip in (True, False))
    assert one.identity(for_teacher=False) != other.identity(for_teacher=False)


def test_an_object_is_known_by_its_class_and_a_named_module_by_its_configuration() -> None:
    assert external().identity(for_teacher=False) == {"module": "Module", "batch_size": 4}
    config = {"view": VIEW, "batch_size": 16, "images": 50}
    assert external(**config).identity(for_teacher=False) == {"view": VIEW, "batch_size": 16}


def test_a_replay_holds_what_decides_its_pixels_and_labels_only_where_they_do() -> None:
    plain, mixed = arrays(views=2, label_fraction=0.5), arrays(views=2, label_fraction=0.5, mix=MIX)
    for data, more in ((plain, {}), (mixed, {"mix": MIX, "labels": 0.5})):
        replay = data.replay(GRAY)
        assert replay is not None
        assert replay.identity == {"view": VIEW, "views": 2, **more}
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


def test_the_plan_names_what_is_special() -> None:
    assert arrays().describe_training() == ()
    assert arrays(label_fraction=0.5, views=3, mix=MIX, augment=AUGMENT).describe_training() == (
        "21 of the images to train on have a label",
        "3 views of each in turn",
        "RandAugment 2 x 9, erasing 0",
        "mixed by mixup",
    )
