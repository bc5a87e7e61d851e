"""A configuration may name only parts of kd_app and allowed packages; nothing else is
imported or called.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.config.targets import check_targets

OURS = {"_target_": "kd_app.losses.soft_target.SoftTarget", "temperature": 2.0}


def config(target: str) -> dict[str, Any]:
    return {"loss": {"soft_target": OURS, "other": {"_target_": target}}}


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.exec",
        "torch.load",
        "timm.models.load_checkpoint",
        "hydra.utils.instantiate",
        "kd_application.Evil",
        "kd_app.stages.os.system",
        "kd_app.stages:os.system",
        "kd_app.config.make.instantiate",
        "kd_app.config.make.make",
        "kd_app.commands.distill.main",
        "kd_app.stages.Path",
        "kd_app.stages.Stages",
        "kd_app.training.distributed.launch.ChildRank",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.callbacks.OnExceptionCheckpoint",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.callbacks.model_checkpoint.os.system",
    ],
)
def test_a_target_outside_kd_app_is_refused_with_its_key_and_the_fix(target: str) -> None:
    with pytest.raises(
        RequestError,
        match=r"loss\.other\._target_=.* names code that is not part of kd_app.*'allow=\[",
    ):
        check_targets(config(target), [])


@pytest.mark.parametrize("place", ["data.view", "teacher.kwargs.0", "callbacks.x.y.z"])
def test_nested_targets_are_checked(place: str) -> None:
    node: Any = {"_target_": "os.system"}
    for key in reversed(place.split(".")):
        node = [node] if key == "0" else {key: node}
    with pytest.raises(RequestError, match=place.replace(".", r"\.")):
        check_targets(node, [])


@pytest.mark.parametrize(
    ("target", "allow"),
    [
        ("timm.create_model", []),
        ("kd_app.losses.soft_target.SoftTarget", []),
        ("kd_app.tracking.Csv", []),
        ("lightning.pytorch.callbacks.LearningRateMonitor", []),
        ("kd_app.losses.nowhere.Lost", []),
        ("mine.Net", ["mine"]),
        ("mine:Net", ["mine"]),
        ("mine.deep.Net", ["other", "mine.deep"]),
    ],
)
def test_parts_of_kd_app_and_allowed_packages_pass(target: str, allow: list[str]) -> None:
    check_targets(config(target), allow)


def test_a_refused_target_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "stranger.py").write_text(f"open({str(mark)!r}, 'w')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RequestError):
        check_targets(config("stranger.Part"), [])
    assert not mark.exists()
    assert "stranger" not in sys.modules
