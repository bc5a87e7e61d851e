"""The config.json of a model folder from somebody else: it describes a timm model, and
makes nothing run, load a pickle, or be fetched.
"""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kd_app
from kd_app.config import RequestError
from kd_app.config.compose import compose_config
from kd_app.models.create import create
from kd_app.specs.spec import build_spec
from tests.builders import GRAY, teacher_folder
from tests.commands.call import call, snapshot
from tests.security.payloads import write_zip


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The addresses of the network that were asked for; none when the test ends."""
    addresses: list[Any] = []
    plain = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            addresses.append(address)
        plain(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield addresses
    assert not addresses


def changes(pickle: Path) -> dict[str, dict[str, Any]]:
    """What a config.json may say to get a pickle loaded or something fetched: by name,
    keys of the whole and of ``pretrained_cfg``.
    """
    url = "http://127.0.0.1:9/x.bin"
    file = str(pickle)
    return {
        "custom": {"pretrained_cfg": {"custom_load": True}},
        "custom of a file": {"pretrained_cfg": {"custom_load": True, "file": file, "source": ""}},
        "file": {"pretrained_cfg": {"file": file, "source": "file"}},
        "url": {"pretrained_cfg": {"url": url, "source": "url", "file": ""}},
        "hub": {
            "pretrained_cfg": {
                "hf_hub_id": "evil/x",
                "source": "hf-hub",
                "hf_hub_filename": "x.bin",
                "custom_load": "hf",
            }
        },
        "weights": {"pretrained_cfg": {"state_dict": {"x": 1}, "source": ""}},
        "unknown": {"pretrained_cfg": {"trust_remote_code": True, "_target_": "os.system"}},
        "checkpoint_path": {"model_args": {"checkpoint_path": file}},
        "pretrained": {"model_args": {"pretrained": True}},
        "overlay": {
            "model_args": {
                "pretrained_cfg_overlay": {"file": file, "source": "", "custom_load": True}
            }
        },
        "another cfg": {"model_args": {"pretrained_cfg": {"file": file, "source": ""}}},
        "cache": {"model_args": {"cache_dir": str(pickle.parent / "cache")}},
        "layer": {"model_args": {"act_layer": "os.system", "norm_layer": "os.system"}},
        "pruned": {"model_args": {"pruned": True}},
        "architecture of a hub": {"architecture": "hf-hub:evil/x"},
        "architecture of a folder": {"architecture": f"local-dir:{pickle.parent}"},
        "architecture of code": {"architecture": "os.system"},
    }


NAMES = list(changes(Path()))


@pytest.fixture
def theirs(tmp_path: Path, mark: Path) -> Path:
    """A model folder with a pickle beside what it should hold."""
    folder = teacher_folder(tmp_path / "theirs")
    write_zip(folder / "pytorch_model.bin", mark)
    return folder


def read_message(folder: Path, name: str) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key, value in changes(folder / "pytorch_model.bin")[name].items():
        config[key] = {**(config.get(key) or {}), **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def load_teacher(folder: Path) -> torch.nn.Module:
    """The teacher as kd-distill loads it."""
    config = compose_config("distill", ["data=digits", f"teacher.checkpoint={folder}"])
    spec = build_spec(config).teacher
    assert spec is not None
    return create(spec, GRAY, 10, seed=0).model


@pytest.mark.usefixtures("mark", "requests")
@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_is_loaded_as_described_or_refused(name: str, theirs: Path) -> None:
    read_message(theirs, name)
    before = snapshot(theirs)
    try:
        model = load_teacher(theirs)
    except RequestError:
        model = None
    assert model is None or model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert snapshot(theirs) == before


@pytest.mark.usefixtures("mark", "requests")
def test_a_command_with_such_a_teacher_is_done_or_refused_in_one_line(theirs: Path) -> None:
    read_message(theirs, "custom of a file")
    words = ("debug=fdr", "logger=[csv]", "controls=[]", "examples=0", "out=run", "stages=stages")
    result = call(*words, f"teacher.checkpoint={theirs}")
    assert result.code in (0, 2), result.err
    assert len(result.err.splitlines()) == (1 if result.code else 0)


@pytest.mark.usefixtures("mark", "requests")
@pytest.mark.parametrize("name", NAMES)
def test_a_student_is_loaded_from_its_safetensors_or_refused(
    name: str, run: Path, mark: Path
) -> None:
    write_zip(run / "student" / "pytorch_model.bin", mark)
    read_message(run / "student", name)
    before = snapshot(run)
    try:
        model = kd_app.load_run(run).load_student()
    except RequestError:
        model = None
    assert model is None or model.num_classes == 10
    assert snapshot(run) == before
