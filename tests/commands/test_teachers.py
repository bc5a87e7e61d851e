"""Teachers that are made of other things than one set of weights, through the real
command, two batches each.
"""

from pathlib import Path
from typing import Any

import pytest
import timm

from kd_app.config import choose_decoding
from tests.builders import DIGITS, GRAY, results, teacher_folder
from tests.commands.call import expect_refusal, succeed
from tests.deployment.graphs import write_linear

OTHERS = tuple(f"kind{number}" for number in range(12))
RUN = ("debug=fdr", "logger=[csv]", "controls=[]", "examples=0")


@pytest.fixture(scope="module")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers: ``a`` and ``b`` of the data's classes, ``other`` of twelve others with
    a map, ``onnx/model.onnx`` for another runtime.
    """
    folder = tmp_path_factory.mktemp("teachers")
    teacher_folder(folder / "a")
    teacher_folder(folder / "b", "resnet14")
    teacher_folder(folder / "other", classes=OTHERS)
    rows = [f"{OTHERS[number]},{number}" for number in range(10)] + ["10,9", "11,9"]
    (folder / "map.csv").write_text("\n".join(["teacher,class", *rows]), encoding="utf-8")
    (folder / "onnx").mkdir()
    write_linear(folder / "onnx", GRAY, DIGITS, decoding=choose_decoding(GRAY))
    return folder


@pytest.fixture
def distill(sample_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run kd-distill; all runs share their stages."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> dict[str, Any]:
        succeed(*RUN, *words, "out=run", f"stages={sample_run / 'stages'}")
        return results(tmp_path / "run")

    return run


def test_several_teachers_answer_as_one_and_a_term_reads_the_one_that_it_names(
    sample_run: Path, distill: Any
) -> None:
    words = (
        "teacher=several",
        f"teacher.members.a.checkpoint={sample_run / 'a'}",
        f"teacher.members.b.checkpoint={sample_run / 'b'}",
        "teacher.members.b.weight=2",
        "teacher.by=confidence",
    )
    terms = (
        "loss=[cross_entropy,soft_target,embedding_mse,sp]",
        "loss.embedding_mse.teacher=b",
        "loss.sp.teacher=a",
    )
    content = distill(*words, *terms)
    assert content["status"] == "finished"
    assert content["models"]["teacher"]["source"] == "a: folder a; b: folder b"
    assert content["models"]["teacher"]["params"] == sum(
        p.numel()
        for name in ("resnet8", "resnet14")
        for p in timm.create_model(name, in_chans=1, num_classes=10).parameters()
    )
    for wrong, message in (
        (("loss.embedding_mse.teacher=c",), "no member of the teacher 'c'"),
        (("loss.cross_entropy.teacher=a",), "This works only for loss terms that read a teacher"),
        (("loss.sp.teacher=a", "teacher.chain=[resnet8]"), "without teacher.chain"),
    ):
        assert message in expect_refusal(*RUN, *words, terms[0], *wrong, "out=refused")


def test_a_teacher_of_other_classes_answers_in_the_data_s_by_a_map(
    sample_run: Path, distill: Any
) -> None:
    content = distill(
        f"teacher.checkpoint={sample_run / 'other'}",
        f"teacher.classes={sample_run / 'map.csv'}",
        "loss=[cross_entropy,soft_target,feature_hint]",
    )
    assert content["models"]["teacher"]["source"] == "folder other, classes by map.csv"
    assert [stage["name"] for stage in content["stages"] if stage["name"] == "teacher"] == []


def test_a_teacher_of_other_classes_teaches_features_without_a_map_and_is_compared_with_nothing(
    sample_run: Path, distill: Any
) -> None:
    words = (
        f"teacher.checkpoint={sample_run / 'other'}",
        "teacher.max_epochs=0",
        "loss=[cross_entropy,embedding_mse,sp]",
    )
    content = distill(*words, "controls=[labels_only]", "test=always")
    assert list(content["models"]) == ["labels_only", "student"]
    assert content["verdict"] is None
    assert content["test"]["teacher"] is None
    assert content["test"]["pair"]["gain"] is not None
    assert content["test"]["pair"]["retention"] is None
    assert any(
        "The teacher, resnet8, from folder other" in note
        and "has other classes than the data" in note
        for note in content["notes"]
    )
    assert "from a teacher that was not evaluated" in Path("run/student/README.md").read_text()
    message = expect_refusal(
        *RUN, *words[:2], "loss=[cross_entropy,embedding_mse,dist]", "out=refused"
    )
    assert "has 12 classes, the data have 10 classes" in message
    assert "but the loss term dist reads the logits. You can " in message
    assert "choose loss terms that do not read logits (embedding_mse, review, sp)" in message


def test_the_student_s_own_average_teaches_it_and_is_compared_with_the_labels_alone(
    distill: Any,
) -> None:
    content = distill("teacher=ema", "teacher.decay=0.9", "controls=[labels_only]", "test=always")
    assert list(content["models"]) == ["labels_only", "student"]
    assert content["test"]["gains"]["labels_only"]["value"] is not None
    assert any(
        "so the student is not compared with the teacher" in note for note in content["notes"]
    )
    assert not Path("run/teacher").exists()
    assert "smoothed_labels makes labels as soft as the teacher's logits" in expect_refusal(
        *RUN[:2], "teacher=ema", "controls=[smoothed_labels]"
    )


def test_a_file_for_another_runtime_teaches_by_its_logits(sample_run: Path, distill: Any) -> None:
    content = distill(f"teacher.checkpoint={sample_run / 'onnx' / 'model.onnx'}")
    assert content["models"]["teacher"]["source"] == "file model.onnx"
    assert content["models"]["teacher"]["params"] is None
    assert content["models"]["teacher"]["license"] == "mit"


@pytest.mark.slow
def test_each_link_of_a_chain_is_taught_by_the_one_before_and_seeds_share_it(
    sample_run: Path, distill: Any
) -> None:
    words = (f"teacher.checkpoint={sample_run / 'a'}", "teacher.chain=[resnet14,resnet8]")
    first = {stage["name"]: stage for stage in distill(*words)["stages"]}
    again = {
        stage["name"]: stage for stage in distill(*words, "seed=1", "overwrite=true")["stages"]
    }
    for link in ("link-1", "link-2"):
        assert again[link] == {**first[link], "status": "reused", "seconds": again[link]["seconds"]}
    assert first["link-1"]["status"] == first["link-2"]["status"] == "computed"
    assert again["student"]["path"] != first["student"]["path"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "teacher=several teacher.members.a.checkpoint={}/a",
            "holds 1 teachers, expected 2 or more",
        ),
        (
            (
                "teacher=several teacher.members.a.checkpoint={0}/a teacher.members.b.name=resnet8"
                " teacher.members.b.wieght=2"
            ),
            "Did you mean 'teacher.members.b.weight'",
        ),
        (
            (
                "teacher=several teacher.members.a.checkpoint={0}/a"
                " teacher.members.b.checkpoint={0}/b teacher.members.b.weight=0"
            ),
            "weight=0",
        ),
        (
            "teacher=several teacher.members.a.checkpoint={0}/a teacher.members.b.name=resnet8",
            "member b (resnet8) does not predict the data's",
        ),
        (
            (
                "teacher=several teacher.members.a.checkpoint={0}/a"
                " teacher.members.b.checkpoint={0}/b loss=[cross_entropy,feature_hint]"
            ),
            "several teachers give combined logits",
        ),
        (
            "teacher.checkpoint={0}/onnx/model.onnx loss=[cross_entropy,feature_hint]",
            "Terms that read only logits: soft_target, decoupled, dist",
        ),
        ("teacher.checkpoint={0}/a.onnx", "There is no file"),
        ("teacher.checkpoint={0}/other teacher.classes={0}/none.csv", "can't be read"),
        ("teacher.classes={0}/map.csv", "has random weights"),
        (
            "teacher=none loss=[cross_entropy] +teacher.chain=[resnet8]",
            "teacher.chain needs a teacher",
        ),
        ("teacher.checkpoint={0}/a teacher.chain=[resnet9]", "no student model 'resnet9'"),
    ],
)
def test_what_can_t_teach_is_refused_by_name(
    words: str, message: str, sample_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in expect_refusal(*RUN, *words.format(sample_run).split())
