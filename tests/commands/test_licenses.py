"""A license that forbids stops the run before anything is read; what ships says what it
is under, in every place.
"""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from safetensors import safe_open

import kd_app
from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.data.module import ImageData
from kd_app.run.folder import build_run_name
from kd_app.run.workspace import Workspace
from kd_app.tracking import Tracker
from kd_app.tracking.outcome import build_outcome
from tests.builders import accept_changes, results, teacher_folder
from tests.commands.call import TINY, call, expect_refusal, paragraph, succeed

NC = "cc-by-nc-4.0"
QUICK = ("debug=fdr", "logger=[csv]", "student.name=resnet8", "examples=0")
ALONE = ("teacher=none", "loss=[cross_entropy]", "debug=fdr", "logger=[csv]", "examples=0")


@pytest.fixture(scope="module")
def noncommercial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose folder says that it is not for commercial use."""
    return teacher_folder(tmp_path_factory.mktemp("nc") / "big", license=NC)


@pytest.fixture(scope="module")
def licensed_run(noncommercial: Path) -> tuple[Path, str]:
    """A run that learned from it, by permission, and what it said."""
    folder = noncommercial.parent
    words = (
        f"teacher.checkpoint={noncommercial}",
        f"out={folder / 'run'}",
        f"stages={folder / 'stages'}",
    )
    return folder / "run", succeed(*QUICK, *words, f"license.accept=[{NC}]")


def weights_say(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def test_a_noncommercial_teacher_is_refused_before_data_or_weights_are_read(
    noncommercial: Path,
) -> None:
    def touch(*_: object, **__: object) -> None:
        raise AssertionError("too early")

    with (
        patch.object(ImageData, "list", touch),
        patch.object(Workspace, "__init__", touch),
        patch("kd_app.models.create._create_timm", touch),
    ):
        for words in (
            (f"teacher.checkpoint={noncommercial}",),
            ("teacher.name=convnextv2_atto.fcmae_ft_in1k",),
        ):
            message = expect_refusal("logger=[csv]", *words)
            assert (
                f"{NC} (https://creativecommons.org/licenses/by-nc/4.0/), forbids commercial use"
                in message
            )
            assert f"'license.accept=[{NC}]'" in message
        message = expect_refusal(
            "logger=[csv]",
            "data=folder",
            "data.root=/nonexistent",
            "data.license=cc-by-nd-4.0",
            "teacher.name=resnet18.a1_in1k",
        )
    assert "The license of the data (folder), cc-by-nd-4.0" in message
    assert "forbids derived models" in message


def test_so_are_trials_and_notebooks(noncommercial: Path) -> None:
    result = call(*QUICK, f"teacher.checkpoint={noncommercial}", "-m", "seed=0,1", "out=sweep")
    assert result.code == 2
    assert [line[:9] for line in result.err.splitlines()] == ["Trial 0: ", "Trial 1: "]
    assert not Path("sweep").exists()
    with pytest.raises(RequestError, match=r"license\.accept"):
        kd_app.distill(*QUICK, f"teacher.checkpoint={noncommercial}", "out=run")


def test_accepted_it_runs_and_that_is_on_record(licensed_run: tuple[Path, str]) -> None:
    run, output = licensed_run
    content = results(run)
    assert content["license"]["teacher"] == content["license"]["ships"] == NC
    assert (content["license"]["student_start"], content["license"]["data"]) == (
        "none",
        "cc-by-4.0",
    )
    assert content["license"]["forbidden"] == []
    assert (
        f"{NC} (https://creativecommons.org/licenses/by-nc/4.0/), forbids commercial use;"
        " it is accepted by license.accept." in content["license"]["accepted"][0]
    )
    assert {role: model["license"] for role, model in content["models"].items()} == {
        "teacher": NC,
        "labels_only": "cc-by-4.0",
        "student": NC,
    }
    assert content["config"]["license"]["accept"] == [NC]
    words = " ".join(output.split())
    assert f"license {NC} cc-by-4.0 {NC}" in words
    assert f"License of the student: {NC}, the strictest license of" in words
    assert "it is accepted by license.accept" in words


def test_what_ships_says_its_license_and_its_teacher(licensed_run: tuple[Path, str]) -> None:
    student = licensed_run[0] / "student"
    config = json.loads((student / "config.json").read_text(encoding="utf-8"))
    assert (config["license"], config["pretrained_cfg"]["license"], config["teacher"]) == (
        NC,
        NC,
        "resnet8",
    )
    assert weights_say(student / "model.safetensors") == {
        "license": NC,
        "teacher": "resnet8",
        "made_with": "kd_app",
    }
    assert kd_app.load_run(licensed_run[0]).load_student()


@pytest.mark.parametrize("where", ["", "student", "student/model.safetensors"])
def test_whoever_learns_from_what_ships_is_refused_too(
    where: str, licensed_run: tuple[Path, str], tmp_path: Path
) -> None:
    taken = licensed_run[0] / where
    if taken.is_file():  # alone, without its folder
        taken = tmp_path / "alone.safetensors"
        taken.write_bytes((licensed_run[0] / where).read_bytes())
    message = expect_refusal(*QUICK, f"teacher.checkpoint={taken}", "teacher.name=resnet8")
    assert f"The license of the teacher's weights (resnet8), {NC}" in message
    assert f"student's starting weights (resnet8), {NC}" in expect_refusal(
        *ALONE, f"student.checkpoint={taken}"
    )


@pytest.mark.slow
def test_measured_again_it_is_under_the_same(licensed_run: tuple[Path, str]) -> None:
    out = succeed(f"run={licensed_run[0]}", "out=again", "limit=2", command="kd-evaluate")
    before, again = results(licensed_run[0]), results(Path("again"))
    assert again["license"] == before["license"]
    assert {role: model["license"] for role, model in again["models"].items()} == {
        role: each["license"] for role, each in before["models"].items()
    }
    assert {
        stage["status"] for stage in again["stages"] if stage["name"].startswith("answers")
    } == {"reused"}
    assert f"License of the student: {NC}" in out


def test_what_is_unknown_is_a_warning(photos: Path) -> None:
    words = (
        "data=folder",
        f"data.root={photos}",
        "data.num_workers=0",
        "data.image_size=16",
        *ALONE,
        "student.name=resnet8",
        "stages=stages",
    )
    out = " ".join(succeed(*words, "out=unsaid").split())
    note = "Note: The license of the data (folder) is unknown; set it with data.license=<name>."
    assert out.count(note) == 2  # before the run, and below its table
    assert results(Path("unsaid"))["license"]["ships"] == "unknown"
    output = succeed(*words, "out=said", "data.license=own")
    assert "is unknown" not in output
    assert (
        results(Path("said"))["license"]["ships"]
        == results(Path("said"))["models"]["student"]["license"]
        == "own"
    )
    stages = [[each["path"] for each in results(Path(out))["stages"]] for out in ("unsaid", "said")]
    assert stages[0] == stages[1]


@pytest.mark.slow
def test_a_sweep_says_what_its_trials_ship(
    licensed_run: tuple[Path, str], noncommercial: Path
) -> None:
    words = (
        f"teacher.checkpoint={noncommercial}",
        f"stages={noncommercial.parent / 'stages'}",
        f"license.accept=[{NC}]",
    )
    out = succeed(*QUICK, *words, "-m", "seed=0", "out=sweep")
    assert "Its test top-1 is" in " ".join(out.split())
    assert f"License of the students: {NC}.\n" in out


def test_a_run_from_before_licenses_were_asked_about_is_measured_and_gone_on_with(
    sample_run: Path, run: Path
) -> None:
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    del config["license"]
    for group in ("data", "teacher", "student"):
        del config[group]["license"]
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    accept_changes(run, license=None)
    succeed(f"run={run}", "out=again", "limit=2", command="kd-evaluate")
    assert results(Path("again"))["license"] is None  # nobody knew
    assert "epoch 1/" not in succeed(*TINY, f"out={run}", f"stages={sample_run / 'stages'}")
    assert results(run)["license"] == results(sample_run / "run")["license"]


@pytest.mark.slow
def test_trackers_are_told(licensed_run: tuple[Path, str], noncommercial: Path) -> None:
    words = (
        f"teacher.checkpoint={noncommercial}",
        f"stages={noncommercial.parent / 'stages'}",
        f"license.accept=[{NC}]",
    )
    with (
        patch.object(
            Tracker, "__init__", autospec=True, side_effect=Tracker.__init__
        ) as constructor,
        patch.object(Tracker, "log_results") as log_results,
    ):
        succeed(*QUICK, *words, "out=run")
    assert constructor.call_args.kwargs["config"]["license"] == {
        "accept": [NC],
        "policy": None,
        **results(licensed_run[0])["license"],
    }
    figures = build_outcome(
        "run", log_results.call_args.args[0].model_dump(mode="json"), [], Path("run"), []
    ).metrics
    assert figures["license.ships"] == NC


@pytest.mark.slow
def test_a_finished_run_whose_license_is_said_now_is_written_again_and_nothing_is_trained() -> None:
    words = (*ALONE, "data.license=null", "out=run", "stages=stages")
    succeed(*words)
    before = (
        Path("run/results.json").read_bytes(),
        Path("run/student/model.safetensors").read_bytes(),
    )
    assert "holds this run, finished" in succeed(*words)
    assert (
        Path("run/results.json").read_bytes(),
        Path("run/student/model.safetensors").read_bytes(),
    ) == before
    content = json.loads(before[0])
    accept_changes(Path("run"), license=None)
    assert "epoch 1/" not in succeed(*words)
    assert results(Path("run"))["license"] == content["license"]


def test_what_is_said_of_licenses_changes_no_name() -> None:
    plain = compose_config("distill", [])
    current = compose_config(
        "distill",
        [
            f"license.accept=[{NC}]",
            "data.license=mit",
            "teacher.license=mit",
            "student.license=mit",
        ],
    )
    old: dict[str, Any] = {key: value for key, value in plain.items() if key != "license"}
    for group in ("data", "teacher", "student"):
        old[group] = {key: value for key, value in plain[group].items() if key != "license"}
    assert build_run_name(plain) == build_run_name(current) == build_run_name(old)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "license.accept=[cc-by-nc-5.0]",
            "There is no license 'cc-by-nc-5.0'. Did you mean 'cc-by-nc-4.0'?",
        ),
        ("license.accept=mit", "license: accept='mit' does not fit: expected a valid list"),
        ("license.acept=[mit]", "no setting 'license.acept'. Did you mean 'license.accept'?"),
        ("license.policy=nowhere.yaml", "There is no 'nowhere.yaml'. It can't be read as a policy"),
        ("data.license=5", "license: license=5 does not fit: expected a valid string"),
        (
            "data.license=gpl-3.0",
            "data.license='gpl-3.0', but the license of the data (digits) is cc-by-4.0",
        ),
        (
            "teacher.license=mit",
            "teacher.license='mit', but the license of the teacher's weights (wrn_16_2) is none",
        ),
    ],
)
def test_a_wrong_setting_is_named(words: str, message: str) -> None:
    assert message in expect_refusal(*words.split())


def test_a_refusal_is_one_paragraph(noncommercial: Path) -> None:
    assert "forbids" in paragraph(call(*TINY, f"teacher.checkpoint={noncommercial}").err)
