"""Pages as people see them: in a real browser, narrow and wide, light and dark, on
paper.
"""

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
from tests.reporting.manifests import entry, exported

LOOK = Path(__file__).with_name("browser.js").read_text(encoding="utf-8")
ONE = [
    "evidence",
    "needed",
    "curves",
    "front",
    "family",
    "classes",
    "flips",
    "calibration",
    "soft-labels",
    "made",
    "limits",
]
MANY = ["methods", "runs", "front", "family"]

FAMILY = {
    "model.onnx": entry(0.95, 0.02, 2.0),
    "a file <b> of very many words, more than fit a cell of a table.pte": entry(
        0.96, 0.03, 3.0, format="executorch"
    ),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium, without a window."""
    path = shutil.which("chromium")
    if path is None:
        pytest.fail(
            "There is no chromium to look at pages with. Install it: apt-get install chromium"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """The report of one run with all that a run can have, and names that mean harm."""
    folder = tmp_path_factory.mktemp("one") / "run"
    results = run_folder(folder, examples=True)
    exported(folder, FAMILY, teacher=entry(0.97, 0.8, 40.0, outcome=None), ship="model.onnx")
    return write_report([folder], folder), results


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a sweep."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(6):
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
        exported(
            folder / str(number),
            {"model.onnx": entry(0.9 + number / 100, 0.01 * 2**number, 1.0 + number)},
        )
    return write_report(sorted(folder.iterdir()), folder / "report", [5])


@contextmanager
def opened(
    browser: Browser, page: Path, width: int, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Page]:
    """The page in a window of this width; whatever it asks for, and whatever the
    console says, is a failure.
    """
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    shown, heard = context.new_page(), list[str]()
    shown.on("console", lambda message: heard.append(message.text))
    shown.on("pageerror", lambda error: heard.append(str(error)))
    shown.on("dialog", lambda dialog: heard.append(dialog.message))
    shown.on(
        "request",
        lambda request: heard.append(request.url) if not request.url.startswith("data:") else None,
    )
    shown.goto(page.as_uri())
    yield shown
    assert heard == [page.as_uri()]
    context.close()


def seen(page: Page) -> Any:
    """What is there to see, measured in the page."""
    return page.evaluate(LOOK)


@pytest.mark.parametrize(
    ("width", "scheme"), [(400, "light"), (400, "dark"), (800, "dark"), (1600, "light")]
)
def test_a_page_asks_for_nothing_fits_its_window_and_can_be_read(
    browser: Browser,
    run: tuple[Path, Results],
    runs: Path,
    width: int,
    scheme: Literal["light", "dark"],
) -> None:
    for page in (run[0], runs):
        with opened(browser, page, width, scheme) as shown:
            found = seen(shown)
        assert found["overflow"] <= 0
        assert found["faint"] == []
        assert found["small"] == 0
        assert (sum(found["background"][:3]) < 3 * 60) == (scheme == "dark")


def test_every_section_is_there_in_its_order(
    browser: Browser, run: tuple[Path, Results], runs: Path
) -> None:
    with opened(browser, run[0], 800) as shown:
        assert seen(shown)["sections"] == ONE
    with opened(browser, runs, 800) as shown:
        sections = seen(shown)["sections"]
        assert sections[: len(MANY)] == MANY
        assert [name for name in sections if name.endswith("-evidence")]
        for link in shown.locator("nav a").all():
            assert shown.locator(str(link.get_attribute("href"))).count() == 1


def test_whoever_does_not_see_the_page_hears_what_it_shows(
    browser: Browser, run: tuple[Path, Results]
) -> None:
    with opened(browser, run[0], 800) as shown:
        found = seen(shown)
        assert shown.locator("html").get_attribute("lang") == "en"
    assert found["drawings"] >= 9
    assert (found["nameless"], found["headless"]) == (0, 0)
    assert len(found["pictures"]) == 30
    assert all(loaded and named for loaded, named in found["pictures"])


def test_the_figures_on_the_page_are_those_of_results_json(
    browser: Browser, run: tuple[Path, Results]
) -> None:
    page, results = run
    with opened(browser, page, 1600) as shown:
        rows = {row[0][0]: row[1:] for row in seen(shown)["evidence"]}
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


def test_on_paper_everything_is_there_in_dark_ink(
    browser: Browser, run: tuple[Path, Results]
) -> None:
    with opened(browser, run[0], 800, "dark") as shown:
        shown.emulate_media(media="print", color_scheme="dark")
        found = seen(shown)
        assert found["background"][:3] == [255, 255, 255]
        assert found["faint"] == []
        assert shown.locator("details table").first.bounding_box() is not None
        assert shown.pdf(format="A4")[:5] == b"%PDF-"
