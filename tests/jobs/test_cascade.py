"""A cheap model first, a dear one for the images it is unsure of: what that is worth,
and the file that does it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from kd_app.config import InputSpec
from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.cascade import ModelCascade
from kd_app.deployment.confidence import compute_confidence
from kd_app.deployment.export import export
from kd_app.deployment.formats.onnx import Onnx
from tests.builders import DIGITS, results
from tests.commands.call import TINY, done, refused
from tests.deployment.test_artifact import ALONE

ROUTING = ("routing.images=8", "routing.steps=10")


@pytest.fixture(scope="module")
def judged(
    made: Path, both: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The made run's student and teacher as a cascade, and what the command said."""
    out = tmp_path_factory.mktemp("judged") / "cascade"
    words = (
        f"cascade=[{both[0] / 'model.onnx'},{made / 'run' / 'teacher'}]",
        f"run={made / 'run'}",
        f"stages={made / 'stages'}",
        f"out={out}",
    )
    return out, done(*words, *ROUTING, command="kd-evaluate")


def test_the_curve_goes_from_the_last_stage_alone_to_the_first_alone_for_every_measure(
    judged: tuple[Path, str],
) -> None:
    cascade = results(judged[0])["cascade"]
    first, last = cascade["stages"]
    assert {each["measure"] for each in cascade["curves"]} == {
        "maximum",
        "margin",
        "entropy",
        "energy",
    }
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
    assert "Does it pay to route hard images to a more expensive model?" in page
    assert "Accuracy by forwarded share" in page


def fitted(body: nn.Module, images: Tensor, target: Tensor) -> nn.Module:
    """A classifier on what `body` makes of the images, by least squares: no training."""
    with torch.no_grad():
        seen = body(images)
        seen = torch.cat([seen, torch.ones(len(seen), 1)], dim=1).double()
        wanted = 10 * nn.functional.one_hot(target, 10).double()
        found = torch.linalg.solve(
            seen.mT @ seen + 0.1 * torch.eye(seen.shape[1]), seen.mT @ wanted
        ).float()
        head = nn.Linear(seen.shape[1] - 1, 10)
        head.weight.copy_(found[:-1].mT)
        head.bias.copy_(found[-1])
    return nn.Sequential(body, head).eval()


@pytest.fixture
def weak_and_good(tmp_path: Path) -> tuple[Path, Path]:
    """Two files: one that saw a few digits and looks at pixels, and one that saw all
    and looks at many random features of them.
    """
    known = load_digits()
    images, target = (
        torch.tensor(known.images, dtype=torch.float32).unsqueeze(1) / 16,
        torch.tensor(known.target),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide = [
            layer
            for width in (1, 64, 64, 64)
            for layer in (nn.Conv2d(width, 64, 3, padding=1), nn.ReLU())
        ]
        good = fitted(nn.Sequential(*wide, nn.MaxPool2d(2), nn.Flatten()), images, target)
    nets = {"weak": fitted(nn.Flatten(), images[:80], target[:80]), "good": good}
    pixels, some = (
        InputSpec(1, 8, 8, (0.0,), (1.0,)),
        (images[:8] * 255).round().to(torch.uint8).numpy(),
    )
    asked: dict[str, Any] = {
        "input_spec": pixels,
        "classes": DIGITS,
        "license": "none",
        "calibration": [],
        "images": some,
    }
    for name in nets:
        (tmp_path / name).mkdir()
    first, second = (
        export(net, Onnx(opset=18, tolerance=1e-3), tmp_path / name, stem=name, **asked)
        for name, net in nets.items()
    )
    return first, second


@pytest.mark.slow
def test_what_was_found_to_pay_is_a_file_that_runs_without_torch_and_answers_as_its_stages_do(
    made: Path, weak_and_good: tuple[Path, Path], tmp_path: Path
) -> None:
    stages, out = f"stages={made / 'stages'}", tmp_path / "cascade"
    done(*TINY, "verdict.margin=0.1", stages, f"out={tmp_path / 'run'}")
    words = (
        f"cascade=[{','.join(map(str, weak_and_good))}]",
        f"run={tmp_path / 'run'}",
        stages,
        f"out={out}",
    )
    done(*words, *ROUTING, command="kd-evaluate")
    found = results(out)["cascade"]
    assert found["answer"] == "cascade"
    weak, good = (stage["test"]["value"] for stage in found["stages"])
    assert good - weak > 0.1 > good - found["test"]["accuracy"]
    (tmp_path / "photos").mkdir()
    images = (load_digits().images[-40:] * 255 / 16).round().astype(np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number:02d}.png")
    done(
        f"model={out / 'cascade.json'}",
        f"images={tmp_path / 'photos'}",
        f"out={tmp_path / 'labels.csv'}",
        command="kd-predict",
    )
    labels = pd.read_csv(tmp_path / "labels.csv")
    logits = [open_artifact(each).infer_logits(images[:, None]) for each in weak_and_good]
    sent = (
        compute_confidence(logits[0], found["measure"], found["stages"][0]["temperature"])
        < found["thresholds"][0]
    )
    assert 0 < sent.sum() < len(sent)
    assert labels["stage"].tolist() == sent.astype(int).tolist()
    assert (
        labels["label"].tolist()
        == np.where(sent, logits[1].argmax(axis=1), logits[0].argmax(axis=1)).tolist()
    )
    program = (
        ALONE.partition("opened = ")[0]
        + "from kd_app.deployment.cascade import ModelCascade\nimages = [Image.open(each) for each in"
        " sorted(Path(sys.argv[2]).iterdir())]\nlabel, probability, stage ="
        " ModelCascade.load(Path(sys.argv[1]), open_artifact).predict(images)\nnp.savez(sys.argv[3],"
        " label=label, probability=probability, stage=stage)\n"
    )
    alone = [str(out / "cascade.json"), str(tmp_path / "photos"), str(tmp_path / "alone.npz")]
    ended = subprocess.run(
        [sys.executable, "-c", program, *alone], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    for name, answers in np.load(tmp_path / "alone.npz").items():
        np.testing.assert_allclose(answers, labels[name], rtol=1e-5)
    told = json.loads((out / "cascade.json").read_text())
    told["stages"][0]["sha256"] = "0" * 64
    (out / "cascade.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"thresholds of .* were chosen for"):
        ModelCascade.load(out / "cascade.json", open_artifact)


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
def test_a_wrong_request_is_refused_in_words(
    made: Path, both: tuple[Path, str], words: tuple[str, ...], reason: str
) -> None:
    asked = [
        word.format(model=both[0] / "model.onnx", teacher=made / "run" / "teacher")
        for word in words
    ]
    assert reason in refused(
        *asked, f"stages={made / 'stages'}", "out=cascade", command="kd-evaluate"
    )
