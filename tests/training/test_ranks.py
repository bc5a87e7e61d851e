"""Several processes that train one model: what they end with, and how they end."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kd_app.commands.app import guarded
from kd_app.config import RequestError
from kd_app.config.compose import composed
from kd_app.reporting.console import Console
from kd_app.stages import Stages
from kd_app.training.curves import read_curves
from kd_app.training.parts import parts
from kd_app.training.ranks import fit_on_ranks
from kd_app.training.workshop import Workshop
from tests.training.made import teacher_folder
from tests.training.processes import begun, ended, wait_for

VIT = [f"student.kwargs.{key}={value}" for key, value in {"patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2}.items()]


class Listening:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.heard: list[dict[str, float]] = []
        self.codes: list[int] = []

    def start(self, stage: str, lineage: Mapping[str, Any] | None = None) -> Callable[[dict[str, float], int], None]:
        return lambda row, step: self.heard.append({"step": step, **row})

    def end(self, stage: str, *, exit_code: int) -> None:
        self.codes.append(exit_code)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("teacher"))


def words(teacher: Path, folder: Path, *more: str) -> list[str]:
    fixed = [f"teacher.checkpoint={teacher}", f"out={folder / 'out'}", f"stages={folder / 'stages'}", "controls=[]", "logger=[]"]
    return [*fixed, "trainer.precision=32-true", *more]


def trained(teacher: Path, folder: Path, *more: str) -> tuple[Path, list[dict[str, float]], list[dict[str, float]]]:
    """Train the student; its folder, the curves that were written, and those that were heard of."""
    config = composed("distill", words(teacher, folder, *more))
    made, listening = parts(config), Listening()
    shop = Workshop(made, Stages(Path(config["stages"])), Console(silent=True), tracker=listening)
    shop.prepare_data()
    assert made.teacher is not None
    student = shop.train("student", shop.ready(made.teacher, seed=0))
    assert student.folder is not None
    return student.folder, list(read_curves(student.folder / "curves.jsonl")), listening.heard


def test_one_rank_with_64_images_a_step_and_two_with_32_train_the_same_student(teacher: Path, tmp_path: Path) -> None:
    same = ["student.name=vit_tiny_patch16_224", *VIT, "loss=[cross_entropy,soft_target,attention_transfer]", "optimizer=sgd", "optimizer.lr=0.05"]
    same += ["loss.soft_target.weight=0.1", "loss.attention_transfer.weight=10", "trainer.max_epochs=3", "data.split.validation=0.072"]  # 103 images to validate on: 52 and 51
    one, curve, _ = trained(teacher, tmp_path / "one", *same, "trainer=cpu", "data.batch_size=64")
    two, other, heard = trained(teacher, tmp_path / "two", *same, "trainer=ddp_sim", "data.batch_size=32")
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (one, two))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-5)
    assert heard == other
    assert [row["step"] for row in other] == [row["step"] for row in curve]
    validated = [(ours, theirs) for ours, theirs in zip(curve, other, strict=True) if "validation/top1" in ours]
    assert len(validated) == 3
    for ours, theirs in validated:
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-6)
        for share in ("top1", "agreement"):
            assert ours[f"validation/{share}"] == theirs[f"validation/{share}"]
            assert (ours[f"validation/{share}"] * 103) == pytest.approx(round(ours[f"validation/{share}"] * 103), abs=1e-4)


def test_a_rank_that_fails_ends_the_job_in_its_own_words_and_the_next_attempt_goes_on(teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    adapted = ["student.name=resnet8", "loss=[cross_entropy,feature_hint,soft_target]", "trainer=ddp_sim", "trainer.max_epochs=2", "data.batch_size=64"]
    broken = ["+callbacks=ema", "+callbacks.breaker._target_=tests.training.rank_parts.Breaker", f"+callbacks.breaker.flag={flag}"]
    start = time.monotonic()
    assert guarded(lambda: trained(teacher, tmp_path, *adapted, *broken) and None) == 1
    assert time.monotonic() - start < 60
    said = capfd.readouterr().err
    assert "Process 1 of 2 failed: ValueError: rank 1 has a fault of its own" in said
    flag.unlink()
    folder, curve, heard = trained(teacher, tmp_path, *adapted, *broken)
    assert [row["validation/top1"] >= 0 for row in curve if "validation/top1" in row] == [True, True]
    assert heard == [row for row in curve if row["epoch"] == 1]
    assert sorted(path.name for path in folder.iterdir()) == ["curves.jsonl", "model", "stage.json", "training.json"]


def test_a_request_that_only_the_ranks_find_wrong_is_still_a_wrong_request(teacher: Path, tmp_path: Path) -> None:
    config = composed("distill", words(teacher, tmp_path, "trainer=ddp_sim"))
    config["trainer"]["max_epochs"] = 0
    with pytest.raises(RequestError, match=r"^TrainerSettings: max_epochs=0 does not fit"):
        fit_on_ranks({"config": config}, tmp_path, 2, listen=None)


def alive(folder: Path) -> list[int]:
    """Processes that are ranks of the job in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if b"kd_app.training.rank" in line and str(folder).encode() in line:
            found.append(int(path.parent.name))
    return found


def until_gone(folder: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while alive(folder):
        assert time.monotonic() < deadline, f"ranks {alive(folder)} are still there"
        time.sleep(0.05)


def test_ranks_end_with_ctrl_c_and_with_a_parent_that_is_killed(teacher: Path, tmp_path: Path) -> None:
    long = words(teacher, tmp_path, "student.name=resnet8", "trainer=ddp_sim", "trainer.max_epochs=100000")
    log = str(tmp_path / "log")
    for sign, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = begun(long, log)
        wait_for(tmp_path / "stages", "student-*/last.ckpt")
        assert len(alive(tmp_path)) == 2
        assert process.pid
        os.kill(process.pid, sign) if sign == signal.SIGKILL else os.killpg(process.pid, sign)  # a terminal's Ctrl-C goes to the whole group
        until_gone(tmp_path, 8)
        assert ended(process, 15) == code, Path(log).read_text()
        next(tmp_path.glob("stages/student-*/last.ckpt")).unlink()
