"""Records with payloads at random places: nothing in them is imported, called, fetched
or resolved, and nothing is written.
"""

import copy
import json
import os
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution

from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.digest import SELF
from kd_app.jobs.sweep import merge_trial
from kd_app.reporting.results import write
from kd_app.run.open_run import build_saved_spec, read_run
from kd_app.search.study import Search, SearchSettings
from kd_app.specs.spec import build_spec
from kd_app.specs.task_choice import Purpose
from tests import composition_cache
from tests.builders import DIGITS, teacher_folder
from tests.reporting.run_folders import build_model, build_results
from tests.security.guard import STRANGER, watch

SECRET = "s3cr3t-of-the-environment"
URL = "http://127.0.0.1:9/x.pth"
SETTINGS = settings(
    max_examples=10,
    derandomize=True,
    phases=[Phase.generate],  # shrinking takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
COMMANDS: dict[Purpose, tuple[str, list[str]]] = {
    "measure": ("evaluate", []),
    "export": ("export", []),
    "train": ("compress", ["steps=[finetune]"]),
}
PAYLOADS: list[Any] = [
    {"_target_": f"{STRANGER}.Part"},
    {"_target_": "os.mkdir", "path": "mark"},
    {"_target_": "subprocess.Popen", "args": ["touch", "mark"]},
    {"_target_": "kd_app.tracking.MLflow", "experiment": "x", "uri": URL},
    {"_target_": "kd_app.stages.write_atomically", "path": "mark", "text": "x"},
    {"_target_": "kd_app.stages:os.system", "command": "touch mark"},
    {
        "_target_": "timm.create_model",
        "model_name": "resnet18",
        "pretrained": True,
        "cache_dir": "mark",
        "pretrained_cfg_overlay": {"url": URL, "hf_hub_id": None, "source": "url"},
    },
    {"pretrained_cfg_overlay": {"url": URL}, "pretrained": True, "cache_dir": "mark"},
    {"checkpoint_path": "mark"},
    {"pretrained": {"url": URL, "custom_load": True}},
    {"reader": "wds/x", "root": "pipe:touch mark"},
    "${oc.env:KD_TEST_SECRET}",
    "x${oc.create:{_target_: os.mkdir, path: mark}}",
    "hf-hub:evil/x",
    "hfds/evil/x",
    URL,
    "pipe:touch mark",
    "../../mark",
    "/etc/passwd",
    "???",
    [{"_target_": f"{STRANGER}:Part"}],
    None,
]


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("KD_TEST_SECRET", SECRET)
    # unpickling is watched
    monkeypatch.setattr(composition_cache, "copy_kept", lambda kept: copy.deepcopy(kept.config))
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "mark").exists()


@cache
def _command(purpose: Purpose) -> dict[str, Any]:
    name, overrides = COMMANDS[purpose]
    return compose_config(name, ["run=run", "out=again", *overrides])


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run, and its configuration."""
    parent = tmp_path_factory.mktemp("records")
    teacher = teacher_folder(parent / "teacher")
    teacher_folder(parent / "run" / "student")
    overrides = [f"teacher.checkpoint={teacher}", "student.name=resnet8", "callbacks=[ema]"]
    config = compose_config("distill", ["debug=fdr", *overrides])
    data = {"classes": list(DIGITS), "sizes": {"test": 4}, "fingerprint": "f00d"}
    models = {role: build_model("resnet8", 100, 1000) for role in ("teacher", "student")}
    write(parent / "run" / "results.json", build_results(data=data, models=models))
    return parent / "run", config


def list_places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = node.keys() if isinstance(node, dict) else range(len(node))
    for key in keys:
        yield (*place, key)
        if isinstance(node[key], dict | list):
            yield from list_places(node[key], (*place, key))


def replace_value(
    config: dict[str, Any], place: tuple[Any, ...], payload: Any, *, extra: bool
) -> Any:
    changed = copy.deepcopy(config)
    node = changed
    for key in place[:-1]:
        node = node[key]
    if extra and isinstance(node, dict):
        node["more"] = payload
    else:
        node[place[-1]] = payload
    return changed


def open_record(run: Path, config: Any, purpose: Purpose) -> str:
    """What a command makes of the record: its specification, or its refusal."""
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with watch() as events:
        try:
            spec = build_saved_spec(read_run(run, _command(purpose), purpose))
            if purpose == "train":
                spec.recipe.build_loss()
            text = repr(spec)
        except RequestError as error:
            text = str(error)
    assert events == []
    assert SECRET not in text
    return text


def check_record_with_payload(
    purpose: Purpose, record: tuple[Path, dict[str, Any]], data: st.DataObject
) -> None:
    run, config = record
    place = data.draw(st.sampled_from(list(list_places(config))))
    payload = data.draw(st.sampled_from(PAYLOADS))
    changed = replace_value(config, place, payload, extra=data.draw(st.booleans()))
    if not isinstance(changed.get("controls"), dict) or not isinstance(changed["trainer"], dict):
        return  # refused by the reader of the file
    open_record(run, changed, purpose)


for_each_purpose = pytest.mark.parametrize("purpose", list(COMMANDS))
test_a_record_with_a_payload_does_nothing = for_each_purpose(
    SETTINGS(given(data=st.data())(check_record_with_payload))
)
test_many_records_with_payloads_do_nothing = pytest.mark.slow(
    for_each_purpose(
        settings(SETTINGS, max_examples=500)(given(data=st.data())(check_record_with_payload))
    )
)


@SETTINGS
@given(data=st.data())
def test_a_trial_with_a_payload_does_nothing(
    record: tuple[Path, dict[str, Any]], data: st.DataObject
) -> None:
    _, config = record
    place = data.draw(st.sampled_from(list(list_places(config))))
    changed = replace_value(
        config, place, data.draw(st.sampled_from(PAYLOADS)), extra=data.draw(st.booleans())
    )
    with watch() as events:
        try:
            merged = merge_trial(config, changed)
            build_spec(merged)
        except RequestError:
            merged = config
    assert events == []
    for key in ("out", "stages", "allow", "logger", "remake", "overwrite", "tags", "license"):
        assert merged[key] == config[key]
    assert list(merged["callbacks"]) == ["ema"]
    assert merged["callbacks"]["ema"]["_target_"] == config["callbacks"]["ema"]["_target_"]


def test_a_proposal_of_a_search_record_is_in_the_search_space(tmp_path: Path) -> None:
    space = {
        "optimizer": CategoricalDistribution(["adamw", "sgd"]),
        "loss.x.weight": FloatDistribution(0.1, 2.0),
    }
    objectives: dict[str, Literal["maximize", "minimize"]] = {"validation.student.top1": "maximize"}
    choices = SearchSettings(trials=2, sampler="random", seed=0, batch=1, objectives=objectives)
    next(Search(tmp_path, choices, space).iterate_batches())
    path = tmp_path / "search.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content[SELF]
    for key in ("optimizer", "loss.x.weight", "allow", "hydra.run.dir"):
        for value in [*PAYLOADS, "1,2", "adamw ", 3.0, True, -1, float("nan"), 10**400]:
            proposal = {**content["proposed"][0], key: value}
            path.write_text(json.dumps({**content, "proposed": [proposal]}), encoding="utf-8")
            with pytest.raises(RequestError, match=r"not in the search space|is too large"):
                Search(tmp_path, choices, space)
    proposal = {"optimizer": "sgd", "loss.x.weight": 0.5}
    path.write_text(json.dumps({**content, "proposed": [proposal]}), encoding="utf-8")
    assert Search(tmp_path, choices, space).proposed == [proposal]


def test_the_guard_sees_what_payloads_would_do(tmp_path: Path) -> None:
    with watch() as events:
        (tmp_path / "file").write_text("x", encoding="utf-8")
        (tmp_path / "folder").mkdir()
        with pytest.raises(ModuleNotFoundError):
            __import__(STRANGER)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", 9), timeout=1)
        os.system("true")
    kinds = {event.split()[0] for event in events}
    assert kinds >= {"open", "os.mkdir", "import", "socket.connect", "os.system"}
