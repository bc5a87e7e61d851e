"""Every command of the README runs as it is written, for two batches.

That each composes is tested in test_commands.py.
"""

import re
from pathlib import Path

import pytest

from kd_app.config import InputSpec
from tests.builders import image_folder, results, teacher_folder
from tests.commands.call import CommandResult, call
from tests.docs.shell import README, find_commands

SHOWN = [
    (command, tuple(words))
    for command, *words in find_commands(README.read_text(encoding="utf-8"))
    if words
]
COLOR = InputSpec(3, 32, 32, (0.5,) * 3, (0.25,) * 3)
STAND_INS = {
    "resnet50.a1_in1k": "resnet10t",
    "mobilenetv3_small_100.lamb_in1k": "mobilenetv3_small_050",
}
"""Names with weights on the hub -> smaller networks whose folders replace them."""
QUICK = {
    "kd-distill": ("logger=[csv]", "debug=fdr", "data.batch_size=16"),
    "kd-check": ("check.seconds=0.1", "data.batch_size=16"),
    "kd-compress": ("alternative=null",),
    "kd-export": ("benchmark.seconds=0.05", "benchmark.rounds=6"),
}
"""What makes a command quick, in addition to its own overrides."""
CHOOSING = ("kd-distill", "kd-check")
DEFAULT_DATA = "data=digits_few_labels"
"""Of the commands in `CHOOSING`; `call` would choose the digits with all labels."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with photos and the stand-ins; later commands use the runs of
    earlier ones.
    """
    folder = tmp_path_factory.mktemp("readme")
    image_folder(folder / "photos", images=12, classes=3, side=32)
    for name, architecture in STAND_INS.items():
        teacher_folder(folder / name, architecture, pixels=COLOR, classes=("a", "b", "c", "d"))
    return folder


def shorten(word: str) -> str:
    """An override with a stand-in for weights of the hub, and with fewer values where
    it sweeps: one seed, and two of anything else.
    """
    key, _, value = word.partition("=")
    if value in STAND_INS:
        return f"{key}=local-dir:{value}"
    if word.startswith("-") or value.startswith("["):
        return word
    return f"{key}={','.join(value.split(',')[: 1 if key == 'seed' else 2])}" if value else word


def find_missing_inputs(words: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """The commands of the README that make the runs which `words` read."""
    runs = [word.removeprefix("run=") for word in words if word.startswith("run=")]
    return [
        next(example for example in SHOWN if f"out={run}" in example[1])
        for run in runs
        if not Path(run).exists()
    ]


def run_shortened(command: str, words: tuple[str, ...]) -> CommandResult:
    """Run a command for two batches, after the commands whose runs it reads."""
    for needed in find_missing_inputs(words):
        run_shortened(*needed)
    photos = ["data.image_size=32"] if "data=folder" in words else []
    models = [
        f"{role}.name=local-dir:{name}"
        for role, name in zip(("teacher", "student"), STAND_INS, strict=True)
        if photos and not any(word.startswith(f"{role}.name") for word in words)
    ]
    data = [] if command not in CHOOSING or "data=folder" in words else [DEFAULT_DATA]
    quick = (*photos, *models, *QUICK.get(command, ()))
    return call(*data, *map(shorten, words), *quick, command=command)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"), SHOWN, ids=[" ".join(words)[:60] for _, words in SHOWN]
)
def test_a_command_of_the_readme_runs(
    command: str, words: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    result = run_shortened(command, words)
    assert (result.code, result.err) == (0, ""), result.out
    out = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    for folder in out:
        runs = sorted(Path(folder).glob("[0-9]*")) if "-m" in words else [Path(folder)]
        assert runs
        assert {results(run)["status"] for run in runs} == {"finished"}


def test_the_readme_has_about_a_page() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    assert len(re.findall(r"^## ", text, re.MULTILINE)) <= 14
