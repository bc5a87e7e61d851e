"""Settings of the trainer, validated before a training starts, and the Lightning
Trainer built from the settings.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from pydantic import Field, PositiveFloat, PositiveInt, StrictBool

from kd_app.config import RequestError, Typed
from kd_app.config.typed import Epochs
from kd_app.deployment.hardware import read_cpu_flags
from kd_app.distributed.torchrun import read_launch
from kd_app.files import replace_file

Precision = Literal[
    "auto",
    "32-true",
    "16-mixed",
    "bf16-mixed",
    "16-true",
    "bf16-true",
    "64-true",
    "transformer-engine",
    "transformer-engine-float16",
    "32",
    "64",
    "16",
    "bf16",
    32,
    64,
    16,
]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
PROFILE = "profile"
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
Limit = Annotated[float, Field(gt=0, le=1)] | PositiveInt | None


class TrainerSettings(Typed):
    """How to train: epochs, devices, precision.

    devices: 'auto' is the number of processes that torchrun started, else all GPUs,
    else one CPU process. limit_*: a share (0..1), a number of batches, or null for all.
    overfit_batches: train and validate on the same few batches in every epoch. on_nan:
    at a non-finite loss, end the run or skip and count the step. gradient_share:
    optimizer steps between two logged gradient shares of the loss terms; null: none.
    sync_batchnorm: compute the student's BatchNorm statistics over all GPUs (torch does
    not support CPUs). gradient_clip_val: largest gradient norm; null: no clipping.
    accumulate_grad_batches: batches of one optimizer step. checkpoint_minutes,
    checkpoint_steps: how often a resumable state is saved. timeout: seconds without a
    response of a rank after which the job ends.

    Raises `RequestError` for a missing device and for an unsupported precision.
    """

    def __init__(
        self,
        *,
        max_epochs: Epochs,
        accelerator: Accelerator,
        devices: PositiveInt | Literal["auto"],
        num_nodes: PositiveInt,
        precision: Precision,
        limit_train_batches: Limit,
        limit_val_batches: Limit,
        limit_test_batches: Limit,
        overfit_batches: Limit,
        accumulate_grad_batches: PositiveInt,
        gradient_clip_val: PositiveFloat | None,
        channels_last: bool,
        compile: bool,
        detect_anomaly: bool,
        profiler: Literal["simple", "advanced", "pytorch"] | None,
        log_every: PositiveInt,
        gradient_share: PositiveInt | None,
        on_nan: Literal["raise", "skip"],
        sync_batchnorm: StrictBool,
        checkpoint_minutes: PositiveFloat,
        checkpoint_steps: PositiveInt | None,
        timeout: PositiveInt,
    ) -> None:
        self.max_epochs = max_epochs
        self.accelerator = _resolve_accelerator(accelerator)
        launch = read_launch()
        if launch and devices == "auto":
            devices = launch.local_world_size
        self.devices = _resolve_devices(self.accelerator, devices)
        if launch and num_nodes == 1 and self.devices == launch.local_world_size:
            num_nodes = launch.nodes
        self.num_nodes = num_nodes
        self.precision = _resolve_precision(self.accelerator, precision)
        self.limits = {
            "limit_train_batches": limit_train_batches,
            "limit_val_batches": limit_val_batches,
            "overfit_batches": overfit_batches,
        }
        self.limit_test_batches = limit_test_batches
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val = gradient_clip_val
        self.channels_last = channels_last
        self.compile = compile
        self.detect_anomaly = detect_anomaly
        self.profiler = profiler
        self.log_every = log_every
        self.gradient_share = gradient_share
        self.on_nan = on_nan
        self.sync_batchnorm = sync_batchnorm and self.world_size > 1 and self.accelerator == "gpu"
        self.checkpoint_minutes = checkpoint_minutes
        self.checkpoint_steps = checkpoint_steps
        self.timeout = timeout

    @property
    def device(self) -> torch.device:
        """The device of work in a single process (measurements, predictions)."""
        return torch.device({"cpu": "cpu", "mps": "mps"}.get(self.accelerator, "cuda"))

    @property
    def world_size(self) -> int:
        """The number of processes that train together."""
        return self.devices * self.num_nodes

    def shorten(self, *, train: int, validation: int) -> "TrainerSettings":
        """A copy for one process and short epochs: `train` and `validation` batches."""
        settings = copy(self)
        settings.devices = settings.num_nodes = 1
        settings.sync_batchnorm, settings.profiler = False, None
        settings.limits = {
            "limit_train_batches": train,
            "limit_val_batches": validation,
            "overfit_batches": None,
        }
        return settings

    def adapt_to_graph(self) -> "TrainerSettings":
        """A copy for a traced graph: one process, float32, the memory format of the
        trace.
        """
        settings = copy(self)
        settings.devices = settings.num_nodes = 1
        settings.sync_batchnorm = settings.compile = settings.channels_last = False
        settings.precision = "32-true"
        return settings

    def describe_devices(self) -> dict[str, Any]:
        """The resolved devices and precision, so that no rank resolves 'auto' again."""
        return {
            "accelerator": self.accelerator,
            "devices": self.devices,
            "num_nodes": self.num_nodes,
            "precision": self.precision,
        }

    def describe_identity(self) -> dict[str, Any]:
        """The settings that determine the trained weights, for the stage's key."""
        return {
            "max_epochs": self.max_epochs,
            "accelerator": self.accelerator,
            "world_size": self.world_size,
            "precision": self.precision,
            **self.limits,
            "accumulate_grad_batches": self.accumulate_grad_batches,
            "gradient_clip_val": self.gradient_clip_val,
            **({"sync_batchnorm": True} if self.sync_batchnorm else {}),
        }

    def make(
        self,
        *,
        max_epochs: int,
        folder: Path,
        callbacks: list[pl.Callback],
        loggers: list[Any],
        validate: bool = True,
    ) -> pl.Trainer:
        """Build the Lightning Trainer of one training in `folder`. validate: at the end
        of each epoch.
        """
        strategy: Any = "auto"
        if self.world_size > 1:
            from datetime import timedelta

            from lightning.pytorch.strategies import DDPStrategy

            backend = "nccl" if self.accelerator in ("gpu", "cuda") else "gloo"
            timeout = timedelta(seconds=self.timeout)
            strategy = DDPStrategy(process_group_backend=backend, timeout=timeout)
        profiler = None
        if self.profiler:
            profiler = PROFILERS[self.profiler](dirpath=folder, filename=PROFILE)
        return pl.Trainer(
            max_epochs=max_epochs,
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=self.num_nodes,
            strategy=strategy,
            precision=self.precision,  # type: ignore[arg-type]
            accumulate_grad_batches=self.accumulate_grad_batches,
            gradient_clip_val=self.gradient_clip_val,
            detect_anomaly=self.detect_anomaly,
            profiler=profiler,
            callbacks=[*callbacks, RoundUpBatchLimits()],
            logger=loggers or False,
            default_root_dir=folder,
            # LightningEnvironment: kd_app starts the ranks, also under SLURM and
            # torchrun
            plugins=[AtomicCheckpoints(), LightningEnvironment()],
            sync_batchnorm=self.sync_batchnorm,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=True,
            limit_train_batches=self.limits["limit_train_batches"],
            limit_val_batches=self.limits["limit_val_batches"] if validate else 0,
            overfit_batches=self.limits["overfit_batches"] or 0.0,
        )


class RoundUpBatchLimits(pl.Callback):
    """Round a fractional batch limit up to one batch.

    Lightning raises for a limit below one batch, but only after the training has
    started.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Convert fractional limits to numbers of batches of this process."""
        data: pl.LightningDataModule = trainer.datamodule  # type: ignore[attr-defined]
        for name, loader in (
            ("limit_train_batches", "train_dataloader"),
            ("limit_val_batches", "val_dataloader"),
            ("overfit_batches", "train_dataloader"),
        ):
            share = getattr(trainer, name)
            if isinstance(share, float) and 0 < share < 1:
                setattr(trainer, name, max(1, int(share * len(getattr(data, loader)()))))


class AtomicCheckpoints(TorchCheckpointIO):
    """Write a checkpoint to a temporary file, flush the file to disk, and rename the
    file, so that a kill leaves the old or the new checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(target) as file:
            torch.save(checkpoint, file)


def _resolve_accelerator(accelerator: Accelerator) -> Literal["cpu", "gpu", "mps"]:
    is_available = {
        "gpu": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    name = "gpu" if accelerator == "cuda" else accelerator
    if name == "auto":
        return "gpu" if is_available["gpu"] else "mps" if is_available["mps"] else "cpu"
    if not is_available[name]:
        raise RequestError(
            f"trainer.accelerator={accelerator}, but this machine has no such device that torch"
            " supports. Use trainer=cpu, or trainer=auto for the best available device."
        )
    return name


def _resolve_devices(accelerator: str, devices: int | Literal["auto"]) -> int:
    gpus = torch.cuda.device_count()
    if devices == "auto":
        return max(gpus, 1) if accelerator == "gpu" else 1
    if accelerator == "gpu" and devices > gpus:
        raise RequestError(
            f"trainer.devices={devices}, but this machine has {gpus} GPUs. Use"
            f" trainer.devices={gpus} or trainer.devices=auto."
        )
    if accelerator == "mps" and devices > 1:
        raise RequestError(
            f"trainer.devices={devices}, but an mps machine has one device. Use trainer.devices=1."
        )
    if accelerator == "cpu" and devices > (cores := _count_cores()):
        raise RequestError(
            f"trainer.devices={devices}, but this machine has {cores} cores and each process needs"
            f" one. Use trainer.devices={cores} or fewer."
        )
    return devices


def _count_cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resolve_precision(accelerator: str, precision: Precision) -> str:
    """Resolve 'auto' to the fastest precision with hardware support; raise
    `RequestError` for a precision that the device does not support.
    """
    names = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}
    if precision == "auto":
        if accelerator == "gpu":
            return "bf16-mixed" if torch.cuda.get_device_capability()[0] >= 8 else "16-mixed"
        has_bf16 = accelerator == "cpu" and read_cpu_flags() & {"avx512_bf16", "amx_bf16"}
        return "bf16-mixed" if has_bf16 else "32-true"
    name = names.get(str(precision), str(precision))
    unsupported = {
        "cpu": ("16-mixed", "16-true", "transformer-engine", "transformer-engine-float16"),
        "mps": (
            "64-true",
            "bf16-true",
            "bf16-mixed",
            "transformer-engine",
            "transformer-engine-float16",
        ),
    }
    if name in unsupported.get(accelerator, ()):
        raise RequestError(
            f"trainer.precision={precision} is not supported on this device ({accelerator}). Use"
            " trainer.precision=auto, 32-true or bf16-mixed."
        )
    if name.startswith("transformer-engine") and find_spec("transformer_engine") is None:
        raise RequestError(
            f"trainer.precision={precision} needs NVIDIA's transformer_engine, which is not"
            " installed. Install transformer_engine, or use trainer.precision=auto."
        )
    return name


@contextmanager
def silence_lightning() -> Iterator[None]:
    """Suppress Lightning's log lines and hints; `Progress` prints the progress."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for text in (
            "isinstance.treespec, LeafSpec",
            "The number of training batches",
            "The '\\w+' does not have many workers",
            "Checkpoint directory",
            r"Found \d+ module\(s\) in eval mode",  # frozen layers
        ):
            warnings.filterwarnings("ignore", message=f".*{text}")
        yield
