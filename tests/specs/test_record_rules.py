"""What a run's configuration may name when it is read again."""

import sys
from pathlib import Path
from typing import Any

import pytest

from kd_app.config import RequestError
from kd_app.specs.record_rules import check_record

SOFT = "kd_app.losses.soft_target.SoftTarget"


def nest(place: str, value: Any) -> dict[str, Any]:
    for key in reversed(place.split(".")):
        value = {key: value}
    return dict(value)


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("loss.x", "os.system"),
        ("loss.x", "timm.create_model"),
        ("loss.x", "kd_application.Evil"),
        ("loss.x", "kd_app.stages.os.system"),
        ("loss.x", "kd_app.stages:os.system"),
        ("loss.x", "kd_app.config.make.make"),
        ("loss.x", "kd_app.stages.Path"),
        ("loss.x", "kd_app.tracking.Csv"),  # a part, but not at its place
        ("loss.x.deep", SOFT),
        ("data", "kd_app.data.folder.Folder"),
        ("data.source", "kd_app.tracking.MLflow"),
        ("student", SOFT),
        ("student.kwargs.x", "timm.create_model"),
        ("teacher.members.a", "torch.hub.load"),
        ("teacher.chain.0", "torch.hub.load"),
        ("controls.x.student", "os.mkdir"),
        ("callbacks.x", "kd_app.callbacks.averaging.EMA"),
        ("logger.x", "kd_app.tracking.Csv"),
        ("verdict", SOFT),
        ("trainer", "lightning.pytorch.Trainer"),
    ],
)
def test_other_code_than_the_part_of_kd_app_at_its_place_is_refused(
    place: str, target: str
) -> None:
    with pytest.raises(RequestError, match=r"_target_='.*' names code that is not part of kd_app"):
        check_record(nest(place, {"_target_": target}), [])


@pytest.mark.parametrize(
    ("place", "target", "allow"),
    [
        ("loss.x", SOFT, []),
        ("teacher.loss.x", SOFT, []),
        ("controls.c.loss.x.schedule", "kd_app.schedules.Constant", []),
        ("data", "kd_app.data.module.ImageData", []),
        ("data.source", "kd_app.data.folder.Folder", []),
        ("loss.x", "kd_app.losses.nowhere.Lost", []),  # `make` refuses it
        ("teacher", "timm.create_model", []),
        ("teacher", None, []),
        ("controls.c.student.candidates.a", "timm.create_model", []),
        ("student", "mine.Net", ["mine"]),
        ("student", "mine:Net", ["mine"]),
        ("loss.x.inner", "mine.deep.Net", ["other", "mine.deep"]),
    ],
)
def test_parts_of_kd_app_and_allowed_packages_pass(
    place: str, target: str | None, allow: list[str]
) -> None:
    check_record(nest(place, {"_target_": target}), allow)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pretrained_cfg", {"url": "x"}),
        ("pretrained_cfg_overlay", {"x": 1}),
        ("cache_dir", "x"),
        ("checkpoint_path", "x"),
        ("file", "x"),
        ("state_dict", {}),
        ("custom_load", True),
    ],
)
@pytest.mark.parametrize("place", ["student.kwargs", "teacher.members.a.kwargs", "data.source.x"])
def test_arguments_that_fetch_or_write_are_refused_wherever_they_stand(
    place: str, key: str, value: Any
) -> None:
    with pytest.raises(RequestError, match=f"{key}=.* decides what is fetched, read or written"):
        check_record(nest(place, {key: value}), [])


def test_the_arguments_of_an_allowed_factory_are_its_own() -> None:
    node = {"_target_": "mine.Net", "kwargs": {"cache_dir": "x", "name": "hf-hub:a/b"}}
    check_record({"student": node}, ["mine"])
    with pytest.raises(RequestError, match="names code"):
        check_record({"student": node}, [])
    deep = {"_target_": "mine.Net", "kwargs": {"_target_": "timm.create_model", "cache_dir": "x"}}
    with pytest.raises(RequestError, match="names code"):
        check_record({"student": deep}, ["mine"])


@pytest.mark.parametrize(
    ("place", "location"),
    [
        ("teacher.name", "hf-hub:somebody/net"),
        ("teacher.chain.0", "HF_HUB:somebody/net"),
        ("data.root", "pipe:curl x | sh"),
        ("data.root", "https://example.org/x"),
        ("teacher.checkpoint", "s3://bucket/x.pth"),
        ("data.source.reader", "hfds/somebody/images"),
        ("data.source.reader", "wds/x"),
    ],
)
def test_a_location_in_the_network_has_to_be_repeated(place: str, location: str) -> None:
    with pytest.raises(RequestError, match="location in the network") as refusal:
        check_record(nest(place, location), ["mine"])
    assert f"'allow=[\"{location}\"]'" in str(refusal.value)
    check_record(nest(place, location), [location])


@pytest.mark.parametrize("value", ["resnet50.a1_in1k", "local-dir:/a", "/a/b:c", "folder", "a b"])
def test_names_and_paths_of_this_machine_pass(value: str) -> None:
    data = {"source": {"reader": "folder"}, "license": "https://example.org/license"}
    check_record({"teacher": {"name": value}, "data": data}, [])


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "x${y}", "???"])
def test_a_value_that_would_be_resolved_is_refused(value: str) -> None:
    with pytest.raises(RequestError, match=r"data.root=.* is not a value"):
        check_record({"data": {"root": value}}, [])


def test_a_refused_target_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "stranger.py").write_text(f"open({str(mark)!r}, 'w')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RequestError):
        check_record({"loss": {"x": {"_target_": "stranger.Part"}}}, [])
    assert not mark.exists()
    assert "stranger" not in sys.modules
