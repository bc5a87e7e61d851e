"""What a run shows of its teacher's soft labels, which images it copies, and the card
of the student.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from safetensors.numpy import load_file
from scipy.special import rel_entr, softmax
from scipy.stats import entropy
from sklearn.datasets import load_digits

import kd_app
from kd_app.config import RequestError
from kd_app.digest import hash_file
from tests.builders import accept_changes, results, stage
from tests.commands.call import TINY, expect_refusal, snapshot, succeed


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def answers(run: Path, role: str, split: str) -> dict[str, Any]:
    return load_file(stage(run, f"answers-{role}-{split}") / "answers.safetensors")


def test_what_the_teacher_knows_is_measured_on_validation(sample_run: Path) -> None:
    content, outputs = (
        results(sample_run / "run")["knowledge"],
        answers(sample_run / "run", "teacher", "validation"),
    )
    assert (content["split"], content["num_images"]) == ("validation", len(outputs["target"]))
    p = softmax(outputs["logits"].astype(np.float64), axis=1)
    assert content["entropy"][0]["mean_nats"] == pytest.approx(entropy(p, axis=1).mean(), rel=1e-5)
    assert content["matrix"][3] == pytest.approx(p[outputs["target"] == 3].mean(axis=0), abs=1e-5)
    (softened,) = content["softened"]
    softer = softmax(outputs["logits"].astype(np.float64) / 4, axis=1)
    assert (
        softened["temperature"]
        == results(sample_run / "run")["config"]["loss"]["soft_target"]["temperature"]
        == 4
    )
    assert softened["matrix"][3] == pytest.approx(
        softer[outputs["target"] == 3].mean(axis=0), abs=1e-5
    )
    assert {content["similar"][0][side] for side in ("first", "second")} <= set("0123456789")


def test_examples_are_test_images_as_the_source_has_them_with_what_both_said(
    sample_run: Path,
) -> None:
    run = kd_app.load_run(sample_run / "run")
    table, digits = run.examples, load_digits()
    assert 5 < len(table) <= 12
    for row in table.to_dict("records"):
        assert picture(row["png"]) == pytest.approx(
            digits.images[row["index"]] * 255 / 16, abs=0.51
        )
        assert row["target"] == digits.target[row["index"]] == row["classes"][0]
    predictions = run.predictions.set_index("index")
    for role in ("teacher", "labels_only", "student"):
        assert (
            table[f"{role}_top1"].to_numpy()
            == predictions[f"{role}_top1"][table["index"]].to_numpy()
        ).all()
        first = np.array([each[0] for each in table[f"{role}_probabilities"]])
        np.testing.assert_allclose(
            first, predictions[f"{role}_target_probability"][table["index"]], rtol=1e-3
        )
    outputs = [answers(sample_run / "run", role, "test") for role in ("teacher", "student")]
    p, q = (softmax(each["logits"].astype(np.float64), axis=1) for each in outputs)
    divergence = dict(zip(outputs[0]["index"].tolist(), rel_entr(p, q).sum(axis=1), strict=True))
    assert list(table["divergence"]) == pytest.approx(
        [divergence[index] for index in table["index"]], rel=0.05, abs=1e-6
    )


def test_examples_may_be_forbidden_also_afterwards(sample_run: Path, run: Path) -> None:
    words = (*TINY, "out=run", f"stages={sample_run / 'stages'}")
    assert "holds this run, finished" in succeed(*words)
    output = succeed(*words, "examples=0")
    assert "images/s" not in output  # nothing was trained
    assert not (run / "examples.parquet").exists()
    assert "examples.parquet" not in {each["name"] for each in results(run)["files"]}
    assert "holds this run, finished" in succeed(*words, "examples=0")
    with pytest.raises(RequestError, match="examples=0"):
        _ = kd_app.load_run(run).examples
    assert "examples=-1" in expect_refusal(*words, "examples=-1")


def test_a_run_that_an_older_version_made_is_measured_and_gone_on_with(
    sample_run: Path, run: Path
) -> None:
    for name in ("config.yaml", "results.json"):
        whole = yaml.safe_load((run / name).read_text(encoding="utf-8"))
        (whole if name == "config.yaml" else whole["config"]).pop("examples")
        (run / name).write_text(json.dumps(whole), encoding="utf-8")
    accept_changes(run)
    succeed(f"run={run}", "out=again", "limit=2", "examples=8", command="kd-evaluate")
    assert 0 < len(kd_app.load_run("again").examples) <= 8
    assert results(Path("again"))["knowledge"]["split"] == "test"
    assert "holds this run, finished" in succeed(
        *TINY, "out=run", f"stages={sample_run / 'stages'}"
    )


def test_color_images_from_files_are_shown_in_color(photos: Path, tmp_path: Path) -> None:
    words = (
        *TINY,
        "student.name=resnet8",
        "data=folder",
        f"data.root={photos}",
        "data.image_size=16",
        "data.num_workers=0",
        "controls=[]",
    )
    succeed(*words, "out=color", f"stages={tmp_path / 'stages'}")
    table = kd_app.load_run("color").examples
    for row in table.to_dict("records"):
        np.testing.assert_array_equal(
            picture(row["png"]), np.asarray(Image.open(photos / row["file"]))
        )
    assert results(Path("color"))["data"]["name"] == "folder photos"


def test_the_card_ships_with_the_student_and_is_one_of_the_runs_files(sample_run: Path) -> None:
    card = sample_run / "run" / "student" / "README.md"
    content = results(sample_run / "run")
    assert {"name": "student/README.md", "sha256": hash_file(card)} in content["files"]
    assert (
        content["environment"]["commit"] is None
        or len(content["environment"]["commit"].removesuffix("+changes")) == 40
    )
    data = ModelCard.load(card).data
    assert isinstance(data, ModelCardData)
    assert data.eval_results
    assert data.eval_results[0].metric_value == pytest.approx(
        content["test"]["student"]["top1"], abs=1e-6
    )


def test_the_code_on_the_card_labels_an_image_as_the_run_did(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        (run / "student" / "README.md")
        .read_text(encoding="utf-8")
        .partition("```python\n")[2]
        .partition("```")[0]
    )
    monkeypatch.chdir(run)
    for row in kd_app.load_run(run).examples.head(3).to_dict("records"):
        Path("image.png").write_bytes(row["png"])
        exec(code, {})
        label, share = capsys.readouterr().out.split()
        assert label == str(row["student_top1"])
        place = list(row["classes"]).index(row["student_top1"])
        assert float(share.rstrip("%")) / 100 == pytest.approx(
            row["student_probabilities"][place], abs=2e-3
        )
    before = snapshot(run / "student")
    assert set(before) == {"README.md", "config.json", "model.safetensors"}
