"""Under torchrun: the first process runs the command, the others wait for what it asks.
They talk through the store that torchrun keeps.

So the command runs once, whatever it is: a run, a sweep, an evaluation. No rank
composes a configuration or chooses a trial of its own.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from time import sleep
from typing import Any

_PATIENCE = timedelta(seconds=60)
"""How long a process waits for an answer of the store."""
_END = "end"


def is_follower() -> bool:
    """This process is one of torchrun's, and not the first."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


@dataclass(frozen=True)
class TorchrunLaunch:
    """How many processes torchrun started: on this machine, and on how many machines."""

    local_world_size: int
    nodes: int

    @property
    def world_size(self) -> int:
        """All of them."""
        return self.local_world_size * self.nodes


def read_launch() -> TorchrunLaunch | None:
    """None where torchrun did not start this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return TorchrunLaunch(local, int(os.environ["WORLD_SIZE"]) // local)


@dataclass(frozen=True)
class Torchrun:
    """Where this process stands among torchrun's."""

    rank: int
    local_rank: int
    node: int
    world_size: int
    address: str
    store: Any

    @classmethod
    def from_env(cls) -> "Torchrun | None":
        """None where torchrun did not start this process."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return None
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        number = {
            name: int(os.environ[name])
            for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_PORT")
        }
        address = os.environ["MASTER_ADDR"]
        hosts = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True) and number["RANK"] == 0
        store = TCPStore(
            address,
            number["MASTER_PORT"],
            is_master=hosts,
            timeout=_PATIENCE,
            wait_for_workers=False,
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(
            rank=number["RANK"],
            local_rank=number["LOCAL_RANK"],
            node=number["GROUP_RANK"],
            world_size=number["WORLD_SIZE"],
            address=address,
            store=PrefixStore(f"kd_app/{attempt}", store),
        )

    def place(self) -> dict[str, int]:
        """This process's part of what a rank's environment says."""
        return {
            "RANK": self.rank,
            "LOCAL_RANK": self.local_rank,
            "NODE_RANK": self.node,
            "WORLD_SIZE": self.world_size,
        }

    def start_job(self, job: dict[str, Any]) -> "list[RemoteRank]":
        """Tell all other processes to start their rank of `job`."""
        number = self.store.add("jobs", 1) - 1
        self.store.set(f"job/{number}", json.dumps(job))
        return [RemoteRank(self.store, number, rank) for rank in range(1, self.world_size)]

    def dismiss(self) -> None:
        """There will be no more jobs."""
        self.store.set(f"job/{self.store.add('jobs', 1) - 1}", _END)

    def iterate_jobs(self, poll: float) -> "Iterator[RankJob]":
        """The jobs that the first process asks for, as they come, until it dismisses."""
        number = 0
        while True:
            while not self.store.check([f"job/{number}"]):
                sleep(poll)
            text = self.store.get(f"job/{number}").decode()
            if text == _END:
                return
            yield RankJob(json.loads(text), self.store, number, self.rank)
            number += 1


@dataclass(frozen=True)
class RankJob:
    """A job of the first process, as one of the others sees it."""

    job: dict[str, Any]
    store: Any
    number: int
    rank: int

    def is_stopped(self) -> bool:
        """The first process wants it to end."""
        return bool(self.store.check([f"stop/{self.number}"]))

    def report_end(self, code: int) -> None:
        """Tell the first process how it ended."""
        self.store.set(f"ended/{self.number}/{self.rank}", str(code))


@dataclass(frozen=True)
class RemoteRank:
    """A rank that another of torchrun's processes starts, as the first one sees it."""

    store: Any
    number: int
    rank: int

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        key = f"ended/{self.number}/{self.rank}"
        return int(self.store.get(key)) if self.store.check([key]) else None

    def stop(self, *, kill: bool = False) -> None:
        """Its parent asks it to end, and makes it when it does not."""
        self.store.set(f"stop/{self.number}", "")
