"""``kd-check`` as somebody calls it: exit code 0 and a plan for a sound run, 2 and
every reason at once for one that is not.
"""

import shutil
from pathlib import Path

import pytest

from tests.checks.planted import write_colored_photos
from tests.commands.call import call, paragraph, snapshot, succeed

QUICK = ("teacher.name=resnet8", "logger=[]", "check.seconds=0.02")


def test_a_sound_run_is_told_what_it_costs_and_nothing_is_left_behind() -> None:
    out = succeed(*QUICK, "trainer.max_epochs=3", "teacher.max_epochs=3", command="kd-check")
    assert "No reason was found not to run." in out
    assert "Student: resnet8 trained for 3 epochs on cross_entropy + soft_target" in out
    for what in (
        "Time: about ",
        "teacher 3 x ",
        "labels_only 3 x ",
        "student 3 x ",
        "Memory: ",
        "Disk: ",
    ):
        assert what in out
    assert [
        line.split(":")[1].strip() for line in out.splitlines() if line.startswith("Warning:")
    ] == ["test-too-small"]
    assert list(Path.cwd().iterdir()) == []


def test_every_reason_not_to_run_is_told_at_once(tmp_path: Path) -> None:
    photos = write_colored_photos(tmp_path / "photos", images=24, ready=True)
    shutil.copy(photos / "test" / "class1" / "000.png", photos / "train" / "class1" / "again.png")
    before = snapshot(Path.cwd())
    words = (
        "data=folder",
        f"data.root={photos}",
        "data.image_size=16",
        "student.name=resnet8",
        "teacher.max_epochs=0",
        "loss.cross_entropy.weight=0",
        "controls=[]",
        "data.num_workers=0",
    )
    result = call(*QUICK, *words, f"stages={tmp_path / '.stages'}", command="kd-check")
    assert result.code == 2
    message = paragraph(result.err)
    assert message.startswith("Refused for 3 reasons.")
    for reason in ("same-image: ", "random-head: ", "term-zero: "):
        assert reason in message
    assert snapshot(Path.cwd()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("check.secnds=1",), "Did you mean 'check.seconds'?"),
        (("check.max_gradient_share=2",), "check: max_gradient_share=2"),
        (("loss.soft_target.temprature=2",), "Did you mean 'loss.soft_target.temperature'?"),
        (("teacher=none", "loss=[soft_target]"), "soft_target needs a teacher"),
    ],
)
def test_a_wrong_request_is_one_paragraph(words: tuple[str, ...], message: str) -> None:
    result = call(*words, command="kd-check")
    assert result.code == 2
    assert message in paragraph(result.err)
