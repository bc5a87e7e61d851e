"""How to train is checked before anything is read, and is what the device can do."""

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


def refused(**changes: Any) -> str:
    with pytest.raises(RequestError) as error:
        settings(**changes)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend another machine: its GPUs and what they can do, Apple's, its cores, its
    CPU's flags.
    """

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
def test_a_gpu_trains_in_the_half_precision_that_it_has(
    machine: Any, capability: int, precision: str
) -> None:
    machine(gpus=1, capability=capability)
    assert settings(accelerator="gpu", precision="auto").precision == precision


@pytest.mark.parametrize(
    ("accelerator", "gpus", "asked", "world"),
    [
        ("gpu", 2, True, True),
        ("gpu", 1, True, False),
        ("cpu", 0, True, False),
        ("gpu", 2, False, False),
    ],
)
def test_batchnorm_is_synchronized_where_several_gpus_train(
    machine: Any, accelerator: str, gpus: int, asked: bool, world: bool
) -> None:
    machine(gpus=gpus)
    found = settings(accelerator=accelerator, devices="auto", sync_batchnorm=asked)
    assert found.sync_batchnorm is world
    assert found.describe_identity().get("sync_batchnorm", False) is world


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        (32, "32-true"),
        ("32", "32-true"),
        (64, "64-true"),
        ("bf16", "bf16-mixed"),
        ("bf16-true", "bf16-true"),
    ],
)
def test_lightnings_short_names_are_understood_quoted_or_not(
    machine: Any, asked: str | int, meant: str
) -> None:
    assert settings(precision=asked).precision == meant


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
    said = refused(accelerator=accelerator, precision=precision)
    assert f"trainer.precision={precision}" in said
    assert "trainer.precision=auto" in said


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


def test_without_such_a_file_no_flag_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
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
    found = settings(accelerator="auto", devices="auto")
    assert (found.accelerator, found.devices, found.world_size, found.device.type) == (
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
def test_more_devices_than_there_are_are_refused(
    machine: Any, there: dict[str, Any], accelerator: str, most: int
) -> None:
    machine(**there)
    assert settings(accelerator=accelerator, devices=most).world_size == most
    said = refused(accelerator=accelerator, devices=most + 1)
    assert f"trainer.devices={most + 1}" in said
    assert f"trainer.devices={most}" in said.replace(f"trainer.devices={most + 1}", "")


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
    assert f"TrainerSettings: {name}={value!r} does not fit" in refused(**{name: value})


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_no_setting_has_a_default_in_python(machine: Any, name: str) -> None:
    with pytest.raises(RequestError, match=f"needs a value for '{name}'"):
        TrainerSettings(**{key: value for key, value in DEFAULTS.items() if key != name})


@given(value=st.floats(0, 1, exclude_min=True) | st.integers(1, 10**6))
def test_a_limit_is_a_share_or_a_number_and_stays_what_it_is(value: float) -> None:
    """To Lightning 1.0 is everything, and 1 is one batch."""
    found = settings(limit_train_batches=value, limit_test_batches=value)
    for limit in (found.limits["limit_train_batches"], found.limit_test_batches):
        assert (type(limit), limit) == (type(value), value)


# -- what follows from them


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
def test_what_decides_the_weights_is_part_of_the_identity_of_a_training(
    machine: Any, changes: dict[str, Any], decides: bool
) -> None:
    base = {"precision": "32-true"}
    assert (
        settings(**base).describe_identity() != settings(**{**base, **changes}).describe_identity()
    ) == decides


def test_lightnings_trainer_gets_them(machine: Any, tmp_path: Path) -> None:
    asked = settings(
        precision="32-true",
        accumulate_grad_batches=3,
        gradient_clip_val=0.5,
        limit_train_batches=0.5,
        limit_val_batches=2,
        detect_anomaly=True,
    )
    made = asked.make(max_epochs=7, folder=tmp_path, callbacks=[], loggers=[])
    assert (
        made.max_epochs,
        made.accumulate_grad_batches,
        made.gradient_clip_val,
        made.precision,
    ) == (7, 3, 0.5, "32-true")
    assert (made.limit_train_batches, made.limit_val_batches) == (0.5, 2)
    assert made.default_root_dir == str(tmp_path)
    assert (made.world_size, made.loggers, made.num_sanity_val_steps) == (1, [], 0)
    assert list(tmp_path.iterdir()) == []


def test_in_a_job_of_slurm_nothing_but_kd_app_starts_ranks_or_sends_the_job_again(
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
    made = settings(precision="32-true").make(
        max_epochs=1, folder=tmp_path, callbacks=[], loggers=[]
    )
    assert type(made._accelerator_connector.cluster_environment) is LightningEnvironment


def test_a_checkpoint_replaces_the_one_before_only_when_it_is_whole(
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
