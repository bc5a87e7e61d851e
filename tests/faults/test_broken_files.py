"""Files that a run wrote, or reads, and that are not what they were: cut off, empty, or
with other bytes in the middle.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import DEFAULT, patch

import pytest

from kd_app.models.save import save_model
from tests.builders import student_sha256
from tests.commands.call import TINY, call, expect_refusal, paragraph, snapshot, succeed
from tests.faults.conftest import Fault
from tests.faults.whole_run import WORDS, outcome, places

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "changed in its middle": lambda content: (
        content[: len(content) // 2]
        + bytes(byte ^ 0xFF for byte in content[len(content) // 2 :][:16])
        + content[len(content) // 2 + 16 :]
    ),
}
DAMAGED = "cut off, empty, or changed in its middle"
"""A row of the table for each file: the damages are counted, not listed."""
OF_STAGES = (
    "student-*/model/model.safetensors",
    "labels_only-*/training.json",
    "answers-student-test-*/answers.safetensors",
    "teacher-*/model/config.json",
)
OF_RUNS = (
    ("results.json",),
    ("predictions.parquet", "examples.parquet", "metrics.csv", "student/model.safetensors"),
)


@pytest.fixture(
    params=[
        "changed in its middle",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("cut off", "empty")),
    ]
)
def damage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def spoil(path: Path, damage: str) -> None:
    content = path.read_bytes()
    path.write_bytes(DAMAGES[damage](content))
    assert path.read_bytes() != content


@pytest.mark.slow
def test_files_of_stages_that_are_damaged_are_named_and_made_anew(
    damage: str, tmp_path: Path, reference_run: Path, fault: Fault
) -> None:
    shutil.copytree(reference_run / "stages", tmp_path / "stages")
    files = [next((tmp_path / "stages").glob(pattern)) for pattern in OF_STAGES]
    for file in files:
        spoil(file, damage)
    output = succeed(*WORDS, *places(tmp_path))
    for file in files:
        stage, _, name = file.relative_to(tmp_path / "stages").as_posix().partition("/")
        assert (
            f"{stage}: {name} is missing or changed since the stage was built; the stage is rebuilt"
            in output
        )
    assert outcome(tmp_path) == outcome(reference_run)
    for file in files:
        happened = "a line names it; the stage was made anew, to the same student and figures"
        fault(f"a stage's {file.name} is {DAMAGED}", happened=happened, lost="that stage's time")


@pytest.mark.slow
def test_checkpoints_that_are_damaged_are_named_and_their_trainings_start_again(
    tmp_path: Path, reference_run: Path, fault: Fault
) -> None:
    words = [*WORDS, *places(tmp_path)]
    for damage, (role, models) in zip(
        DAMAGES, {"teacher": 0, "labels_only": 1, "student": 1}.items(), strict=True
    ):
        with patch(
            "kd_app.training.fit.save_model",
            wraps=save_model,
            side_effect=[*[DEFAULT] * models, OSError("stopped here")],
        ):
            result = call(*words)
        assert result.code == 1
        assert (
            role == "teacher"
            or "last.ckpt is damaged or missing; the training restarts" in result.out
        )
        checkpoint = next(tmp_path.glob(f"stages/{role}-*.partial/last.ckpt"))
        spoil(checkpoint, damage)
    output = succeed(*words)
    assert f"{checkpoint} is damaged or missing; the training restarts from the beginning" in output
    assert outcome(tmp_path) == outcome(reference_run)
    happened = "a line names it; that training started again, to the same student and figures"
    times = len(DAMAGES)
    fault(f"last.ckpt is {DAMAGED}", happened=happened, lost="that training's time", times=times)


@pytest.mark.slow
def test_a_finished_runs_files_that_are_damaged_are_written_again(
    damage: str, tmp_path: Path, reference_run: Path, fault: Fault
) -> None:
    shutil.copytree(reference_run / "out", tmp_path / "out")
    whole = snapshot(reference_run / "out")
    for names in OF_RUNS:
        for name in names:
            spoil(tmp_path / "out" / name, damage)
        output = succeed(*WORDS, f"out={tmp_path / 'out'}", f"stages={reference_run / 'stages'}")
        assert "holds this run, finished" not in output
        assert "images/s" not in output  # nothing was trained
        assert outcome(tmp_path) == outcome(reference_run)
        timed = ("results.json", "config.yaml", "report.")  # they say when, and how fast
        assert all(
            content == whole[each]
            for each, content in snapshot(tmp_path / "out").items()
            if not each.startswith(timed)
        )
        for name in names:
            fault(
                f"a finished run's {name} is {DAMAGED}",
                happened="the same words wrote it again and trained nothing",
                lost="nothing",
            )


@pytest.mark.slow
def test_a_searchs_record_that_is_damaged_is_refused_by_name_and_the_trials_are_kept(
    tmp_path: Path, fault: Fault
) -> None:
    words = (
        "-m",
        *TINY,
        "controls=[]",
        "hparams_search=temperature",
        "hydra.sweeper.trials=1",
        "out=search",
        f"stages={tmp_path / 'stages'}",
    )
    succeed(*words)
    record, before = Path("search/search.json"), student_sha256(Path("search/0"))
    whole = record.read_bytes()
    for damage in DAMAGES:
        spoil(record, damage)
        assert "search.json' can't be read" in expect_refusal(*words)
        record.write_bytes(whole)
        fault(
            f"search.json is {DAMAGED}",
            happened="refused in one paragraph that says what to do",
            lost="nothing",
        )
    record.unlink()
    assert "images/s" not in succeed(*words)
    assert record.read_bytes() == whole
    assert student_sha256(Path("search/0")) == before
    fault(
        "search.json is gone",
        happened="it was written again as it was; no trial was made again",
        lost="nothing",
    )


def test_an_image_that_is_damaged_is_named_or_left_out(
    photos: Path, tmp_path: Path, damage: str, fault: Fault
) -> None:
    words = (
        *TINY,
        "student.name=resnet8",
        "controls=[]",
        "data=folder",
        "data.image_size=16",
        f"stages={tmp_path / 'stages'}",
    )
    folder = Path(shutil.copytree(photos, tmp_path / damage))
    spoil(folder / "class1" / "003.png", damage)
    result = call(*words, f"data.root={folder}", f"out={damage}")
    assert result.code == 2
    assert "1 of 36 images can't be read: class1/003.png" in paragraph(result.err)
    output = succeed(*words, f"data.root={folder}", f"out={damage}", "data.on_error=skip")
    assert "1 image(s) can't be read and are left out: class1/003.png" in " ".join(output.split())
    happened = (
        "refused in one paragraph that names it; with data.on_error=skip the run ended and names it"
    )
    fault(f"an image is {DAMAGED}", happened=happened, lost="that image")
