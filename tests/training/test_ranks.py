"""Several processes that train one model: results, failures and signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from kd_app.commands.exit_codes import run_to_exit_code
from kd_app.config import RequestError, RunError
from kd_app.config.compose import choose_all_labels, compose_config
from kd_app.jobs.distill import distill
from kd_app.run import worker
from kd_app.training import launch
from kd_app.training.launch import fit_distributed
from tests.builders import stage, student_sha256, teacher_folder, train_student
from tests.training.processes import start_distill, wait_for, wait_for_exit

VIT = [
    f"student.kwargs.{key}={value}"
    for key, value in {"patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2}.items()
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("teacher"))


def words(teacher: Path, folder: Path, *more: str) -> list[str]:
    fixed = [
        f"teacher.checkpoint={teacher}",
        f"out={folder / 'out'}",
        f"stages={folder / 'stages'}",
        "controls=[]",
        "checks=off",
        "logger=[]",
    ]
    return [*choose_all_labels([*fixed, "trainer.precision=32-true", *more])]


class ForkedRank:
    """A rank in a fork of this process: what a rank does, without its imports, which
    take most of its time. The slow tests start ranks as `ChildRank` does.
    """

    def __init__(self, job: Path, sha256: str, rank_env: Mapping[str, Any], log: Path) -> None:
        self._code: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            try:
                with log.open("wb") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                os.environ.update({key: str(value) for key, value in rank_env.items()})
                sys.argv = ["worker", str(job), sha256]
                sys.stderr = sys.__stderr__
                warnings.simplefilter("default")
                worker._run()
                os._exit(0)
            finally:
                os._exit(1)

    def read_exit_code(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def stop(self, *, kill: bool = False) -> None:
        if self.read_exit_code() is None:
            os.kill(self._pid, signal.SIGKILL if kill else signal.SIGTERM)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_one_rank_with_64_images_a_step_and_two_with_32_train_the_same_student(
    teacher: Path, tmp_path: Path
) -> None:
    same = [
        "student.name=vit_tiny_patch16_224",
        *VIT,
        "loss=[cross_entropy,soft_target,attention_transfer,crd]",
        "optimizer=sgd",
        "optimizer.lr=0.05",
    ]
    same += [
        "loss.soft_target.weight=0.1",
        "loss.attention_transfer.weight=10",
        "loss.crd.weight=0.05",
        "trainer.max_epochs=2",
        "trainer.limit_train_batches=5",
    ]
    same += [
        "+loss.likeness._target_=tests.distributed.parts.Likeness",
        "+loss.likeness.weight=0.1",
    ]
    same += ["data.split.validation=0.072"]  # 103 images to validate on: 52 and 51
    one = train_student(teacher, tmp_path / "one", *same, "data.batch_size=64")
    with patch.object(launch, "ChildRank", ForkedRank):
        two = train_student(
            teacher, tmp_path / "two", *same, "trainer=ddp_sim", "data.batch_size=32"
        )
    ours, theirs = (each.member.loaded.model.state_dict() for each in (one, two))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-5)
    assert two.logged_points == two.curves
    assert [row["step"] for row in two.curves] == [row["step"] for row in one.curves]
    validated = [
        (ours, theirs)
        for ours, theirs in zip(one.curves, two.curves, strict=True)
        if "validation/top1" in ours
    ]
    assert len(validated) == 2
    for first, second in validated:
        assert second == pytest.approx(first, rel=1e-4, abs=1e-6)
        for share in ("validation/top1", "validation/agreement"):
            assert first[share] == second[share]
            assert first[share] * 103 == pytest.approx(round(first[share] * 103), abs=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_ranks_learn_the_embedding_that_one_process_learns(teacher: Path, tmp_path: Path) -> None:
    # the fast twin is in tests/run/test_worker.py: a rank's job is the same
    same = [
        "data=digits",
        "task=embedding",
        "student.name=vit_tiny_patch16_224",
        *VIT,
        "loss=[embedding_cosine,pkt,seed_queue]",
        "loss.pkt.weight=100",
        "loss.seed_queue.size=256",
        "optimizer=sgd",
        "optimizer.lr=0.05",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=4",
    ]
    one = train_student(teacher, tmp_path / "one", *same, "data.batch_size=64")
    with patch.object(launch, "ChildRank", ForkedRank):
        two = train_student(
            teacher, tmp_path / "two", *same, "trainer=ddp_sim", "data.batch_size=32"
        )
    ours, theirs = (each.member.loaded.model.state_dict() for each in (one, two))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-5)
    (first,), (second,) = (
        [row for row in each.curves if "validation/overlap" in row] for each in (one, two)
    )
    # rounding exchanges neighbors that are about equally near
    assert second.pop("validation/overlap") == pytest.approx(
        first.pop("validation/overlap"), abs=0.01
    )
    assert second == pytest.approx(first, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_a_failed_rank_ends_the_job_with_its_message_and_the_next_attempt_resumes(
    teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    adapted = [
        "student.name=resnet8",
        "loss=[cross_entropy,feature_hint,soft_target]",
        "trainer=ddp_sim",
    ]
    adapted += ["trainer.max_epochs=2", "data.batch_size=64"]
    broken = [
        "+callbacks=ema",
        "+callbacks.breaker._target_=tests.distributed.parts.Breaker",
        f"+callbacks.breaker.flag={flag}",
    ]
    start = time.monotonic()
    assert run_to_exit_code(lambda: train_student(teacher, tmp_path, *adapted, *broken)) == 1
    assert time.monotonic() - start < 60
    output = capfd.readouterr().err
    assert "Process 1 of 2 failed: The callback breaker (Breaker) failed in" in output
    assert "ValueError: rank 1 has a fault of its own" in output
    flag.unlink()
    again = train_student(teacher, tmp_path, *adapted, *broken)
    assert [row["epoch"] for row in again.curves if "validation/top1" in row] == [0, 1]
    assert again.logged_points == [row for row in again.curves if row["epoch"] == 1]
    assert sorted(path.name for path in again.folder.iterdir()) == [
        "curves.jsonl",
        "model",
        "stage.json",
        "training.json",
    ]


@pytest.mark.slow
def test_a_request_error_in_a_rank_is_a_request_error_of_the_job(
    teacher: Path, tmp_path: Path
) -> None:
    config = compose_config("distill", words(teacher, tmp_path, "trainer=ddp_sim"))
    config["trainer"]["max_epochs"] = 0
    with pytest.raises(RequestError, match=r"^TrainerSettings: max_epochs=0 does not fit"):
        fit_distributed({"trainer": config["trainer"]}, tmp_path, 1, listen=None)


def alive(folder: Path) -> list[int]:
    """The ids of processes that are ranks of the job in `folder`."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if b"kd_app.run.worker" in line and str(folder).encode() in line:
            pids.append(int(path.parent.name))
    return pids


def until_gone(folder: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while alive(folder):
        assert time.monotonic() < deadline, f"ranks {alive(folder)} are still there"
        time.sleep(0.05)


@pytest.mark.slow
def test_ranks_end_with_ctrl_c_and_with_a_parent_that_is_killed(
    teacher: Path, tmp_path: Path
) -> None:
    long = words(
        teacher, tmp_path, "student.name=resnet8", "trainer=ddp_sim", "trainer.max_epochs=100000"
    )
    log = str(tmp_path / "log")
    for sign, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = start_distill(long, log)
        wait_for(tmp_path / "stages", "student-*/last.ckpt")
        assert len(alive(tmp_path)) == 2
        assert process.pid
        # a terminal sends Ctrl-C to the whole group
        (os.kill if sign == signal.SIGKILL else os.killpg)(process.pid, sign)
        until_gone(tmp_path, 8)
        assert wait_for_exit(process, 15) == code, Path(log).read_text()
        next(tmp_path.glob("stages/student-*/last.ckpt")).unlink()


def torchrun(processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        "--standalone",
        "-m",
        "kd_app.commands.distill",
    ]
    env = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *words], check=False, capture_output=True, text=True, env=env, timeout=200
    )


def record(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        (stage(out, "student") / "training.json").read_text(encoding="utf-8")
    )
    return content


@pytest.mark.slow
def test_torchrun_trains_the_same_student_as_the_command_alone(
    teacher: Path, tmp_path: Path
) -> None:
    same = ["student.name=vit_tiny_patch16_224", *VIT, "data.batch_size=32", "trainer.max_epochs=2"]
    distill(compose_config("distill", words(teacher, tmp_path / "alone", *same, "trainer=ddp_sim")))
    together = torchrun(2, *words(teacher, tmp_path / "together", *same, "trainer.accelerator=cpu"))
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("Everything is in") == 1
    assert student_sha256(tmp_path / "together" / "out") == student_sha256(
        tmp_path / "alone" / "out"
    )
    ranks = record(tmp_path / "together" / "out")["ranks"]
    assert ranks == record(tmp_path / "alone" / "out")["ranks"]
    assert [each["rank"] for each in ranks] == [0, 1]
    assert len({(each["training"], each["parameters"]) for each in ranks}) == 1
    assert {each["images"] for each in ranks} == {2 * 20 * 32}


@pytest.mark.slow
def test_two_machines_train_together(teacher: Path, tmp_path: Path) -> None:
    """Two torchrun agents, as on two machines that share a file system."""
    same = [
        "student.name=vit_tiny_patch16_224",
        *VIT,
        "trainer.limit_train_batches=3",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
    ]
    job = ["-m", "kd_app.commands.distill", *words(teacher, tmp_path, *same)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=1",
        "--master-addr=127.0.0.1",
        f"--master-port={port}",
    ]
    env = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen(
            [*agent, f"--node-rank={number}", *job], env=env, stdout=subprocess.PIPE, text=True
        )
        for number in (0, 1)
    ]
    output = [each.communicate(timeout=300)[0] for each in agents]
    assert [each.returncode for each in agents] == [0, 0]
    assert [text.count("Everything is in") for text in output] == [1, 0]
    ranks = record(tmp_path / "out")["ranks"]
    assert [each["rank"] for each in ranks] == [0, 1]
    assert len({each["parameters"] for each in ranks}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "sweep",
    [
        ["optimizer.lr=0.001,0.002"],
        ["hydra/sweeper=search", "hydra.sweeper.trials=2", "optimizer.lr=interval(0.001,0.002)"],
    ],
)
def test_every_rank_of_a_sweep_trains_the_same_trial(
    sweep: list[str], teacher: Path, tmp_path: Path
) -> None:
    brief = [
        "student.name=vit_tiny_patch16_224",
        *VIT,
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=3",
        "trainer.accelerator=cpu",
    ]
    wait_for_exit = torchrun(2, "-m", *words(teacher, tmp_path, *brief), *sweep)
    assert wait_for_exit.returncode == 0, wait_for_exit.stderr
    hashes = [
        [each["training"] for each in record(tmp_path / "out" / trial)["ranks"]]
        for trial in ("0", "1")
    ]
    assert [len(trial) for trial in hashes] == [2, 2]
    assert [len(set(trial)) for trial in hashes] == [1, 1]
    assert hashes[0][0] != hashes[1][0]
    assert wait_for_exit.stdout.count("is the best on validation") == 1


def test_torchrun_and_another_number_of_devices_do_not_go_together(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "RANK": "0",
        "WORLD_SIZE": "3",
        "LOCAL_WORLD_SIZE": "3",
    }.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(
        RequestError,
        match=(
            r"torchrun started 3 processes, but trainer\.devices=2 x trainer\.num_nodes=1 is"
            r" 2\."
        ),
    ):
        distill(compose_config("distill", words(teacher, tmp_path, "trainer=ddp_sim")))
    assert not (tmp_path / "out").exists()


def test_several_machines_need_torchrun(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"torchrun --nnodes=2 --nproc-per-node=2 -m kd_app\.commands\.distill"
    ):
        distill(
            compose_config(
                "distill", words(teacher, tmp_path, "trainer=ddp_sim", "trainer.num_nodes=2")
            )
        )


@pytest.mark.slow
def test_ranks_with_different_trainings_do_not_train(teacher: Path, tmp_path: Path) -> None:
    other = [
        "+callbacks.other._target_=tests.distributed.parts.OtherTraining",
        "student.name=resnet8",
        "trainer=ddp_sim",
    ]
    with pytest.raises(
        RunError,
        match=r"The processes received different trainings: 1 \(of 2\) differ from process 0",
    ):
        train_student(teacher, tmp_path, *other, "trainer.max_epochs=1")


@pytest.mark.slow
def test_a_rank_that_does_not_answer_ends_the_job_within_the_stated_time(
    teacher: Path, tmp_path: Path
) -> None:
    late = [
        "+callbacks.sleeper._target_=tests.distributed.parts.Sleeper",
        "student.name=resnet8",
        "trainer=ddp_sim",
    ]
    start = time.monotonic()
    with pytest.raises(
        RunError, match=r"Process 0 of 2 failed: .*(Timed out waiting 5000ms|Application timeout)"
    ):
        train_student(teacher, tmp_path, *late, "trainer.max_epochs=1", "trainer.timeout=5")
    assert time.monotonic() - start < 60
