from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from kd_app.config import InputSpec
from kd_app.data.batch import Batch
from kd_app.data.digits import Digits
from kd_app.data.division import SplitRatios
from kd_app.data.module import ImageData
from kd_app.data.views import CropFlip, ResizedCrop, View

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*:FutureWarning"
)  # Lightning 2.6.6 with torch 2.14, 2026-11


def digits(view: View | None = None, num_workers: int = 0) -> ImageData:
    """Build data with 5 batches of 64 images per epoch."""
    data = ImageData(
        source=Digits,
        root=None,
        view=view or CropFlip(padding=1, flip=False),
        batch_size=64,
        num_workers=num_workers,
        cache="ram",
        on_error="raise",
        decoder="exact",
        seed=0,
        image_size=None,
        split=SplitRatios(validation=0.1, test=0.78),
        views=None,
        label_fraction=None,
        unlabeled=None,
        mix=None,
        augment=None,
    )
    data.setup("fit")
    return data


class Recorder(pl.LightningModule):
    """A model of one layer that records its training batches.

    Writes a checkpoint at step `saved_at`, and stops the process at step `killed_at`.
    """

    def __init__(self, checkpoint: Path, *, saved_at: int = -1, killed_at: int = -1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
        self.checkpoint, self.saved_at, self.killed_at = checkpoint, saved_at, killed_at
        self.records: list[tuple[int, int, int, list[int], float]] = []
        self.validated: list[int] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        checksum = float(batch.image.double().sum())
        self.records.append(
            (self.current_epoch, batch_idx, batch.view, batch.index.tolist(), checksum)
        )
        loss: Tensor = torch.nn.functional.cross_entropy(
            self.layer(batch.image.flatten(1).float() / 255), batch.target
        )
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step == self.saved_at:
            self.trainer.save_checkpoint(self.checkpoint)
        if self.global_step == self.killed_at:
            raise KeyboardInterrupt

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated += batch.index.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def train(model: Recorder, data: ImageData, *, resumed: bool = False, **settings: Any) -> Recorder:
    data.bind(InputSpec(1, 8, 8, (0.5,), (0.5,)), order_seed=2)
    flags = {
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **settings,
    }
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        use_distributed_sampler=False,
        default_root_dir=model.checkpoint.parent,
        **flags,
    )
    try:
        trainer.fit(
            model,
            datamodule=data,
            ckpt_path=model.checkpoint if resumed else None,
            weights_only=True,
        )
    except (KeyboardInterrupt, SystemExit):
        assert model.killed_at > 0
    return model


SLOW_VIEW = ResizedCrop(scale=(0.3, 1.0), ratio=(0.7, 1.4), flip=True, jitter=0.0)
"""Slow enough for workers."""


@pytest.fixture(scope="module")
def whole() -> list[tuple[int, int, int, list[int], float]]:
    """The batches of a run that was not stopped."""
    records = train(Recorder(Path("unused") / "c.ckpt"), digits(view=SLOW_VIEW)).records
    assert len(records) == 15
    return records


@pytest.mark.parametrize(
    ("saved_at", "killed_at", "workers"),
    [(2, 3, 0), (7, 7, 0), (8, 9, 0), (5, 6, 0), (2, 3, 2), (5, 6, 2)],
)
def test_a_resumed_run_continues_with_the_next_batch(
    whole: list[tuple[int, int, int, list[int], float]],
    tmp_path: Path,
    saved_at: int,
    killed_at: int,
    workers: int,
) -> None:
    first = train(
        Recorder(tmp_path / "c.ckpt", saved_at=saved_at, killed_at=killed_at),
        digits(view=SLOW_VIEW, num_workers=workers),
    ).records
    assert first == whole[:killed_at]
    second = train(
        Recorder(tmp_path / "c.ckpt"), digits(view=SLOW_VIEW, num_workers=workers), resumed=True
    ).records
    assert second == whole[saved_at:]


def test_a_trainer_validates_every_image_once_an_epoch() -> None:
    data = digits()
    model = train(Recorder(Path("unused") / "c.ckpt"), data, num_sanity_val_steps=0)
    assert model.validated == data.list_rows("validation").tolist() * 3


def test_overfit_batches_repeats_the_same_images() -> None:
    records = train(Recorder(Path("unused") / "c.ckpt"), digits(), overfit_batches=2).records
    assert len(records) == 6
    assert (
        [step[3] for step in records[:2]]
        == [step[3] for step in records[2:4]]
        == [step[3] for step in records[4:]]
    )
