"""The notebook runs from a clean kernel, and what is committed is what a real run of it shows."""

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

import kd_app

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "first_run.ipynb"
FIGURES = 5
PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|opt|usr|var|mnt|Users|private|github)/|\b[A-Za-z]:\\|site-packages")


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def executed(folder: Path) -> Any:
    """The notebook after a clean kernel, started in `folder`, ran it; raises where a cell does."""
    notebook = read()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def figures(notebook: Any) -> list[np.ndarray]:
    encoded = [output.data["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB")) for each in encoded]


def words(notebook: Any) -> str:
    """Everything that is text: sources, and outputs without their images."""
    texts = [cell.source for cell in notebook.cells]
    for output in outputs(notebook):
        texts += [output.get("text", ""), *(str(data) for kind, data in output.get("data", {}).items() if not kind.startswith("image/"))]
    return "\n".join(texts)


def is_drawn(figure: np.ndarray) -> bool:
    """At least a hundredth of the figure is ink."""
    return bool((figure < 250).any(axis=2).mean() > 0.01)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        text = f"out='{folder}/tiny' stages='{folder}/.stages' trainer.max_epochs=2"
        patch.setenv("KD_APP_OVERRIDES", text)
        yield text, folder / "tiny"


@pytest.fixture(scope="module")
def first(overrides: tuple[str, Path]) -> Any:
    return executed(NOTEBOOK.parent)


def test_a_clean_kernel_runs_the_notebook_and_draws_every_figure(first: Any, overrides: tuple[str, Path]) -> None:
    drawn = figures(first)
    assert len(drawn) == FIGURES
    assert all(is_drawn(figure) for figure in drawn)
    assert not [output for output in outputs(first) if output.get("name") == "stderr" or output.output_type == "error"]
    assert kd_app.load_run(overrides[1]).results.status == "finished"


def test_the_notebook_says_in_words_what_the_results_hold(first: Any, overrides: tuple[str, Path]) -> None:
    results = kd_app.load_run(overrides[1]).results
    assert results.test is not None
    assert results.test.teacher is not None
    said = first.cells[-1].outputs[0].data["text/markdown"]
    for figure in (results.test.teacher, results.test.student):
        assert f"{100 * (figure.top1 or 0):.1f} ({100 * (figure.top1_low or 0):.1f} to {100 * (figure.top1_high or 0):.1f}) percent" in said


def test_run_again_from_the_repository_it_reads_the_finished_run_and_shows_the_same(first: Any, overrides: tuple[str, Path]) -> None:
    before = (overrides[1] / "results.json").read_bytes()
    again = executed(ROOT)
    assert "holds this run, finished" in words(again)
    assert (overrides[1] / "results.json").read_bytes() == before
    assert again.cells[-1].outputs == first.cells[-1].outputs


def test_the_committed_notebook_shows_a_real_run_of_the_default_job() -> None:
    committed = read()
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert len(figures(committed)) == FIGURES
    assert all(is_drawn(figure) for figure in figures(committed))
    assert "runs/first-run holds this run, finished" in words(committed)
    assert "Of 359 test images" in code[-1].outputs[0].data["text/markdown"]
    assert {output.output_type for output in outputs(committed)} <= {"stream", "display_data", "execute_result"}
    assert not [output for output in outputs(committed) if output.get("name") == "stderr"]


def test_the_committed_notebook_is_small_and_names_no_machine() -> None:
    assert NOTEBOOK.stat().st_size < 1_500_000
    committed = read()
    assert PATH.search(words(committed)) is None
    assert str(ROOT) not in words(committed)
    assert set(committed.metadata) == {"kernelspec", "language_info"}
