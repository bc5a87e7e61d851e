from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kd_app.config import RequestError
from kd_app.config.paths import CONF
from kd_app.tracking import Backend, Csv, Outcome, RunStart, TrackerRun, Wandb
from tests.tracking.runs import RESULTS, build_tracker, train


class Notebook(Backend, TrackerRun):
    """Records its calls; fails at `fails_at`."""

    def __init__(self, *, fails_at: str) -> None:
        self.fails_at = fails_at
        self.events: list[str] = []

    def _note(self, what: str, detail: object) -> None:
        self.events.append(f"{what} {detail}")
        if what == self.fails_at:
            raise OSError("disk full\nand more")

    def open(self, start: RunStart, say: Callable[[str], None]) -> TrackerRun | None:
        self._note("open", start.stage)
        return self

    def log(self, row: Mapping[str, float], step: int) -> None:
        self._note("log", step)

    def log_outcome(self, outcome: Outcome) -> None:
        self._note("results", len(outcome.test))

    def close(self, exit_code: int) -> None:
        self._note("close", exit_code)


@pytest.mark.parametrize(
    "path", sorted((CONF / "logger").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_logger_config_builds_a_backend_under_its_own_name(path: Path) -> None:
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    (name, node), *others = content.items()
    assert (name, others) == (path.stem, [])
    assert isinstance(instantiate(node), Backend)


def test_an_unknown_mode_is_rejected_by_name() -> None:
    with pytest.raises(RequestError, match="mode='on' does not fit"):
        Wandb(project=None, entity=None, mode="on")  # type: ignore[arg-type]


def test_csv_alone_opens_no_tracker_run(tmp_path: Path) -> None:
    messages: list[str] = []
    tracker = build_tracker(tmp_path, {"csv": Csv()}, messages)
    train(tracker, "teacher")
    tracker.close(exit_code=0)
    assert messages == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fails_at", "events"),
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
def test_a_failing_tracker_is_disabled_with_one_message_and_the_others_continue(
    fails_at: str, events: list[str], tmp_path: Path
) -> None:
    messages: list[str] = []
    bad, good = Notebook(fails_at=fails_at), Notebook(fails_at="")
    tracker = build_tracker(tmp_path, {"bad": bad, "good": good}, messages)
    train(tracker, "teacher", epochs=1)
    tracker.end("teacher", exit_code=0)
    tracker.finish("student", {}, None, list)
    tracker.log_results(RESULTS, [])
    tracker.close(exit_code=0)
    assert bad.events == events
    assert good.events == [
        "open teacher",
        "log 5",
        "log 10",
        "close 0",
        "open student",
        "results 3",
        "close 0",
    ]
    assert messages == [
        "logger bad failed (OSError: disk full) and is disabled; the run continues."
    ]


def test_open_runs_are_closed_once_with_the_exit_code(
    tmp_path: Path,
) -> None:
    notebook = Notebook(fails_at="")
    tracker = build_tracker(tmp_path, {"notebook": notebook}, [])
    listen = tracker.start("teacher")
    tracker.start("student")
    tracker.end("teacher", exit_code=0)
    listen({"train/loss": 1.0}, 7)  # ignored: the run is closed
    tracker.close(exit_code=143)
    tracker.close(exit_code=1)
    tracker.end("student", exit_code=0)
    assert notebook.events == ["open teacher", "open student", "close 0", "close 143"]


def test_an_interruption_is_not_a_tracker_failure(tmp_path: Path) -> None:
    class Stopped(Notebook):
        def log(self, row: Mapping[str, float], step: int) -> None:
            raise KeyboardInterrupt

    messages: list[str] = []
    tracker = build_tracker(tmp_path, {"stopped": Stopped(fails_at="")}, messages)
    with pytest.raises(KeyboardInterrupt):
        train(tracker, "teacher")
    assert messages == []
