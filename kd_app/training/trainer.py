"""The settings of a training that are not the model's, the data's or the loss's,
checked early; and Lightning's Trainer from them.
"""

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
from kd_app.deployment.hardware import read_cpu_flags
from kd_app.training.distributed.torchrun import read_launch

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
    """How to train: epochs, devices, precision. `devices` 'auto' takes what torchrun
    started, else all GPUs there are, else one CPU process.

    limit_*: a share (0..1), a number of batches, or null for all; overfit_batches:
    train and validate on these same batches in every epoch. on_nan: end the run at a
    loss that is not finite, or leave out such steps and count them. gradient_share:
    optimizer steps between two looks at what each term has of the gradient, null for
    none. sync_batchnorm: the student's BatchNorm sees the whole batch of all GPUs
    (torch has none for CPUs). gradient_clip_val: largest norm, null for none. accumulate_grad_batches:
    batches a step. checkpoint_minutes, checkpoint_steps: how often a resumable state is
    written. timeout: seconds after which a rank that does not answer ends the job.
    Raises `RequestError` for a device that is not there or a precision that it lacks.
    """

    def __init__(
        self,
        *,
        max_epochs: PositiveInt,
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
        started = read_launch()
        self.devices = _resolve_devices(
            self.accelerator, started.local_world_size if started and devices == "auto" else devices
        )
        self.num_nodes = (
            started.nodes
            if started and num_nodes == 1 and self.devices == started.local_world_size
            else num_nodes
        )
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
        """Where a single process works (measuring, predicting)."""
        return torch.device({"cpu": "cpu", "mps": "mps"}.get(self.accelerator, "cuda"))

    @property
    def world_size(self) -> int:
        """Number of processes that train together."""
        return self.devices * self.num_nodes

    def shorten(self, *, train: int, validation: int) -> "TrainerSettings":
        """The same for so many batches of an epoch, in one process."""
        made = copy(self)
        made.devices = made.num_nodes = 1
        made.sync_batchnorm, made.profiler = False, None
        made.limits = {
            "limit_train_batches": train,
            "limit_val_batches": validation,
            "overfit_batches": None,
        }
        return made

    def adapt_to_graph(self) -> "TrainerSettings":
        """The same for a traced graph: in one process, in float32, and in the memory
        format that it was traced in.
        """
        made = copy(self)
        made.devices = made.num_nodes = 1
        made.sync_batchnorm, made.compile, made.channels_last, made.precision = (
            False,
            False,
            False,
            "32-true",
        )
        return made

    def place(self) -> dict[str, Any]:
        """Where the ranks work, settled: a rank does not ask its own machine again."""
        return {
            "accelerator": self.accelerator,
            "devices": self.devices,
            "num_nodes": self.num_nodes,
            "precision": self.precision,
        }

    def identity(self) -> dict[str, Any]:
        """What of these settings decides the trained weights."""
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
        self, *, max_epochs: int, folder: Path, callbacks: list[pl.Callback], loggers: list[Any]
    ) -> pl.Trainer:
        """Lightning's Trainer for one training in `folder`."""
        strategy: Any = "auto"
        if self.world_size > 1:
            from datetime import timedelta

            from lightning.pytorch.strategies import DDPStrategy

            backend = "nccl" if self.accelerator in ("gpu", "cuda") else "gloo"
            strategy = DDPStrategy(
                process_group_backend=backend, timeout=timedelta(seconds=self.timeout)
            )
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
            profiler=(
                PROFILERS[self.profiler](dirpath=folder, filename=PROFILE)
                if self.profiler
                else None
            ),
            callbacks=[*callbacks, AtLeastOne()],
            logger=loggers or False,
            default_root_dir=folder,
            plugins=[
                AtomicCheckpoints(),
                LightningEnvironment(),
            ],  # kd_app starts its ranks itself, also where SLURM or torchrun started kd_app
            sync_batchnorm=self.sync_batchnorm,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=True,
            limit_train_batches=self.limits["limit_train_batches"],
            limit_val_batches=self.limits["limit_val_batches"],
            overfit_batches=self.limits["overfit_batches"] or 0.0,
        )


class AtLeastOne(pl.Callback):
    """A share of the batches is at least one of them; Lightning refuses less, when the
    training has begun.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Turn shares into numbers of this process's batches."""
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
    """Checkpoints written beside their place, flushed to disk, and renamed: a kill
    leaves the old one or the new one, never half of one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`."""
        import os

        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)


def _resolve_accelerator(asked: Accelerator) -> Literal["cpu", "gpu", "mps"]:
    there = {
        "gpu": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    wanted = "gpu" if asked == "cuda" else asked
    if wanted == "auto":
        return "gpu" if there["gpu"] else "mps" if there["mps"] else "cpu"
    if not there[wanted]:
        raise RequestError(
            f"trainer.accelerator={asked}, but this machine has none that torch can use. Use"
            " trainer=cpu, or trainer=auto to take what is there."
        )
    return wanted


def _resolve_devices(accelerator: str, asked: int | Literal["auto"]) -> int:
    gpus = torch.cuda.device_count()
    if asked == "auto":
        return max(gpus, 1) if accelerator == "gpu" else 1
    if accelerator == "gpu" and asked > gpus:
        raise RequestError(
            f"trainer.devices={asked}, but there are {gpus} GPUs here. Use trainer.devices={gpus}"
            " or trainer.devices=auto."
        )
    if accelerator == "mps" and asked > 1:
        raise RequestError(
            f"trainer.devices={asked}, but an mps machine has one device. Use trainer.devices=1."
        )
    if accelerator == "cpu" and asked > _count_cores():
        raise RequestError(
            f"trainer.devices={asked}, but this machine has {_count_cores()} cores and each process needs"
            f" one. Use trainer.devices={_count_cores()} or fewer."
        )
    return asked


def _count_cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resolve_precision(accelerator: str, asked: Precision) -> str:
    """'auto' takes the fastest that the device has hardware for; what it can't do at
    all is refused.
    """
    names = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}
    if asked == "auto":
        if accelerator == "gpu":
            return "bf16-mixed" if torch.cuda.get_device_capability()[0] >= 8 else "16-mixed"
        fast = accelerator == "cpu" and read_cpu_flags() & {"avx512_bf16", "amx_bf16"}
        return "bf16-mixed" if fast else "32-true"
    chosen = names.get(str(asked), str(asked))
    lacking = {
        "cpu": ("16-mixed", "16-true", "transformer-engine", "transformer-engine-float16"),
        "mps": (
            "64-true",
            "bf16-true",
            "bf16-mixed",
            "transformer-engine",
            "transformer-engine-float16",
        ),
    }
    if chosen in lacking.get(accelerator, ()):
        raise RequestError(
            f"trainer.precision={asked} is not to be had on this device ({accelerator}). Use"
            " trainer.precision=auto, 32-true or bf16-mixed."
        )
    if chosen.startswith("transformer-engine") and find_spec("transformer_engine") is None:
        raise RequestError(
            f"trainer.precision={asked} needs NVIDIA's transformer_engine, which is not installed."
            " Install it, or use trainer.precision=auto."
        )
    return chosen
