"""A trainer for the hooks of callbacks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any


class FakeTrainer(SimpleNamespace):
    """A single-process trainer of 10 epochs with 20 batches."""

    def __init__(self, **changes: Any) -> None:
        position = SimpleNamespace(
            is_last_batch=False, current=SimpleNamespace(ready=changes.pop("ready", 0))
        )
        plain = {
            "world_size": 1,
            "is_global_zero": True,
            "accumulate_grad_batches": 1,
            "current_epoch": 0,
            "max_epochs": 10,
            "num_training_batches": 20,
            "global_step": 1,
            "callback_metrics": {},
            "fit_loop": SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=position)),
            "saved": [],
        }
        super().__init__(**{**plain, **changes})

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append(path.name)
