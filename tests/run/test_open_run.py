"""Opening a finished run: what is read, built and refused.

The runs are written as files; nothing is trained.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kd_app.config import Decoding, InputSpec, RequestError
from kd_app.config.compose import compose_config
from kd_app.data.base import RunData
from kd_app.data.evaluation import Evaluation
from kd_app.deployment.manifest import describe_decoding
from kd_app.jobs.evaluate import evaluate
from kd_app.jobs.export import export_run
from kd_app.reporting.console import Console
from kd_app.reporting.results import write
from kd_app.run.model import RunModel
from kd_app.run.open_run import (
    STAGES,
    SavedRun,
    _find_stage,
    build_saved_spec,
    load_models,
    open_run,
    read_run,
)
from kd_app.run.workspace import Workspace
from kd_app.specs.task_choice import Purpose
from tests.builders import DIGITS, accept_changes, image_folder, results, teacher_folder
from tests.commands.conftest import _cwd
from tests.jobs.conftest import QUICK
from tests.reporting.run_folders import build_model, build_results

__all__ = ["_cwd"]

GONE = {"_target_": "kd_app.losses.renamed.Renamed", "weight": 1.0}
"""A loss that does not exist (any more)."""
FOREIGN = {"_target_": "os.mkdir", "path": "mark"}
SILENT = Console(silent=True)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on digits, a teacher beside it, and a student."""
    parent = tmp_path_factory.mktemp("written")
    folder, teacher = parent / "run", teacher_folder(parent / "teacher")
    teacher_folder(folder / "student")
    overrides = [
        "debug=fdr",
        "data=digits",
        "loss=[cross_entropy,soft_target]",
        "controls=[labels_only]",
        f"teacher.checkpoint={teacher}",
        "student.name=resnet8",
        "logger=[csv]",
    ]
    write_config(folder, compose_config("distill", overrides))
    (folder / "teacher").mkdir()
    reference = {
        "name": "resnet8",
        "source": f"folder {teacher}",
        "sha256": "ab",
        "stage": None,
        "path": str(teacher),
    }
    (folder / "teacher" / "reference.json").write_text(json.dumps(reference), encoding="utf-8")
    data = {"classes": list(DIGITS), "sizes": {"test": 4}, "fingerprint": "f00d"}
    models = {role: build_model("resnet8", 100, 1000) for role in ("teacher", "student")}
    write(folder / "results.json", build_results(data=data, models=models))
    return parent


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of that run, which a test may change, and its teacher."""
    shutil.copytree(run_folder, tmp_path, dirs_exist_ok=True)
    for name in ("config.yaml", "teacher/reference.json"):
        path = tmp_path / "run" / name
        text = path.read_text(encoding="utf-8").replace(str(run_folder), str(tmp_path))
        path.write_text(text, encoding="utf-8")
    return tmp_path / "run"


def read_config(run: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return config


def write_config(run: Path, config: dict[str, Any]) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def change_config(run: Path, **groups: Any) -> None:
    write_config(run, {**read_config(run), **groups})
    accept_changes(run)


def change_results(run: Path, **changes: Any) -> None:
    accept_changes(run, **changes)


def evaluation(run: Path, *overrides: str) -> dict[str, Any]:
    return compose_config("evaluate", [f"run={run}", "out=again", "limit=1", *overrides])


def read_saved(run: Path, purpose: Purpose = "measure", overrides: Sequence[str] = ()) -> SavedRun:
    name = {"measure": "evaluate", "export": "export", "train": "compress"}[purpose]
    steps = ["steps=[prune]"] if purpose == "train" else []
    command = compose_config(name, [f"run={run}", "out=again", *steps, *overrides])
    return read_run(run, command, purpose)


def test_an_unfinished_run_is_refused_with_its_status(run: Path) -> None:
    for status in ("running", "failed", "pruned"):
        change_results(run, status=status)
        for purpose in ("measure", "export", "train"):
            with pytest.raises(RequestError, match=f"is {status}, not finished. Expected"):
                read_saved(run, purpose)


def test_the_command_decides_where_stages_go_what_is_trusted_and_which_licenses_count(
    run: Path,
) -> None:
    change_config(run, stages="/elsewhere", allow=["os"], license={"accept": ["x"], "policy": "p"})
    for purpose in ("measure", "export", "train"):
        config = read_saved(run, purpose).config
        assert config["stages"] == str(Path(STAGES).absolute())
        assert config["allow"] == []
        assert config["license"]["accept"] == []
        assert config["license"]["policy"] is None
    assert read_saved(run, overrides=["stages=mine"]).config["stages"] == str(
        Path("mine").absolute()
    )


def test_a_measurement_runs_on_this_machine_and_a_training_as_the_run_did(run: Path) -> None:
    trainer = read_config(run)["trainer"]
    change_config(run, trainer={**trainer, "devices": 4, "precision": "16-mixed"})
    measured = read_saved(run, overrides=["limit=3"]).config["trainer"]
    assert [measured[key] for key in ("devices", "precision", "accelerator")] == [1, "auto", "auto"]
    assert measured["limit_test_batches"] == 3
    trained = read_saved(run, "train").config["trainer"]
    assert [trained[key] for key in ("devices", "precision")] == [4, "16-mixed"]


def test_only_a_measurement_looks_at_controls(run: Path) -> None:
    assert list(read_saved(run).config["controls"]) == ["labels_only"]
    assert read_saved(run, "export").config["controls"] == {}
    assert read_saved(run, "train").config["controls"] == {}


@pytest.mark.parametrize("purpose", ["measure", "export"])
@pytest.mark.parametrize(
    "groups",
    [
        {"loss": {"gone": GONE}},
        {"optimizer": FOREIGN},
        {"scheduler": FOREIGN},
        {"callbacks": {"x": FOREIGN}},
        {"logger": {"x": FOREIGN}},
    ],
)
def test_parts_that_only_a_training_needs_are_not_looked_at(
    groups: dict[str, Any], purpose: Purpose, run: Path
) -> None:
    change_config(run, **groups)
    parts = build_saved_spec(read_saved(run, purpose))
    assert parts.student.origin.name == "resnet8"
    assert parts.teacher_recipe is None
    assert not Path("mark").exists()


@pytest.mark.parametrize("group", ["loss", "optimizer", "scheduler"])
def test_a_training_needs_a_recipe_that_is_ours(group: str, run: Path) -> None:
    change_config(run, **{group: {"x": FOREIGN} if group == "loss" else FOREIGN})
    with pytest.raises(RequestError, match=r"'os.mkdir' names code that is not part of kd_app"):
        build_saved_spec(read_saved(run, "train"))


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_callbacks_and_loggers_of_a_record_are_not_even_built_to_train(
    group: str, run: Path
) -> None:
    change_config(run, **{group: {"x": FOREIGN}})
    saved = read_saved(run, "train")
    assert len(saved.notes) == (group == "callbacks")
    parts = build_saved_spec(saved)
    assert parts.config[group] == {}
    assert parts.recipe.make_callbacks(parts.task) == {}


@pytest.mark.parametrize(
    ("purpose", "place"),
    [
        ("measure", "data.source"),
        ("export", "robustness.x"),
        ("measure", "verdict.x"),
        ("export", "student.kwargs.x"),
        ("export", "data.view.x"),
        ("train", "teacher.kwargs.x"),
        ("train", "trainer.x"),
        ("train", "verdict.x"),
    ],
)
def test_parts_that_every_purpose_needs_are_ours(place: str, purpose: Purpose, run: Path) -> None:
    config = read_config(run)
    *above, last = place.split(".")
    node = config
    for key in above:
        node = node[key]
    node[last] = FOREIGN
    write_config(run, config)
    with pytest.raises(RequestError, match="names code that is not part of kd_app"):
        read_saved(run, purpose)
    assert not Path("mark").exists()


def test_a_control_with_soft_labels_does_not_build_the_students_losses(run: Path) -> None:
    controls = compose_config("distill", ["controls=[smoothed_labels]"])["controls"]
    assert controls["smoothed_labels"]["label_entropy_temperature"] == "auto"
    change_config(run, loss={"x": FOREIGN}, controls=controls)
    change_results(
        run, models=dict.fromkeys(("teacher", "student"), build_model("resnet8", 100, 1000))
    )
    assert list(build_saved_spec(read_saved(run)).controls) == ["smoothed_labels"]
    assert not Path("mark").exists()


def test_a_controls_own_net_is_ours(run: Path) -> None:
    controls = read_config(run)["controls"]
    net = {"name": "resnet8", "kwargs": {"x": FOREIGN}}
    change_config(run, controls={"labels_only": {**controls["labels_only"], "student": net}})
    with pytest.raises(RequestError, match=r"controls.labels_only.student.kwargs.x._target_"):
        build_saved_spec(read_saved(run))


def test_a_model_that_the_configuration_does_not_name_is_refused(run: Path) -> None:
    change_results(run, models={**results(run)["models"], "../evil": build_model("resnet8", 1, 1)})
    with pytest.raises(RequestError, match=r"models that its configuration does not: '../evil'"):
        read_saved(run)


def test_an_open_run_has_its_data_and_holds_out(run: Path) -> None:
    saved, out = read_saved(run), Path("again")
    with open_run(saved, out, {"a": 1}, overwrite=False, console=SILENT) as opened:
        assert opened.workspace.classes == DIGITS
        assert opened.verdict.metric == "top1"
        assert read_config(out) == {"a": 1}
        models = load_models(opened)
        assert list(models) == ["teacher", "student"]
        assert models["student"].spec.origin.path == run / "student"
        assert list(load_models(opened, ["student"])) == ["student"]
        with (
            pytest.raises(RequestError, match="Another process works in"),
            open_run(saved, out, {"a": 1}, overwrite=False, console=SILENT),
        ):
            pass


def use_plain_weights(run: Path) -> None:
    """Make the run's teacher a plain file of weights."""
    torch.save(load_file(run / "student" / "model.safetensors"), run.parent / "net.pth")
    teacher = read_config(run)["teacher"]
    checkpoint = str(run.parent / "net.pth")
    change_config(run, teacher={**teacher, "name": "resnet8", "checkpoint": checkpoint})


def open_other_images(run: Path, console: Console) -> tuple[dict[str, RunModel], Workspace]:
    """The run's models, and its workspace with color images of two digits."""
    photos = image_folder(run.parent / "photos", images=2)
    for label in range(2):
        (photos / f"class{label}").rename(photos / f"{label}")
    saved = read_saved(run, overrides=["data=folder", f"data.root={photos}"])

    def prepare(data: RunData) -> None:
        data.evaluate_only(Evaluation(DIGITS, "all"))

    with open_run(
        saved, Path("again"), {}, overwrite=False, console=console, prepare=prepare
    ) as opened:
        return load_models(opened), opened.workspace


def test_the_models_see_other_images_as_they_saw_those_of_the_run(run: Path) -> None:
    use_plain_weights(run)
    stats = {"channels": 1, "height": 8, "width": 8, "mean": [0.31], "std": [0.38]}
    change_results(run, image_stats=stats)
    config = json.loads((run / "student" / "config.json").read_text(encoding="utf-8"))
    decoding = Decoding(1, 77)
    config["decoding"] = describe_decoding(decoding)
    (run / "student" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    models, workspace = open_other_images(run, SILENT)
    assert models["teacher"].loaded.pixels == InputSpec(1, 8, 8, (0.31,), (0.38,))
    assert (workspace.decoding, workspace.data.channels) == (decoding, 1)


def test_a_model_whose_input_is_not_recorded_is_measured_on_the_runs_images_only(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use_plain_weights(run)
    assert list(open_other_images(run, Console())[0]) == ["student"]
    assert "teacher is left out. It is normalized" in " ".join(capsys.readouterr().out.split())
    with open_run(read_saved(run), Path("own"), {}, overwrite=False, console=SILENT) as opened:
        assert list(load_models(opened)) == ["student"]
        fingerprint = opened.workspace.data.fingerprint
    change_results(run, data={**results(run)["data"], "fingerprint": fingerprint})
    with open_run(read_saved(run), Path("same"), {}, overwrite=False, console=SILENT) as opened:
        assert list(load_models(opened)) == ["teacher", "student"]


def test_data_of_other_classes_are_refused_and_nothing_is_left(run: Path) -> None:
    change_results(run, data={**results(run)["data"], "classes": [*DIGITS[:9], "ten"]})
    with (
        pytest.raises(RequestError, match="differ in '9'"),
        open_run(read_saved(run), Path("again"), {}, overwrite=False, console=SILENT),
    ):
        pass
    assert not Path("again").exists()


def test_a_license_that_forbids_an_export_does_not_forbid_to_measure(run: Path) -> None:
    teacher_folder(run.parent / "teacher", license="cc-by-nd-4.0")
    with open_run(read_saved(run), Path("again"), {}, overwrite=False, console=SILENT):
        pass
    with (
        pytest.raises(RequestError, match="cc-by-nd"),
        open_run(read_saved(run, "export"), Path("files"), {}, overwrite=False, console=SILENT),
    ):
        pass


def test_a_student_that_was_removed_is_left_out(run: Path) -> None:
    (run / "student" / "config.json").unlink()
    with open_run(read_saved(run), Path("again"), {}, overwrite=False, console=SILENT) as opened:
        assert list(load_models(opened)) == ["teacher"]


@pytest.mark.slow
def test_a_run_whose_loss_does_not_exist_any_more_is_evaluated(run: Path) -> None:
    change_config(run, loss={"gone": GONE}, optimizer={"_target_": "kd_app.training.gone.Gone"})
    evaluate(evaluation(run), console=SILENT)
    assert results(Path("again"))["status"] == "finished"
    assert results(Path("again"))["config"]["loss"] == {"gone": GONE}


@pytest.mark.slow
def test_a_run_whose_loss_does_not_exist_any_more_is_exported(run: Path) -> None:
    change_config(run, loss={"gone": GONE}, optimizer={"_target_": "kd_app.training.gone.Gone"})
    overrides = [f"run={run}", "out=files", "license.accept=[none]", "formats=[onnx]", *QUICK]
    export_run(compose_config("export", overrides), console=SILENT)
    assert (Path("files") / "manifest.json").is_file()


def test_a_run_is_opened_from_another_working_directory(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    teacher = {**read_config(run)["teacher"], "checkpoint": "teacher"}
    change_config(run, teacher=teacher, stages="stages")
    stage = tmp_path / "stages" / "student-0123"
    stage.mkdir(parents=True)
    (stage / "stage.json").touch()
    record = {"name": "student", "path": "stages/student-0123", "seconds": 1, "status": "reused"}
    environment = {**results(run)["environment"], "folder": str(tmp_path)}
    change_results(run, stages=[record], environment=environment)
    monkeypatch.chdir("/")
    saved = read_saved(run)
    assert saved.config["teacher"]["checkpoint"] == str(tmp_path / "teacher")
    assert saved.config["stages"] == str(tmp_path / "stages")
    assert build_saved_spec(saved).teacher is not None


def test_a_stage_that_has_moved_with_its_folder_is_looked_for_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "new" / "teacher-01").mkdir(parents=True)
    old = tmp_path / "old" / "teacher-01"
    assert _find_stage(old, tmp_path / "new") == tmp_path / "new" / "teacher-01"
    old.mkdir(parents=True)
    assert _find_stage(old, tmp_path / "new") == old


def test_a_student_that_knows_the_validation_images_is_not_compressed(run: Path) -> None:
    models = results(run)["models"]
    models["student"]["training"] = {"refit": {"images": 9, "epochs": 2}}
    change_results(run, models=models)
    with pytest.raises(RequestError, match=r"trained on the validation images, too"):
        read_saved(run, "train")
    for purpose in ("export", "measure"):
        (note,) = read_saved(run, purpose).notes
        assert "images that they know" in note
