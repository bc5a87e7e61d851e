"""``--help`` fits on a screen, and what it shows is true; ``--version`` says which."""

import shlex
import subprocess
import sys

import pytest

from kd_app import __version__
from kd_app.commands.help import EXAMPLES, find_help, format_help
from kd_app.config.compose import compose_config
from kd_app.config.paths import CONF, list_choices
from tests.commands.call import succeed

COMMANDS = ["check", "compress", "distill", "evaluate", "export", "predict", "report"]


def test_every_command_has_a_help() -> None:
    assert sorted(EXAMPLES) == COMMANDS
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == sorted(
        [*COMMANDS, "hydra_defaults"]
    )


@pytest.mark.parametrize("primary", COMMANDS)
def test_it_fits_on_a_screen(primary: str) -> None:
    lines = format_help(primary).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(f"kd-{primary}: ")


@pytest.mark.parametrize("primary", COMMANDS)
def test_the_command_prints_it_and_does_nothing_else(primary: str) -> None:
    assert succeed("--help", "nonsense=1", command=f"kd-{primary}") == format_help(primary) + "\n"
    assert succeed("-h", command=f"kd-{primary}") == format_help(primary) + "\n"


@pytest.mark.parametrize("primary", COMMANDS)
def test_the_command_says_its_version(primary: str) -> None:
    assert succeed("--version", command=f"kd-{primary}") == f"kd-{primary} {__version__}\n"


@pytest.mark.parametrize("example", [example for each in EXAMPLES.values() for example in each])
def test_every_example_composes(example: str) -> None:
    command, *words = shlex.split(example)
    plain = [
        word for word in words if word != "-m" and "," not in word.partition("=")[2].strip("[]")
    ]
    lists = [word for word in words if word.endswith("]")]
    assert compose_config(command.removeprefix("kd-"), list(dict.fromkeys([*plain, *lists])))


def test_groups_are_listed_with_their_choices_and_which_take_several() -> None:
    text = format_help("distill")
    for group in ("data", "loss", "trainer", "experiment", "debug", "hydra/sweeper"):
        assert f"\n  {group} " in text
    for name in list_choices("data"):
        assert f" {name}" in text
    assert f"({len(list_choices('loss'))})" in text
    assert "callbacks, controls, logger, loss: one or several" in text


def test_settings_are_explained_where_there_is_room_and_named_where_not() -> None:
    assert "\n  model           (required) a file of kd-export" in format_help("predict")
    assert "\n  out, stages, remake," in format_help("distill")
    assert ", license, check\n" in format_help("check")


def test_words_that_ask_for_work_have_no_answer() -> None:
    assert find_help("distill", ["seed=1"]) is None
    assert find_help("distill", []) is None


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_neither_imports_hydra_or_torch(word: str) -> None:
    program = (
        f"import sys; sys.argv = ['kd-distill', {word!r}]\n"
        "from kd_app.commands.distill import main\n"
        "try: main()\n"
        "finally: print({'hydra', 'omegaconf', 'pydantic', 'torch', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "set()"
