"""The environment of torchrun, and the messages between its processes."""

from typing import Any

import pytest

from kd_app.distributed.torchrun import (
    Torchrun,
    TorchrunLaunch,
    is_follower,
    read_launch,
)


class DictStore:
    """torchrun's store, in memory."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def add(self, key: str, number: int) -> int:
        self.values[key] = str(int(self.values.get(key, 0)) + number)
        return int(self.values[key])

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)


def processes(number: int) -> list[Torchrun]:
    store: Any = DictStore()
    return [Torchrun(rank, rank, 0, number, "127.0.0.1", store) for rank in range(number)]


def set_env(monkeypatch: pytest.MonkeyPatch, **values: int | str) -> None:
    for key, value in values.items():
        monkeypatch.setenv(key, str(value))


def test_without_torchrun_there_is_no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    set_env(monkeypatch, RANK=1)
    assert (read_launch(), Torchrun.from_env(), is_follower()) == (None, None, False)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_launch_counts_processes_and_machines(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_env(monkeypatch, TORCHELASTIC_RUN_ID="x", RANK=rank, WORLD_SIZE=6, LOCAL_WORLD_SIZE=2)
    launch = read_launch()
    assert launch == TorchrunLaunch(local_world_size=2, nodes=3)
    assert launch is not None
    assert launch.world_size == 6
    assert is_follower() == (rank > 0)


def test_followers_receive_every_job_until_the_end() -> None:
    first, second, _ = processes(3)
    handles = [first.start_job({"job": name}) for name in ("a", "b")]
    first.send_end()
    received = list(second.iterate_jobs(poll_seconds=0.0))
    assert [each.job for each in received] == [{"job": "a"}, {"job": "b"}]
    assert [len(ranks) for ranks in handles] == [2, 2]


def test_a_rank_reports_its_exit_code_and_can_be_stopped() -> None:
    first, second = processes(2)
    (handle,) = first.start_job({})
    first.send_end()
    (rank_job,) = second.iterate_jobs(poll_seconds=0.0)
    assert (handle.read_exit_code(), rank_job.is_stopped()) == (None, False)
    handle.stop()
    assert rank_job.is_stopped()
    rank_job.report_end(2)
    assert handle.read_exit_code() == 2


def test_a_rank_gets_its_place_in_the_environment() -> None:
    assert processes(2)[1].build_rank_env() == {
        "RANK": 1,
        "LOCAL_RANK": 1,
        "NODE_RANK": 0,
        "WORLD_SIZE": 2,
    }
