"""Runs under torchrun: the first process runs the command and sends jobs to the other
processes (followers) through torchrun's store.

So every command (run, sweep, evaluation) runs once. No follower composes a
configuration or selects a trial.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from time import sleep
from typing import Any

_STORE_TIMEOUT = timedelta(seconds=60)
_END = "end"


def is_follower() -> bool:
    """Whether this process is one of torchrun's, but not the first."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


@dataclass(frozen=True)
class TorchrunLaunch:
    """The numbers of processes on each machine and of machines under torchrun."""

    local_world_size: int
    nodes: int

    @property
    def world_size(self) -> int:
        """The number of processes on all machines."""
        return self.local_world_size * self.nodes


def read_launch() -> TorchrunLaunch | None:
    """The launch from the environment; None if torchrun did not start this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return TorchrunLaunch(local, int(os.environ["WORLD_SIZE"]) // local)


@dataclass(frozen=True)
class Torchrun:
    """This process among those of torchrun, and the connection to the store."""

    rank: int
    local_rank: int
    node: int
    world_size: int
    address: str
    store: Any

    @classmethod
    def from_env(cls) -> "Torchrun | None":
        """Connect to the store; None if torchrun did not start this process."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return None
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        env = {
            name: int(os.environ[name])
            for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_PORT")
        }
        address = os.environ["MASTER_ADDR"]
        has_agent_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
        store = TCPStore(
            address,
            env["MASTER_PORT"],
            is_master=not has_agent_store and env["RANK"] == 0,
            timeout=_STORE_TIMEOUT,
            wait_for_workers=False,
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(
            rank=env["RANK"],
            local_rank=env["LOCAL_RANK"],
            node=env["GROUP_RANK"],
            world_size=env["WORLD_SIZE"],
            address=address,
            store=PrefixStore(f"kd_app/{attempt}", store),
        )

    def build_rank_env(self) -> dict[str, int]:
        """The environment variables of the rank that this process starts."""
        return {
            "RANK": self.rank,
            "LOCAL_RANK": self.local_rank,
            "NODE_RANK": self.node,
            "WORLD_SIZE": self.world_size,
        }

    def start_job(self, job: dict[str, Any]) -> "list[RemoteRank]":
        """Start one rank of `job` in every other process."""
        number = self.store.add("jobs", 1) - 1
        self.store.set(f"job/{number}", json.dumps(job))
        return [RemoteRank(self.store, number, rank) for rank in range(1, self.world_size)]

    def send_end(self) -> None:
        """Send the end of all jobs to the other processes."""
        self.store.set(f"job/{self.store.add('jobs', 1) - 1}", _END)

    def iterate_jobs(self, poll_seconds: float) -> "Iterator[RankJob]":
        """Wait for the jobs of the first process and yield them, until `send_end`."""
        number = 0
        while True:
            while not self.store.check([f"job/{number}"]):
                sleep(poll_seconds)
            text = self.store.get(f"job/{number}").decode()
            if text == _END:
                return
            yield RankJob(json.loads(text), self.store, number, self.rank)
            number += 1


@dataclass(frozen=True)
class RankJob:
    """A job of the first process, in one of the other processes."""

    job: dict[str, Any]
    store: Any
    number: int
    rank: int

    def is_stopped(self) -> bool:
        """Whether the first process stopped the job."""
        return bool(self.store.check([f"stop/{self.number}"]))

    def report_end(self, code: int) -> None:
        """Send the rank's exit code to the first process."""
        self.store.set(f"ended/{self.number}/{self.rank}", str(code))


@dataclass(frozen=True)
class RemoteRank:
    """A rank that another of torchrun's processes runs, in the first process."""

    store: Any
    number: int
    rank: int

    def read_exit_code(self) -> int | None:
        """The exit code of the rank; None while the rank runs."""
        key = f"ended/{self.number}/{self.rank}"
        return int(self.store.get(key)) if self.store.check([key]) else None

    def stop(self, *, kill: bool = False) -> None:
        """Stop the rank: its parent process terminates the rank, and kills it if
        needed.
        """
        self.store.set(f"stop/{self.number}", "")
