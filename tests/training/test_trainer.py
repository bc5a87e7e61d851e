"""Settings of a training: what 'auto' takes, and what is refused before anything is read."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kd_app.config import RequestError
from kd_app.training.trainer import AtomicCheckpoints, TrainerSettings, cpu_flags

CONF = Path(__file__).parents[2] / "conf" / "trainer" / "auto.yaml"
AVX2 = frozenset({"sse2", "avx2"})
CORES = len(os.sched_getaffinity(0))


def settings(**changed: Any) -> TrainerSettings:
    plain = yaml.safe_load(CONF.read_text())
    del plain["_target_"]
    return TrainerSettings(**{**plain, "max_epochs": 1, "accelerator": "cpu", **changed})


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As if there were so many GPUs of such a generation."""

    def there(number: int, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    return there


@pytest.mark.parametrize(
    ("flags", "precision"),
    [({"avx512_bf16"}, "bf16-mixed"), ({"amx_bf16", "avx2"}, "bf16-mixed"), (AVX2, "32-true"), ({"avx512f"}, "32-true"), ((), "32-true")],
)
def test_a_cpu_without_bf16_hardware_trains_in_float32(monkeypatch: pytest.MonkeyPatch, flags: Any, precision: str) -> None:
    monkeypatch.setattr("kd_app.training.trainer.cpu_flags", lambda: frozenset(flags))
    assert settings(precision="auto").precision == precision


def test_the_flags_are_those_that_the_operating_system_tells() -> None:
    told = Path("/proc/cpuinfo").read_text()
    assert cpu_flags() <= set(told.split())
    assert cpu_flags()


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "16-mixed"), ((8, 0), "bf16-mixed"), ((9, 0), "bf16-mixed")])
def test_a_gpu_trains_in_the_half_precision_that_it_has(gpus: Any, capability: tuple[int, int], precision: str) -> None:
    gpus(1, capability)
    assert settings(accelerator="gpu", precision="auto").precision == precision


@pytest.mark.parametrize(("number", "accelerator", "world"), [(0, "cpu", 1), (1, "gpu", 1), (4, "gpu", 4)])
def test_auto_takes_all_gpus_there_are_else_one_process_on_the_cpu(
    gpus: Any, monkeypatch: pytest.MonkeyPatch, number: int, accelerator: str, world: int
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    gpus(number)
    found = settings(accelerator="auto", devices="auto")
    assert (found.accelerator, found.world_size) == (accelerator, world)


@pytest.mark.parametrize(
    ("there", "wrong", "message"),
    [
        (0, {"accelerator": "gpu"}, "trainer.accelerator=gpu, but this machine has none that torch can use. Use trainer=cpu"),
        (0, {"accelerator": "cuda"}, "trainer.accelerator=cuda, but"),
        (0, {"accelerator": "mps"}, "trainer.accelerator=mps, but"),
        (2, {"accelerator": "gpu", "devices": 3}, "trainer.devices=3, but there are 2 GPUs here. Use trainer.devices=2"),
        (0, {"devices": CORES + 1}, f"trainer.devices={CORES + 1}, but this machine has {CORES} cores"),
        (0, {"num_nodes": 2}, "trainer.num_nodes=2, but the processes of a training are started on this machine alone"),
        (0, {"precision": "16-mixed"}, r"trainer.precision=16-mixed is not to be had on this device \(cpu\)"),
        (0, {"precision": "16"}, r"trainer.precision=16 is not to be had on this device \(cpu\)"),
        (0, {"precision": "16-true"}, r"trainer.precision=16-true is not to be had on this device \(cpu\)"),
        (0, {"precision": "transformer-engine"}, r"trainer.precision=transformer-engine is not to be had on this device \(cpu\)"),
        (1, {"accelerator": "gpu", "precision": "transformer-engine"}, "transformer_engine, which is not installed"),
        (0, {"precision": "bf8"}, "precision='bf8' does not fit"),
        (0, {"devices": 0}, "devices"),
        (0, {"max_epochs": 0}, "max_epochs=0 does not fit"),
        (0, {"gradient_clip": -1}, "gradient_clip=-1 does not fit"),
        (0, {"limit_train_batches": 0}, "limit_train_batches"),
        (0, {"limit_train_batches": 1.5}, "limit_train_batches"),
        (0, {"limit_val_batches": -3}, "limit_val_batches"),
        (0, {"accumulate": 0}, "accumulate=0 does not fit"),
        (0, {"profiler": "slow"}, "profiler='slow' does not fit"),
        (0, {"epochs": 3}, "TrainerSettings has no setting 'epochs'. Did you mean 'max_epochs'"),
    ],
)
def test_what_this_machine_has_not_and_what_is_out_of_range_is_refused(gpus: Any, there: int, wrong: dict[str, Any], message: str) -> None:
    gpus(there)
    with pytest.raises(RequestError, match=message):
        settings(**wrong)


def test_an_mps_machine_has_one_device_and_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert settings(accelerator="mps", precision="auto").precision == "32-true"
    for wrong, message in (
        ({"devices": 2}, "an mps machine has one device"),
        ({"precision": "bf16"}, r"bf16 is not to be had on this device \(mps\)"),
    ):
        with pytest.raises(RequestError, match=message):
            settings(accelerator="mps", **wrong)


@pytest.mark.parametrize(("asked", "precision"), [("32", "32-true"), ("64", "64-true"), ("bf16", "bf16-mixed"), ("bf16-true", "bf16-true")])
def test_every_precision_of_the_device_can_be_had_by_name(asked: str, precision: str) -> None:
    assert settings(precision=asked).precision == precision


def test_a_share_a_number_and_all_are_told_apart(tmp_path: Path) -> None:
    found = settings(limit_train_batches=1, limit_val_batches=1.0, limit_test_batches=0.5)
    trainer = found.make(max_epochs=1, folder=tmp_path, callbacks=[], loggers=[])
    assert (trainer.limit_train_batches, trainer.limit_val_batches) == (1, 1.0)
    assert isinstance(trainer.limit_train_batches, int)
    assert isinstance(trainer.limit_val_batches, float)
    assert found.limit_test_batches == 0.5


def test_what_does_not_change_the_weights_is_no_part_of_the_identity() -> None:
    plain = settings().identity()
    assert settings(log_every=1, checkpoint_minutes=1, timeout=3, profiler="simple", detect_anomaly=True).identity() == plain
    for other in (
        {"max_epochs": 2},
        {"precision": "64"},
        {"accumulate": 2},
        {"gradient_clip": 1.0},
        {"limit_train_batches": 3},
        {"overfit_batches": 1},
    ):
        assert settings(**other).identity() != plain


def test_a_checkpoint_replaces_the_one_before_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AtomicCheckpoints().save_checkpoint({"step": 1}, tmp_path / "new" / "last.ckpt")

    def fails(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fails)
        with pytest.raises(OSError, match="No space"):
            AtomicCheckpoints().save_checkpoint({"step": 2}, tmp_path / "new" / "last.ckpt")
    assert torch.load(tmp_path / "new" / "last.ckpt", weights_only=True) == {"step": 1}
    AtomicCheckpoints().save_checkpoint({"step": 3}, tmp_path / "new" / "last.ckpt")
    assert torch.load(tmp_path / "new" / "last.ckpt", weights_only=True) == {"step": 3}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["last.ckpt"]
