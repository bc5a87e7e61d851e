"""``kd-evaluate cascade=[...]``: whether a cascade pays, and the cascade's file."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from kd_app.config import Decoding, InputSpec
from kd_app.deployment.artifact import open_artifact
from kd_app.deployment.cascade import ModelCascade
from kd_app.deployment.confidence import compute_confidence
from kd_app.deployment.export import export
from kd_app.deployment.formats.onnx import Onnx
from kd_app.digest import seal
from tests.builders import DIGITS, results
from tests.commands.call import TINY, expect_refusal, succeed
from tests.deployment.test_artifact import ALONE

ROUTING = ("routing.images=8", "routing.steps=10")


@pytest.fixture(scope="module")
def cascade_run(
    sample_run: Path, both: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Student and teacher of the finished run as a cascade, and the output."""
    out = tmp_path_factory.mktemp("judged") / "cascade"
    overrides = (
        f"cascade=[{both[0] / 'model.onnx'},{sample_run / 'run' / 'teacher'}]",
        f"run={sample_run / 'run'}",
        f"stages={sample_run / 'stages'}",
        f"out={out}",
    )
    return out, succeed(*overrides, *ROUTING, command="kd-evaluate")


def test_every_curve_goes_from_the_last_stage_alone_to_the_first_alone(
    cascade_run: tuple[Path, str],
) -> None:
    cascade = results(cascade_run[0])["cascade"]
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


def test_the_output_and_the_page_agree_with_the_results(cascade_run: tuple[Path, str]) -> None:
    answer = results(cascade_run[0])["cascade"]["answer"]
    assert ("Do not route" in cascade_run[1]) == (answer != "cascade")
    assert (cascade_run[0] / "cascade.json").exists() == (answer == "cascade")
    page = (cascade_run[0] / "report.html").read_text(encoding="utf-8")
    assert "Does it pay to route hard images to a more expensive model?" in page
    assert "Accuracy by forwarded share" in page


def fit_head(body: nn.Module, images: Tensor, target: Tensor) -> nn.Module:
    """A classifier on the outputs of `body`, fitted by least squares."""
    with torch.no_grad():
        rows = body(images)
        rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1).double()
        desired = 10 * nn.functional.one_hot(target, 10).double()
        ridge = 0.1 * torch.eye(rows.shape[1])
        weight = torch.linalg.solve(rows.mT @ rows + ridge, rows.mT @ desired).float()
        head = nn.Linear(rows.shape[1] - 1, 10)
        head.weight.copy_(weight[:-1].mT)
        head.bias.copy_(weight[-1])
    return nn.Sequential(body, head).eval()


@pytest.fixture
def weak_and_good(tmp_path: Path) -> tuple[Path, Path]:
    """Two files: a classifier of pixels fitted to a few digits, and a classifier of
    many random features fitted to all digits.
    """
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    target = torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide = [
            layer
            for width, channels in pairwise((1, 64, 256, 256, 64))
            for layer in (nn.Conv2d(width, channels, 3, padding=1), nn.ReLU())
        ]
        good = fit_head(nn.Sequential(*wide, nn.MaxPool2d(2), nn.Flatten()), images, target)
    nets = {"weak": fit_head(nn.Flatten(), images[:40], target[:40]), "good": good}
    input_spec = InputSpec(1, 8, 8, (0.0,), (1.0,))
    some = (images[:8] * 255).round().to(torch.uint8).numpy()
    settings: dict[str, Any] = {
        "input_spec": input_spec,
        "decoding": Decoding(1, 320),
        "classes": DIGITS,
        "license": "none",
        "calibration": [],
        "images": some,
    }
    for name in nets:
        (tmp_path / name).mkdir()
    first, second = (
        export(net, Onnx(opset=18, tolerance=1e-3), tmp_path / name, stem=name, **settings)
        for name, net in nets.items()
    )
    return first, second


@pytest.mark.slow
def test_a_cascade_that_pays_is_a_file_that_runs_without_torch_and_predicts_like_its_stages(
    sample_run: Path, weak_and_good: tuple[Path, Path], tmp_path: Path
) -> None:
    stages, out = f"stages={sample_run / 'stages'}", tmp_path / "cascade"
    succeed(*TINY, "verdict.margin=0.15", stages, f"out={tmp_path / 'run'}")
    overrides = (
        f"cascade=[{','.join(map(str, weak_and_good))}]",
        f"run={tmp_path / 'run'}",
        stages,
        f"out={out}",
    )
    succeed(*overrides, *ROUTING, command="kd-evaluate")
    cascade = results(out)["cascade"]
    assert cascade["answer"] == "cascade"
    weak, good = (stage["test"]["value"] for stage in cascade["stages"])
    assert weak < good - 0.15
    assert weak < cascade["test"]["accuracy"] < good
    (tmp_path / "photos").mkdir()
    images = (load_digits().images[-40:] * 255 / 16).round().astype(np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number:02d}.png")
    succeed(
        f"model={out / 'cascade.json'}",
        f"images={tmp_path / 'photos'}",
        f"out={tmp_path / 'labels.csv'}",
        command="kd-predict",
    )
    labels = pd.read_csv(tmp_path / "labels.csv")
    logits = [open_artifact(each).infer_logits(images[:, None]) for each in weak_and_good]
    sent = (
        compute_confidence(logits[0], cascade["measure"], cascade["stages"][0]["temperature"])
        < cascade["thresholds"][0]
    )
    assert 0 < sent.sum() < len(sent)
    assert labels["stage"].tolist() == sent.astype(int).tolist()
    assert (
        labels["label"].tolist()
        == np.where(sent, logits[1].argmax(axis=1), logits[0].argmax(axis=1)).tolist()
    )
    program = (
        ALONE.partition("opened = ")[0] + "from kd_app.deployment.cascade import ModelCascade\n"
        "images = [Image.open(each) for each in sorted(Path(sys.argv[2]).iterdir())]\n"
        "cascade = ModelCascade.load(Path(sys.argv[1]), open_artifact)\n"
        "label, probability, stage = cascade.predict(images)\n"
        "np.savez(sys.argv[3], label=label, probability=probability, stage=stage)\n"
    )
    alone = [str(out / "cascade.json"), str(tmp_path / "photos"), str(tmp_path / "alone.npz")]
    result = subprocess.run(
        [sys.executable, "-c", program, *alone], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for name, values in np.load(tmp_path / "alone.npz").items():
        np.testing.assert_allclose(values, labels[name], rtol=1e-5)
    record = json.loads((out / "cascade.json").read_text())
    record["stages"][0]["sha256"] = "0" * 64
    (out / "cascade.json").write_text(json.dumps(seal(record)))
    with pytest.raises(ValueError, match=r"thresholds of .* were chosen for"):
        ModelCascade.load(out / "cascade.json", open_artifact)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("cascade=[{model}]",), "names one stage"),
        (("cascade=[{model},nowhere]",), "There is no 'nowhere'"),
        (("cascade=[{model},{teacher}]", "split=test"), "does nothing for a cascade"),
        (("cascade=[{model},{teacher}]", "routing.measures=[luck]"), "luck"),
        ((), "needs to know what to measure"),
    ],
)
def test_a_wrong_request_is_refused_with_the_reason(
    sample_run: Path, both: tuple[Path, str], overrides: tuple[str, ...], reason: str
) -> None:
    formatted = [
        override.format(model=both[0] / "model.onnx", teacher=sample_run / "run" / "teacher")
        for override in overrides
    ]
    assert reason in expect_refusal(
        *formatted, f"stages={sample_run / 'stages'}", "out=cascade", command="kd-evaluate"
    )
