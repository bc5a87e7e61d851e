"""The latency budget: a student that is too slow is not trained."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from kd_app.config import InputSpec, RequestError
from kd_app.config.compose import compose_config
from kd_app.config.make import make
from kd_app.models.normalized import NormalizedEmbedding
from kd_app.reporting.console import Console
from kd_app.run import latency_check
from kd_app.run.latency_check import check_latency, measure_latency
from kd_app.run.workspace import Workspace
from kd_app.specs.latency_budget import LatencyBudget
from kd_app.specs.spec import build_spec
from kd_app.stages import Stages
from kd_app.tasks.embedding import Embedding
from tests.builders import results
from tests.commands.call import TINY, succeed

_LATENCY = {"resnet8": 3.0, "resnet14": 7.0}


def read_known_latency(workspace: Workspace, budget: LatencyBudget) -> dict[str, float]:
    """A known latency for each student."""
    return {"p50": 1.0, "p95": _LATENCY[workspace.spec.student.name], "p99": 9.0, "calls": 100}


@pytest.mark.slow
def test_a_search_ends_trials_over_the_budget_before_they_are_trained(
    tmp_path: Path,
) -> None:
    overrides = [
        *TINY,
        "-m",
        "hparams_search=student_under_budget",
        "student.name=choice(resnet14,resnet8)",
        "controls=[]",
        "budget.latency_ms=5",
    ]
    overrides += [f"out={tmp_path / 'search'}", f"stages={tmp_path / 'stages'}"]
    with patch.object(latency_check, "measure_latency", read_known_latency):
        output = succeed(*overrides)
    over, within = (results(tmp_path / "search" / str(number)) for number in (0, 1))
    assert (over["status"], within["status"]) == ("pruned", "finished")
    assert over["reason"].startswith(
        "Not trained, since it is over budget.latency_ms=5: the student resnet14, exported as onnx,"
        " has a 95th-percentile latency of 7 ms"
    )
    assert "or use budget=null" in output
    assert within["models"]["student"]["decided"]["latency_ms"]["p95"] == 3.0
    assert [stage["name"] for stage in over["stages"]] == []
    assert within["test"] is not None
    with patch.object(
        latency_check, "measure_latency", side_effect=AssertionError("measured again")
    ):
        succeed(*overrides)


def compose_budget(*overrides: str) -> Any:
    fixed = ("student.name=resnet14", "controls=[]", "budget=latency")
    return compose_config("distill", [*TINY, *fixed, *overrides])


def test_alone_a_student_over_the_budget_is_refused(tmp_path: Path) -> None:
    """A run checks its budget before it trains; a slow test shows that of a search."""
    spec = build_spec(compose_budget("budget.latency_ms=6.5"))
    workspace = Workspace(spec, Stages(tmp_path), Console(silent=True), tracker=None)
    assert spec.budget is not None
    with (
        patch.object(latency_check, "measure_latency", read_known_latency),
        pytest.raises(RequestError, match=r"over budget\.latency_ms=6\.5"),
    ):
        check_latency(workspace, spec.budget, is_trial=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget.latency_ms=0"], "latency_ms=0 does not fit"),
        (["budget.benchmark.rounds=2"], "rounds=2"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build_spec(compose_budget(*overrides))


def test_a_student_with_an_embedding_is_exported_as_one(tmp_path: Path) -> None:
    loaded = SimpleNamespace(
        model=torch.nn.Identity(), pixels=InputSpec(3, 4, 4, (0.5,) * 3, (0.5,) * 3)
    )
    workspace: Any = SimpleNamespace(
        task=Embedding(width=3),
        classes=(),
        decoding=None,
        spec=SimpleNamespace(student=None),
        load_model=lambda spec, seed: SimpleNamespace(loaded=loaded),
    )
    budget: LatencyBudget = make(compose_budget()["budget"], LatencyBudget)
    with (
        patch.object(latency_check, "export", side_effect=InterruptedError) as export,
        pytest.raises(InterruptedError),
    ):
        measure_latency(workspace, budget)
    assert isinstance(export.call_args.args[0], NormalizedEmbedding)
    assert export.call_args.kwargs["output"] == "embedding"


def test_the_latency_is_that_of_the_student_as_a_file(tmp_path: Path) -> None:
    config = compose_config(
        "distill",
        [
            *TINY,
            "student.name=resnet8",
            "budget=latency",
            "budget.benchmark.seconds=0.01",
            "budget.benchmark.rounds=6",
        ],
    )
    workspace = Workspace(build_spec(config), Stages(tmp_path), Console(silent=True), tracker=None)
    workspace.prepare_data()
    budget: LatencyBudget = make(config["budget"], LatencyBudget)
    latency = measure_latency(workspace, budget)
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert latency["calls"] >= 6
