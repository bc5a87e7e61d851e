"""A cheap model first, a dear one for the images it is unsure of: what that is worth, and the file that does it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kd_app.deployment.artefact import open_artefact
from kd_app.deployment.cascade import Cascade
from tests.commands.call import done, refused
from tests.deployment.test_artefact import ALONE
from tests.shipping.conftest import exported
from tests.training.made import results

ROUTING = ("routing.images=8", "routing.steps=10")


@pytest.fixture(scope="module")
def judged(made: Path, both: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The made run's student and teacher as a cascade, and what the command said."""
    out = tmp_path_factory.mktemp("judged") / "cascade"
    words = (f"cascade=[{both[0] / 'model.onnx'},{made / 'run' / 'teacher'}]", f"run={made / 'run'}", f"stages={made / 'stages'}", f"out={out}")
    return out, done(*words, *ROUTING, command="kd-evaluate")


def test_the_curve_goes_from_the_last_stage_alone_to_the_first_alone_for_every_measure(judged: tuple[Path, str]) -> None:
    cascade = results(judged[0])["cascade"]
    first, last = cascade["stages"]
    assert {each["measure"] for each in cascade["curves"]} == {"maximum", "margin", "entropy", "energy"}
    for curve in cascade["curves"]:
        sent = [rung["shares"][1] for rung in curve["rungs"]]
        assert (sent[0], sent[-1]) == (1, 0)
        assert sent == sorted(sent, reverse=True)
        assert curve["rungs"][0]["accuracy"] == pytest.approx(last["validation"]["value"])
        assert curve["rungs"][-1]["accuracy"] == pytest.approx(first["validation"]["value"])
        costs = [rung["cost_ms"] for rung in curve["rungs"]]
        assert costs == sorted(costs, reverse=True)
        assert costs[-1] == pytest.approx(first["cost_ms"])
    for stage in (first, last):
        assert 0 < stage["latency"]["p50"] <= stage["latency"]["p99"]


def test_what_is_said_is_what_was_found_and_the_page_shows_it(judged: tuple[Path, str]) -> None:
    answer = results(judged[0])["cascade"]["answer"]
    assert ("Do not route" in judged[1]) == (answer != "cascade")
    assert (judged[0] / "cascade.json").exists() == (answer == "cascade")
    page = (judged[0] / "report.html").read_text(encoding="utf-8")
    assert "Does it pay to keep a dearer model for the hard images?" in page
    assert "Accuracy by the share that is sent on" in page


@pytest.mark.slow
def test_a_weak_student_and_a_good_teacher_make_a_cascade_that_runs_without_torch(tmp_path: Path) -> None:
    stages = f"stages={tmp_path / 'stages'}"
    more = ("teacher.name=resnet8", "teacher.max_epochs=20", "trainer.max_epochs=3", "verdict.margin=0.1", "controls=[]", "logger=[csv]")
    done(*more, stages, f"out={tmp_path / 'run'}")
    exported(f"run={tmp_path / 'run'}", stages, "role=both", "formats=[onnx]")
    files = [tmp_path / "run" / "export" / name for name in ("model.onnx", "teacher.onnx")]
    out = tmp_path / "cascade"
    done(f"cascade=[{files[0]},{tmp_path / 'run' / 'teacher'}]", stages, f"out={out}", *ROUTING, command="kd-evaluate")
    found = results(out)["cascade"]
    assert found["answer"] in ("cascade", "student")
    cascade = Cascade([open_artefact(each) for each in files], (0.9,), "maximum", (1.0, 1.0))
    cascade.save(tmp_path / "cascade.json", files)
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    program = ALONE.partition("opened = ")[0] + (
        "from kd_app.deployment.cascade import Cascade\n"
        "label, probability, stage = Cascade.load(Path(sys.argv[1]), open_artefact).predict(np.load(sys.argv[2]))\n"
        "np.savez(sys.argv[3], label=label, probability=probability, stage=stage)\n"
    )
    words = [str(tmp_path / "cascade.json"), str(tmp_path / "images.npy"), str(tmp_path / "out.npz")]
    ended = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for name, expected in zip(("label", "probability", "stage"), cascade.predict(images), strict=True):
        np.testing.assert_allclose(np.load(tmp_path / "out.npz")[name], expected, rtol=1e-5)
    (tmp_path / "photos").mkdir()
    Image.fromarray(images[0, 0]).save(tmp_path / "photos" / "0.png")
    labels = tmp_path / "labels.csv"
    assert "Answered by stage 0" in done(f"model={tmp_path / 'cascade.json'}", f"images={tmp_path / 'photos'}", f"out={labels}", command="kd-predict")
    assert pd.read_csv(labels)["stage"][0] in (0, 1)
    told = json.loads((tmp_path / "cascade.json").read_text())
    told["stages"][0]["sha256"] = "0" * 64
    (tmp_path / "cascade.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"thresholds of .* were chosen for"):
        Cascade.load(tmp_path / "cascade.json", open_artefact)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("cascade=[{model}]",), "names one stage"),
        (("cascade=[{model},nowhere]",), "There is no 'nowhere'"),
        (("cascade=[{model},{teacher}]", "split=test"), "does nothing for a cascade"),
        (("cascade=[{model},{teacher}]", "routing.measures=[luck]"), "luck"),
        ((), "needs to know what to measure"),
    ],
)
def test_a_wrong_request_is_refused_in_words(made: Path, both: tuple[Path, str], words: tuple[str, ...], reason: str) -> None:
    asked = [word.format(model=both[0] / "model.onnx", teacher=made / "run" / "teacher") for word in words]
    assert reason in refused(*asked, f"stages={made / 'stages'}", "out=cascade", command="kd-evaluate")
