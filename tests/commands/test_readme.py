"""What the README says runs, as it stands there: every command is composed, and run for
two batches.
"""

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from kd_app.config import Pixels
from kd_app.config.compose import composed
from tests.commands.call import call
from tests.commands.words import commands
from tests.training.made import image_folder, results, teacher_folder

README = Path(__file__).parents[2] / "README.md"
SHOWN = commands(README.read_text(encoding="utf-8"))
COLOR = Pixels(3, 32, 32, (0.5,) * 3, (0.25,) * 3)
LONG = {"trainer=ddp_sim", "robustness=standard", "role=both"}
"""Words of commands that take half a minute."""
STAND_INS = {
    "resnet50.a1_in1k": "resnet10t",
    "mobilenetv3_small_100.lamb_in1k": "mobilenetv3_small_050",
}
"""Names with weights on the hub -> smaller nets whose folders stand in for them."""


def test_commands_are_found_in_blocks_and_between_words_with_comments_continuations_and_quotes() -> (
    None
):
    text = """
    Say `kd-distill --help`, or `pip install x`, or ``nothing``.
```bash
# first
VAR=1 .venv/bin/kd-distill data=digits \\
    'loss=[cross_entropy,soft_target]' out="a b"   # two lines
make demo
$ kd-evaluate run=a out=b
```
```python
print("it's no shell: kd-distill")
```
| `kd-distill -m seed=0,1` |
"""
    assert commands(text) == [
        ("kd-distill", "--help"),
        ("kd-distill", "data=digits", "loss=[cross_entropy,soft_target]", "out=a b"),
        ("kd-evaluate", "run=a", "out=b"),
        ("kd-distill", "-m", "seed=0,1"),
    ]


def test_the_readme_shows_both_commands_and_what_the_issue_asks_for() -> None:
    assert {command for command, *_ in SHOWN} == {
        "kd-distill",
        "kd-check",
        "kd-evaluate",
        "kd-compress",
        "kd-export",
        "kd-predict",
        "kd-report",
    }
    shown = {word for words in SHOWN for word in words}
    assert shown >= {
        "data=folder",
        "data=fashion_mnist",
        "data=csv",
        "-m",
        "teacher=none",
        "debug=fdr",
        "trainer=ddp_sim",
        "experiment=feature",
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are said: photos, a table of them, and Fashion-MNIST's four
    files; what a command leaves, the next finds.
    """
    folder = tmp_path_factory.mktemp("readme")
    image_folder(folder / "photos", images=12, classes=3, side=32)
    (folder / "cifar10").symlink_to("photos")
    rows = [
        f"{path.relative_to(folder)},{path.parent.name}"
        for path in sorted((folder / "photos").rglob("*.png"))
    ]
    (folder / "photos.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    for name, architecture in STAND_INS.items():
        teacher_folder(folder / name, architecture, pixels=COLOR, classes=("a", "b", "c", "d"))
    _fashion_mnist(folder / "fashion_mnist")
    return folder


def _fashion_mnist(folder: Path, images: int = 300) -> None:
    random = np.random.default_rng(0)
    folder.mkdir()
    for part in ("train", "t10k"):
        pixels = random.integers(0, 256, (images, 28, 28), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">HBBIII", 0, 8, 3, images, 28, 28) + pixels.tobytes()
        )
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">HBBI", 0, 8, 1, images) + bytes(number % 10 for number in range(images))
        )


def shortened(words: tuple[str, ...], place: Path) -> list[str]:
    """The same words for two batches, with what lies here in the place of what is not,
    and two trials where there are more.
    """
    more = {
        "data=fashion_mnist": ["data.root=fashion_mnist"],
        "data=folder": ["data.image_size=32"],
        "data=csv": [
            "data.image_size=32",
            *(
                f"{role}.name={name}"
                for role, name in zip(("teacher", "student"), STAND_INS.values(), strict=True)
            ),
        ],
        "trainer=ddp_sim": [
            f"teacher.name=local-dir:{teacher_folder(place / 'digits')}",
            "controls=[]",
        ],
    }
    found = [_replaced(word) for word in words]
    found += [each for word in words for each in more.get(word, [])]
    found += [
        default
        for default in ("logger=[csv]", "debug=fdr", "data.batch_size=16")
        if not any(word.startswith(default.split("=")[0] + "=") for word in words)
    ]
    return found


def _replaced(word: str) -> str:
    key, _, value = word.partition("=")
    if value in STAND_INS:
        return f"{key}=local-dir:{value}"
    if key == "hydra.sweeper.trials":
        return f"{key}=2"
    swept = value.split(",") if not value.startswith("[") else [value]
    return (
        f"{key}={','.join(swept[: 2 if key.startswith('loss') else 1])}" if len(swept) > 1 else word
    )


def said(command: str, words: tuple[str, ...], place: Path) -> None:
    """Say a command of the README, shortened, and look at what it left; what it needs
    of an earlier one is made first.
    """
    if any(word.startswith("--") for word in words):
        assert call(*words, command=command).code == 0
        return
    if command == "kd-check":
        assert call(*words, "teacher.name=resnet8", "check.seconds=0.1", command=command).code == 0
        return
    for run in re.findall(r"(?<=^run=).+|(?<=^runs=\[)[^,\]]+", "\n".join(words), re.MULTILINE):
        if not Path(run).exists():
            said(
                *next((first, tuple(rest), place) for first, *rest in SHOWN if f"out={run}" in rest)
            )
    exports = {
        run
        for run in re.findall(r"([^,=\[\]]+)/export/", "\n".join(words))
        if not (Path(run) / "export").exists()
    }
    for run in exports:
        said(
            *next(
                (first, tuple(rest), place)
                for first, *rest in SHOWN
                if first == "kd-export" and f"run={run}" in rest
            )
        )
    quick = {
        "kd-export": ("clock.seconds=0.05", "clock.rounds=6"),
        "kd-predict": ("overwrite=true",),
    }.get(command, ())
    ended = call(
        *(shortened(words, place) if command == "kd-distill" else words), *quick, command=command
    )
    assert (ended.code, ended.err) == (0, ""), ended.out
    if command in ("kd-export", "kd-predict"):
        assert "Everything is in " in ended.out or " images labeled in " in ended.out
        return
    if command == "kd-report":
        assert Path(ended.out.split()[2].rstrip(",")).name == "report.html"
        return
    out = Path(next(word.removeprefix("out=") for word in words if word.startswith("out=")))
    runs = sorted(out.glob("[0-9]*")) if "-m" in words else [out]
    assert runs
    assert {results(run)["status"] for run in runs} == {"finished"}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        pytest.param(
            command,
            tuple(words),
            id=" ".join(words)[:60],
            marks=[pytest.mark.slow] if LONG & set(words) or "/export/" in " ".join(words) else [],
        )
        for command, *words in SHOWN
    ],
)
def test_every_command_of_the_readme_does_what_it_says(
    command: str, words: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    said(command, words, place)


@pytest.mark.parametrize(
    ("command", "words"),
    [(command, words) for command, *words in SHOWN if "-m" not in words and "--help" not in words],
)
def test_every_command_of_the_readme_composes_without_a_change(
    command: str, words: list[str]
) -> None:
    config = composed(
        command.removeprefix("kd-"),
        [word for word in words if not word.startswith("--") and word != "job"],
    )
    assert not config.get("overwrite")
