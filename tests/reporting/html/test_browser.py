"""Report pages in a real browser: narrow and wide, light and dark, and in print."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from kd_app.reporting.html import write_report
from kd_app.reporting.results import Results
from kd_app.reporting.sentences import format_interval, format_percent
from tests.reporting.html.folders import run_folder
from tests.reporting.manifests import build_entry, write_manifest

INSPECT = Path(__file__).with_name("browser.js").read_text(encoding="utf-8")
SECTIONS = [
    "evidence",
    "needed",
    "curves",
    "front",
    "family",
    "classes",
    "flips",
    "calibration",
    "soft-labels",
    "provenance",
    "limits",
]
OVERVIEW = ["methods", "runs", "front", "family"]

FAMILY = {
    "model.onnx": build_entry(0.95, 0.02, 2.0),
    "a file <b> of very many words, more than fit a cell of a table.pte": build_entry(
        0.96, 0.03, 3.0, format="executorch"
    ),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless chromium."""
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("These tests need chromium. Install it: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """Report of one run with all optional parts and with malicious names."""
    folder = tmp_path_factory.mktemp("one") / "run"
    results = run_folder(folder, examples=True)
    write_manifest(
        folder, FAMILY, teacher=build_entry(0.97, 0.8, 40.0, outcome=None), ship="model.onnx"
    )
    return write_report([folder], folder), results


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report of a sweep."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(4):
        config = {
            "seed": number % 2,
            "loss": {"soft_target": {"temperature": 2 ** (number // 2), "weight": 1.0}},
            "teacher": {"name": "a"},
        }
        skill = {"teacher": 3.0, "labels_only": 1.0, "student": 1.0 + number / 4}
        run_folder(
            folder / str(number),
            skill=skill,
            seed=number % 2,
            config=config,
            names=tuple(f"class {name}" for name in range(60)),
        )
        write_manifest(
            folder / str(number),
            {"model.onnx": build_entry(0.9 + number / 100, 0.01 * 2**number, 1.0 + number)},
        )
    return write_report(sorted(folder.iterdir()), folder / "report", [5])


@contextmanager
def open_page(
    browser: Browser, page: Path, width: int, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Page]:
    """Open the page in a window of this width. Any request and any console message is a
    failure.
    """
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab, events = context.new_page(), list[str]()
    tab.on("console", lambda message: events.append(message.text))
    tab.on("pageerror", lambda error: events.append(str(error)))
    tab.on("dialog", lambda dialog: events.append(dialog.message))
    tab.on(
        "request",
        lambda request: events.append(request.url) if not request.url.startswith("data:") else None,
    )
    tab.goto(page.as_uri())
    yield tab
    assert events == [page.as_uri()]
    context.close()


Look = tuple[int, Literal["light", "dark"]]
LOOKS: tuple[Look, ...] = ((400, "light"), (800, "dark"), (1600, "light"))
"""Widths and color schemes in which each page is opened, once."""
States = dict[tuple[Path, Look], dict[str, Any]]


@pytest.fixture(scope="module")
def states(browser: Browser, run: tuple[Path, Results], runs: Path) -> States:
    """What the browser shows of each page in each look."""
    measured = {}
    for page in (run[0], runs):
        for look in LOOKS:
            with open_page(browser, page, *look) as tab:
                measured[page, look] = tab.evaluate(INSPECT)
    return measured


@pytest.mark.parametrize("look", LOOKS)
def test_a_page_loads_nothing_fits_its_window_and_has_enough_contrast(
    states: States, run: tuple[Path, Results], runs: Path, look: Look
) -> None:
    for page in (run[0], runs):
        state = states[page, look]
        assert state["overflow"] <= 0
        assert state["faint"] == []
        assert state["small"] == 0
        assert (sum(state["background"][:3]) < 3 * 60) == (look[1] == "dark")


def test_every_section_is_there_in_order(
    states: States, run: tuple[Path, Results], runs: Path
) -> None:
    assert states[run[0], LOOKS[0]]["sections"] == SECTIONS
    state = states[runs, LOOKS[0]]
    assert state["sections"][: len(OVERVIEW)] == OVERVIEW
    assert [name for name in state["sections"] if name.endswith("-evidence")]
    assert state["links"]
    assert set(state["links"]) == {1}


def test_a_page_is_accessible_to_screen_readers(states: States, run: tuple[Path, Results]) -> None:
    state = states[run[0], LOOKS[0]]
    assert state["language"] == "en"
    assert state["drawings"] >= 9
    assert (state["nameless"], state["headless"]) == (0, 0)
    assert len(state["pictures"]) == 30
    assert all(loaded and named for loaded, named in state["pictures"])


def test_the_metrics_on_the_page_are_those_of_results_json(
    states: States, run: tuple[Path, Results]
) -> None:
    page, results = run
    rows = {row[0][0]: row[1:] for row in states[page, LOOKS[-1]]["evidence"]}
    assert results.test is not None
    models = [results.test.teacher, results.test.labels_only, results.test.student]
    assert rows["top-1 accuracy"] == [
        [format_percent(each.top1), format_interval(each.top1_low, each.top1_high)]
        for each in models
        if each
    ]
    assert rows["balanced accuracy"] == [
        [
            format_percent(each.balanced_accuracy),
            format_interval(each.balanced_accuracy_low, each.balanced_accuracy_high),
        ]
        for each in models
        if each
    ]
    assert rows["parameters"] == [["25.6 M"], ["2.54 M"], ["2.54 M"]]
    assert rows["images per second"] == [["42"], ["1,234"], ["1,234"]]


def test_a_printed_page_is_complete_and_dark_on_light(
    browser: Browser, run: tuple[Path, Results]
) -> None:
    with open_page(browser, run[0], 800, "dark") as tab:
        tab.emulate_media(media="print", color_scheme="dark")
        state = tab.evaluate(INSPECT)
        assert state["background"][:3] == [255, 255, 255]
        assert state["faint"] == []
        assert tab.locator("details table").first.bounding_box() is not None
        assert tab.pdf(format="A4")[:5] == b"%PDF-"
