"""Every setting with a value of the wrong kind: taken or refused, never a traceback."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest

from kd_app.commands.report import ReportConfig
from kd_app.compression.step import Step
from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.config.make import make
from kd_app.data.corruptions import RobustnessSettings
from kd_app.deployment.cascade_choice import Routing
from kd_app.jobs.check import CheckSettings
from kd_app.jobs.compress import Compression, check_order
from kd_app.jobs.export import Export
from kd_app.jobs.predict import Prediction
from kd_app.metrics.verdict import VerdictRule
from kd_app.specs.schema import EvaluationSettings
from kd_app.specs.spec import build_spec
from kd_app.tracking import Backend

OVERRIDES = (
    *("teacher.name=test_resnet", "student.name=test_resnet", "budget=latency", "callbacks=[ema]"),
    *("data=csv", "data.root=x", "controls=[labels_only,smoothed_labels]", "logger=[csv,wandb]"),
)
Key = tuple[str, ...]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return compose_config("check", OVERRIDES)


def list_keys(node: Any, prefix: Key = ()) -> Iterator[Key]:
    for name, value in node.items() if isinstance(node, dict) else ():
        if (*prefix, name) == ("data", "presets"):
            continue
        yield (*prefix, name)
        yield from list_keys(value, (*prefix, name))


def find(config: dict[str, Any], key: Key) -> Any:
    node: Any = config
    for name in key:
        node = node[name]
    return node


def replace(config: dict[str, Any], key: Key, value: Any) -> dict[str, Any]:
    changed: dict[str, Any] = deepcopy(config)
    find(changed, key[:-1])[key[-1]] = value
    return changed


def validate(config: dict[str, Any]) -> None:
    """All that kd-check and kd-distill validate before they read or write anything."""
    CheckSettings(check=config["check"])
    build_spec({key: value for key, value in config.items() if key != "check"})
    VerdictRule(**config["verdict"])
    for node in config["logger"].values():
        make(node, Backend)


def try_value(
    config: dict[str, Any],
    key: Key,
    value: Any,
    check: Callable[[dict[str, Any]], object] = validate,
) -> str:
    """What is wrong with a refusal; empty if the value is refused well, or taken."""
    try:
        check(replace(config, key, value))
    except RequestError as error:
        return "several lines" if "\n" in str(error) else ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_a_number_in_place_of_a_group_is_taken_or_refused(config: dict[str, Any]) -> None:
    validate(config)
    groups = [key for key in list_keys(config) if isinstance(find(config, key), dict)]
    assert {".".join(key): why for key in groups if (why := try_value(config, key, -1))} == {}


@pytest.mark.slow
@pytest.mark.parametrize("value", [-1, None, True, "x", "", [1], [None], {"x": 1}, {1: 2}, 1e300])
def test_a_value_of_the_wrong_kind_is_taken_or_refused(config: dict[str, Any], value: Any) -> None:
    keys = list(list_keys(config))
    assert {".".join(key): why for key in keys if (why := try_value(config, key, value))} == {}


def check_evaluate(config: dict[str, Any]) -> None:
    EvaluationSettings(**config)
    Routing(**config["routing"])
    RobustnessSettings(**config["robustness"])


def check_compress(config: dict[str, Any]) -> None:
    settings = Compression(**config)
    check_order([(name, make(settings.blocks[name], Step)) for name in settings.steps])


def check_export(config: dict[str, Any]) -> None:
    Export(**config)


@pytest.mark.parametrize(
    ("command", "overrides", "check"),
    [
        ("evaluate", ["run=a", "out=b", "robustness=standard", "data=csv"], check_evaluate),
        ("compress", ["run=a", "steps=[prune,quantize]", "prune.macs=0.5"], check_compress),
        ("export", ["run=a", "formats=[onnx_int8]"], check_export),
        ("predict", ["model=a", "images=b", "out=c.csv"], lambda config: Prediction(**config)),
        ("report", ["runs=[a]", "logger=[wandb]"], lambda config: ReportConfig(**config)),
    ],
)
def test_the_other_commands_take_or_refuse_every_value(
    command: str, overrides: list[str], check: Callable[[dict[str, Any]], object]
) -> None:
    config = compose_config(command, overrides)
    check(config)
    wrong: dict[str, str] = {}
    for key in list_keys(config):
        for value in (-1, None, [None], {"x": 1}):
            if reason := try_value(config, key, value, check):
                wrong[f"{'.'.join(key)}={value}"] = reason
    assert wrong == {}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data._target_", None, "data._target_=None is not a name"),
        ("data", {"x": 1}, "has no _target_. Expected a choice of data="),
        ("data.source._partial_", "x", "_partial_ flag must be a bool"),
        ("data.batch_size", True, "batch_size=True does not fit: expected a number"),
        ("teacher.optimizer", None, "No Optimizer can be built from None"),
        ("teacher.checkpoint", -1, "teacher: checkpoint=-1 does not fit"),
        ("teacher.chain", -1, "teacher: chain=-1 does not fit: expected a valid list"),
        ("teacher.loss.cross_entropy", None, "teacher.loss.cross_entropy=None is not a loss term"),
        ("controls.labels_only.loss.cross_entropy", None, "cross_entropy=None is not a loss term"),
        ("controls.smoothed_labels.loss", [1], r"loss=\[1\] does not fit"),
        ("check", 5, "kd-check: check=5 does not fit"),
        ("optimizer.lr", 1e30, r"lr=1e\+30 does not fit: expected less than or equal to 1000"),
        ("optimizer.weight_decay", 1e30, r"weight_decay=1e\+30 does not fit"),
        ("trainer.max_epochs", 10**12, "max_epochs=1000000000000 does not fit"),
        ("teacher.max_epochs", 10**12, "max_epochs=1000000000000 does not fit"),
    ],
)
def test_what_is_wrong_is_named(config: dict[str, Any], key: str, value: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        validate(replace(config, tuple(key.split(".")), value))


@pytest.mark.parametrize(
    "override",
    ["loss=[1]", "callbacks=[null]", "budget=[1.5]", "controls=[[a]]", "logger=[{a: b}]"],
)
def test_a_choice_that_is_no_name_is_refused(override: str) -> None:
    with pytest.raises(RequestError, match=r"chooses .* Expected a list of names. Choices of"):
        compose_config("distill", [override])


def test_a_list_that_is_not_closed_is_explained() -> None:
    with pytest.raises(RequestError, match=r"'loss=\[a' can't be read. Expected <setting>=<value>"):
        compose_config("distill", ["loss=[a"])
