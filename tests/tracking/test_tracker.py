from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kd_app.config import RequestError
from kd_app.config.paths import CONF
from kd_app.tracking import Backend, Csv, Outcome, RunStart, TrackerRun, Wandb
from tests.tracking.runs import RESULTS, tracker, train


class Notebook(Backend, TrackerRun):
    """Writes down what it is told; fails at `fails_at`."""

    def __init__(self, *, fails_at: str) -> None:
        self.fails_at = fails_at
        self.heard: list[str] = []

    def _hear(self, what: str, detail: object) -> None:
        self.heard.append(f"{what} {detail}")
        if what == self.fails_at:
            raise OSError("disk full\nand more")

    def open(self, opening: RunStart, say: Callable[[str], None]) -> TrackerRun | None:
        self._hear("open", opening.stage)
        return self

    def log(self, row: Mapping[str, float], step: int) -> None:
        self._hear("log", step)

    def log_outcome(self, outcome: Outcome) -> None:
        self._hear("results", len(outcome.test))

    def close(self, exit_code: int) -> None:
        self._hear("close", exit_code)


@pytest.mark.parametrize(
    "path", sorted((CONF / "logger").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_choice_of_logger_makes_a_backend_under_its_own_name(path: Path) -> None:
    (name, node), *others = OmegaConf.to_container(OmegaConf.load(path)).items()  # type: ignore[union-attr]
    assert (name, others) == (path.stem, [])
    assert isinstance(instantiate(node), Backend)


def test_a_mode_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match="mode='on' does not fit"):
        Wandb(project=None, entity=None, mode="on")  # type: ignore[arg-type]


def test_csv_alone_follows_nothing_here(tmp_path: Path) -> None:
    said: list[str] = []
    following = tracker(tmp_path, {"csv": Csv()}, said)
    train(following, "teacher")
    following.close(exit_code=0)
    assert said == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fails_at", "heard"),
    [
        ("open", ["open teacher"]),
        ("log", ["open teacher", "log 5", "close 0"]),
        ("close", ["open teacher", "log 5", "log 10", "close 0"]),
        (
            "results",
            ["open teacher", "log 5", "log 10", "close 0", "open student", "results 3", "close 0"],
        ),
    ],
)
def test_a_tracker_that_fails_is_left_out_with_one_line_and_the_others_hear_all(
    fails_at: str, heard: list[str], tmp_path: Path
) -> None:
    said: list[str] = []
    bad, good = Notebook(fails_at=fails_at), Notebook(fails_at="")
    following = tracker(tmp_path, {"bad": bad, "good": good}, said)
    train(following, "teacher", epochs=1)
    following.end("teacher", exit_code=0)
    following.finish("student", {}, None, list)
    following.log_results(RESULTS, [])
    following.close(exit_code=0)
    assert bad.heard == heard
    assert good.heard == [
        "open teacher",
        "log 5",
        "log 10",
        "close 0",
        "open student",
        "results 3",
        "close 0",
    ]
    assert said == [
        "logger bad failed (OSError: disk full) and is left out from here on; the run goes on."
    ]


def test_what_is_still_open_at_the_end_is_closed_once_with_the_code_of_the_end(
    tmp_path: Path,
) -> None:
    notebook = Notebook(fails_at="")
    following = tracker(tmp_path, {"notebook": notebook}, [])
    listen = following.start("teacher")
    following.start("student")
    following.end("teacher", exit_code=0)
    listen({"train/loss": 1.0}, 7)  # too late: nobody hears it
    following.close(exit_code=143)
    following.close(exit_code=1)
    following.end("student", exit_code=0)
    assert notebook.heard == ["open teacher", "open student", "close 0", "close 143"]


def test_a_stop_by_the_user_is_no_fault_of_a_tracker(tmp_path: Path) -> None:
    class Stopped(Notebook):
        def log(self, row: Mapping[str, float], step: int) -> None:
            raise KeyboardInterrupt

    said: list[str] = []
    following = tracker(tmp_path, {"stopped": Stopped(fails_at="")}, said)
    with pytest.raises(KeyboardInterrupt):
        train(following, "teacher")
    assert said == []
