"""Lines of progress."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kd_app.callbacks.progress import Progress, _format_clock
from tests.callbacks.fake_trainer import FakeTrainer


@pytest.mark.parametrize("live", [True, False])
def test_the_line_of_the_last_epoch_is_permanent(live: bool) -> None:
    lines: list[tuple[str, str]] = []
    console = SimpleNamespace(
        live=live,
        print=lambda text: lines.append(("permanent", text)),
        print_transient=lambda text: lines.append(("transient", text)),
    )
    progress = Progress("student", console)
    metrics = {"validation/top1": torch.tensor(0.5), "validation/ece": torch.tensor(0.1)}
    first: Any = FakeTrainer(callback_metrics=metrics)
    last: Any = FakeTrainer(callback_metrics=metrics, current_epoch=9)
    progress.on_train_start(first, None)  # type: ignore[arg-type]
    for trainer in (first, last):
        progress.on_validation_end(trainer, None)  # type: ignore[arg-type]
    # without live lines, the line of epoch 1 comes too soon after the start
    assert [kind for kind, _ in lines] == (["transient"] if live else []) + ["permanent"]
    assert lines[-1][1].startswith("  student: epoch 10/10, 100 %, 0:00 left")
    assert lines[-1][1].endswith("  validation: top1 0.5000")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (125, "2:05"), (3725, "1:02:05"), (59.6, "1:00")]
)
def test_a_clock_has_hours_only_if_needed(seconds: float, text: str) -> None:
    assert _format_clock(seconds) == text
