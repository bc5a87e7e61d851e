"""Signals to all processes of a run, and what the system does to one in mid-run."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from torch import Tensor

from kd_app.training.module import Distillation
from tests.builders import results, student_sha256
from tests.commands.call import call, paragraph, script, succeed, surroundings
from tests.faults.conftest import Fault
from tests.faults.disk import Disk
from tests.faults.whole_run import WORDS, places
from tests.training.processes import start_command, wait_for, wait_for_exit

ALIKE = "the same words went on, to the same student"


def list_words(photos: Path) -> list[str]:
    """A run whose images two other processes load."""
    return [
        *WORDS,
        "data=folder",
        f"data.root={photos}",
        "data.image_size=16",
        "data.num_workers=2",
        "data.cache=none",
        "data.batch_size=4",
        "student.name=resnet8",
        "controls=[]",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["cpu", "ddp_sim"])
def test_a_signal_to_all_processes_stops_the_run_with_its_state(
    trainer: str, photos: Path, tmp_path: Path, fault: Fault
) -> None:
    words = [*list_words(photos), f"trainer={trainer}", "trainer.max_epochs=30"]
    log = str(tmp_path / "log")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)):
        process = start_command([*words, *places(tmp_path / "stopped")], log)
        for path in (tmp_path / "stopped").glob("stages/student-*.partial/last.ckpt"):
            os.utime(path, (0, 0))
        last = wait_for(tmp_path / "stopped", "stages/student-*.partial/last.ckpt", 300)
        while last.stat().st_mtime == 0:
            assert process.is_alive(), Path(log).read_text(encoding="utf-8")
            time.sleep(0.05)
        assert process.pid
        os.killpg(process.pid, number)
        assert wait_for_exit(process) == code, Path(log).read_text(encoding="utf-8")
    text = Path(log).read_text(encoding="utf-8")
    assert "Traceback" not in text
    assert text.count("resumes at step") >= 2
    succeed(*words, *places(tmp_path / "stopped"))
    succeed(*words, *places(tmp_path / "whole"))
    assert student_sha256(tmp_path / "stopped" / "out") == student_sha256(
        tmp_path / "whole" / "out"
    )
    where = "two ranks train" if trainer == "ddp_sim" else "processes load images"
    fault(
        f"SIGTERM, Ctrl-C or SIGHUP to all processes while {where}",
        times=3,
        happened=f"exit code 143, 130 or 129; {ALIKE}",
        lost="nothing",
    )


@pytest.mark.slow
def test_an_image_that_goes_bad_in_mid_run_ends_the_run_and_everything_is_kept(
    photos: Path, tmp_path: Path, fault: Fault
) -> None:
    images = tmp_path / "photos"
    shutil.copytree(photos, images)
    words = list_words(images)
    contents = {path: path.read_bytes() for path in images.rglob("*.*")}
    plain, steps = Distillation.training_step, 0

    def spoil(module: Distillation, batch: Any, batch_idx: int) -> Tensor:
        nonlocal steps
        steps += 1
        for path in contents if steps == 3 else ():
            path.write_bytes(b"garbage")
        return plain(module, batch, batch_idx)

    with patch.object(Distillation, "training_step", spoil):
        end = call(*words, *places(tmp_path / "bad"))
    assert end.code == 1
    assert "could be read when the images were scanned" in paragraph(end.err)
    assert results(tmp_path / "bad" / "out")["status"] == "failed"
    for path, content in contents.items():
        path.write_bytes(content)
    succeed(*words, *places(tmp_path / "bad"))
    succeed(*words, *places(tmp_path / "whole"))
    assert student_sha256(tmp_path / "bad" / "out") == student_sha256(tmp_path / "whole" / "out")
    fault(
        "images go bad in mid-run",
        happened=f"exit code 1 and one paragraph that names one; with the images back {ALIKE}",
        lost="nothing",
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", ["0", "80k"])
def test_a_run_needs_no_shared_memory(
    size: str, photos: Path, tmp_path: Path, fault: Fault
) -> None:
    mount = "mount -t tmpfs -o size=$0 tmpfs /dev/shm"
    if size == "0":
        size, mount = "4k", f"{mount} && head -c 4096 /dev/zero > /dev/shm/full"
    run = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', size, script("kd-distill")]
    if subprocess.run([*run[:4], mount, size], check=False, capture_output=True).returncode:
        pytest.skip("this process may not mount anything")
    words = [*list_words(photos), "teacher=none", "loss=[cross_entropy]"]
    words = [word for word in words if not word.startswith(("teacher.", "controls"))]
    end = subprocess.run(
        [*run, *words, *places(tmp_path)],
        cwd=tmp_path,
        env=surroundings(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert end.returncode == 0, end.stderr
    assert "--shm-size" in end.stderr
    assert "Traceback" not in end.stderr
    fault(
        "the shared memory of the machine is too small",
        happened="a line that names /dev/shm; images came another way, and the run ended",
        lost="nothing",
    )


@pytest.mark.slow
def test_a_full_disk_under_the_mapped_cache_is_one_paragraph(disk: Disk, fault: Fault) -> None:
    words = [*WORDS, "teacher.outputs=cached", "data.views=2", "controls=[]"]
    with disk.full_from("kd_app.teacher_outputs.filling.reserve_space"):
        end = call(*words, *places(disk.folder))
    assert end.code == 1
    assert "rows.bin" in paragraph(end.err)
    succeed(*words, *places(disk.folder))
    fault(
        "the disk gets full: the cached outputs of a teacher",
        happened="exit code 1 and one paragraph; with room again the same words went on",
        lost="nothing",
    )


@pytest.mark.slow
def test_a_run_goes_on_without_a_reader_of_its_output(tmp_path: Path, fault: Fault) -> None:
    running = subprocess.Popen(
        [script("kd-distill"), *WORDS, *places(tmp_path)],
        cwd=tmp_path,
        env=surroundings(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.readline()
    running.stdout.close()
    running.stderr.close()
    assert running.wait(timeout=300) == 0
    assert results(tmp_path / "out")["status"] == "finished"
    fault(
        "nobody reads the output any more (| head -1)",
        happened="the run ended",
        lost="the output",
    )
