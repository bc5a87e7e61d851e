"""Trainer settings: validation, devices and precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from kd_app.config import RequestError
from kd_app.config.paths import CONF
from kd_app.deployment.hardware import read_cpu_flags
from kd_app.training import trainer
from kd_app.training.trainer import AtomicCheckpoints, TrainerSettings

DEFAULTS: dict[str, Any] = {
    **yaml.safe_load((CONF / "trainer" / "auto.yaml").read_text(encoding="utf-8")),
    "max_epochs": 3,
    "accelerator": "cpu",
    "devices": 1,
}
DEFAULTS.pop("_target_")
LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")


def settings(**changes: Any) -> TrainerSettings:
    return TrainerSettings(**{**DEFAULTS, **changes})


def expect_refusal(**changes: Any) -> str:
    with pytest.raises(RequestError) as error:
        settings(**changes)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Simulate another machine: GPUs, their capability, mps, CPU cores and flags."""

    def pretend(
        *,
        gpus: int = 0,
        capability: int = 9,
        mps: bool = False,
        cores: int = 2,
        flags: frozenset[str] = frozenset(),
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(trainer, "_count_cores", lambda: cores)
        monkeypatch.setattr(trainer, "read_cpu_flags", lambda: flags)

    pretend()
    return pretend


# -- precision


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ({"avx512_bf16"}, "bf16-mixed"),
        ({"amx_bf16", "avx2"}, "bf16-mixed"),
        ({"avx2", "fma"}, "32-true"),
        ({"avx512f"}, "32-true"),
        ((), "32-true"),
    ],
)
def test_a_cpu_without_bf16_hardware_trains_in_float32(
    machine: Any, flags: Any, precision: str
) -> None:
    machine(flags=frozenset(flags))
    assert settings(precision="auto").precision == precision


@pytest.mark.parametrize(
    ("capability", "precision"), [(7, "16-mixed"), (8, "bf16-mixed"), (9, "bf16-mixed")]
)
def test_a_gpu_trains_in_its_best_half_precision(
    machine: Any, capability: int, precision: str
) -> None:
    machine(gpus=1, capability=capability)
    assert settings(accelerator="gpu", precision="auto").precision == precision


@pytest.mark.parametrize(
    ("accelerator", "gpus", "requested", "world"),
    [
        ("gpu", 2, True, True),
        ("gpu", 1, True, False),
        ("cpu", 0, True, False),
        ("gpu", 2, False, False),
    ],
)
def test_batchnorm_is_synchronized_where_several_gpus_train(
    machine: Any, accelerator: str, gpus: int, requested: bool, world: bool
) -> None:
    machine(gpus=gpus)
    result = settings(accelerator=accelerator, devices="auto", sync_batchnorm=requested)
    assert result.sync_batchnorm is world
    assert result.describe_identity().get("sync_batchnorm", False) is world


@pytest.mark.parametrize(
    ("requested", "meant"),
    [
        (32, "32-true"),
        ("32", "32-true"),
        (64, "64-true"),
        ("bf16", "bf16-mixed"),
        ("bf16-true", "bf16-true"),
    ],
)
def test_lightnings_short_names_are_accepted_as_text_or_number(
    machine: Any, requested: str | int, meant: str
) -> None:
    assert settings(precision=requested).precision == meant


@pytest.mark.parametrize(
    ("accelerator", "precision"),
    [
        ("cpu", "16-mixed"),
        ("cpu", 16),
        ("cpu", "16-true"),
        ("cpu", "transformer-engine"),
        ("mps", "64-true"),
        ("mps", "bf16-mixed"),
        ("mps", "transformer-engine-float16"),
    ],
)
def test_a_precision_that_the_device_lacks_is_refused(
    machine: Any, accelerator: str, precision: str | int
) -> None:
    machine(mps=True)
    message = expect_refusal(accelerator=accelerator, precision=precision)
    assert f"trainer.precision={precision}" in message
    assert "trainer.precision=auto" in message


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (
            (
                "processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_tile\nbugs\t\t:\n\nprocessor\t:"
                " 1\nflags\t\t: fpu\n"
            ),
            {"fpu", "avx512_bf16", "amx_tile"},
        ),
        ("processor : 0\nFeatures : fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        ("nothing of the kind\n", set()),
    ],
)
def test_the_flags_are_those_that_the_operating_system_names(
    monkeypatch: pytest.MonkeyPatch, text: str, flags: set[str]
) -> None:
    monkeypatch.setattr(
        Path, "read_text", lambda path, **_: text if str(path) == "/proc/cpuinfo" else ""
    )
    assert read_cpu_flags() == flags


def test_without_cpuinfo_there_are_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path, **_: Any) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert read_cpu_flags() == frozenset()


# -- devices


@pytest.mark.parametrize(
    ("there", "accelerator", "devices", "device"),
    [
        ({"gpus": 4, "mps": True}, "gpu", 4, "cuda"),
        ({"gpus": 1}, "gpu", 1, "cuda"),
        ({"mps": True}, "mps", 1, "mps"),
        ({"cores": 64}, "cpu", 1, "cpu"),
    ],
)
def test_auto_takes_all_gpus_or_else_what_there_is(
    machine: Any, there: dict[str, Any], accelerator: str, devices: int, device: str
) -> None:
    machine(**there)
    result = settings(accelerator="auto", devices="auto")
    assert (result.accelerator, result.devices, result.world_size, result.device.type) == (
        accelerator,
        devices,
        devices,
        device,
    )


@pytest.mark.parametrize(
    ("there", "accelerator", "most"),
    [
        ({"gpus": 2}, "gpu", 2),
        ({"gpus": 2}, "cuda", 2),
        ({"mps": True}, "mps", 1),
        ({"cores": 3}, "cpu", 3),
    ],
)
def test_more_devices_than_available_are_refused(
    machine: Any, there: dict[str, Any], accelerator: str, most: int
) -> None:
    machine(**there)
    assert settings(accelerator=accelerator, devices=most).world_size == most
    message = expect_refusal(accelerator=accelerator, devices=most + 1)
    assert f"trainer.devices={most + 1}" in message
    assert f"trainer.devices={most}" in message.replace(f"trainer.devices={most + 1}", "")


# -- ranges


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_epochs", 0),
        ("max_epochs", 1.5),
        ("max_epochs", None),
        ("accelerator", "tpu"),
        ("devices", 0),
        ("devices", "all"),
        ("precision", "fp8"),
        ("precision", 8),
        ("accumulate_grad_batches", 0),
        ("gradient_clip_val", 0),
        ("gradient_clip_val", -1.0),
        ("channels_last", "sometimes"),
        ("compile", 3),
        ("profiler", "fast"),
        ("log_every", 0),
        ("checkpoint_minutes", 0),
        ("checkpoint_steps", 0),
        ("timeout", -1),
        *((name, value) for name in LIMITS for value in (0, 0.0, -0.5, 1.5, "half")),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(machine: Any, name: str, value: Any) -> None:
    assert f"TrainerSettings: {name}={value!r} does not fit" in expect_refusal(**{name: value})


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_no_setting_has_a_default_in_python(machine: Any, name: str) -> None:
    with pytest.raises(RequestError, match=f"needs a value for '{name}'"):
        TrainerSettings(**{key: value for key, value in DEFAULTS.items() if key != name})


@given(value=st.floats(0, 1, exclude_min=True) | st.integers(1, 10**6))
def test_a_limit_keeps_its_type(value: float) -> None:
    """In Lightning, 1.0 means all batches, and 1 means one batch."""
    result = settings(limit_train_batches=value, limit_test_batches=value)
    for limit in (result.limits["limit_train_batches"], result.limit_test_batches):
        assert (type(limit), limit) == (type(value), value)


# -- identity and Lightning trainer


@pytest.mark.parametrize(
    ("changes", "decides"),
    [
        ({"max_epochs": 4}, True),
        ({"precision": "bf16-mixed"}, True),
        ({"accumulate_grad_batches": 2}, True),
        ({"gradient_clip_val": 1.0}, True),
        ({"limit_train_batches": 2}, True),
        ({"limit_val_batches": 2}, True),
        ({"overfit_batches": 2}, True),
        ({"devices": 2}, True),
        ({"limit_test_batches": 2}, False),
        ({"log_every": 1}, False),
        ({"gradient_share": 1}, False),
        ({"checkpoint_minutes": 1.0}, False),
        ({"checkpoint_steps": 5}, False),
        ({"profiler": "simple"}, False),
        ({"detect_anomaly": True}, False),
        ({"timeout": 5}, False),
    ],
)
def test_settings_that_determine_the_weights_are_in_the_identity(
    machine: Any, changes: dict[str, Any], decides: bool
) -> None:
    base = {"precision": "32-true"}
    assert (
        settings(**base).describe_identity() != settings(**{**base, **changes}).describe_identity()
    ) == decides


def test_the_lightning_trainer_receives_the_settings(machine: Any, tmp_path: Path) -> None:
    requested = settings(
        precision="32-true",
        accumulate_grad_batches=3,
        gradient_clip_val=0.5,
        limit_train_batches=0.5,
        limit_val_batches=2,
        detect_anomaly=True,
    )
    result = requested.make(max_epochs=7, folder=tmp_path, callbacks=[], loggers=[])
    assert (
        result.max_epochs,
        result.accumulate_grad_batches,
        result.gradient_clip_val,
        result.precision,
    ) == (7, 3, 0.5, "32-true")
    assert (result.limit_train_batches, result.limit_val_batches) == (0.5, 2)
    assert result.default_root_dir == str(tmp_path)
    assert (result.world_size, result.loggers, result.num_sanity_val_steps) == (1, [], 0)
    assert list(tmp_path.iterdir()) == []


def test_under_slurm_lightning_neither_starts_ranks_nor_requeues_the_job(
    machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NAME": "trial",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    result = settings(precision="32-true").make(
        max_epochs=1, folder=tmp_path, callbacks=[], loggers=[]
    )
    assert type(result._accelerator_connector.cluster_environment) is LightningEnvironment


def test_a_checkpoint_replaces_the_previous_one_only_when_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
