"""The notebooks make their own runs or read somebody's, and what is committed is what
real runs showed. The slow tests run each from a clean kernel.
"""

import base64
import csv
import io
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from IPython.utils.capture import capture_output
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nbclient import NotebookClient
from PIL import Image

import kd_app
from kd_app.data.digits import Digits
from kd_app.reporting.comparison import compare
from kd_app.reporting.distillation_gain import describe_gains
from tests.builders import accept_changes, results
from tests.commands.call import TINY, succeed

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
FIGURES = {"first_run": 5, "methods_over_seeds": 3, "sweep": 3, "differences": 5}
LIMIT = 400_000
PATH = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|work|opt|usr|var|mnt|Users|private|github)/"
    r"|\b[A-Za-z]:\\|site-packages"
)
every_notebook = pytest.mark.parametrize("name", FIGURES)


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]


def read_without_outputs(name: str) -> Any:
    notebook = read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def execute(notebook: Any, folder: Path, **environment: str) -> Any:
    """Run the cells in a clean kernel that starts in `folder`; raises where a cell
    does.
    """
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**os.environ, "WANDB_MODE": "disabled", **environment})
    return notebook


def execute_together(names: Iterable[str], folder: Path) -> dict[str, Any]:
    """Run notebooks in this process, which forgets all names between them: most of a
    kernel's time is imports. The slow tests start a kernel.
    """
    notebooks = {name: read_without_outputs(name) for name in names}
    main = sys.modules["__main__"]  # which the shell replaces
    shell: Any = InteractiveShell.instance()
    shell.display_formatter.formatters["image/png"].for_type(Figure, draw)
    shell.display_trap.hook = show_value
    with mpl.rc_context(), chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("default")
        plt.switch_backend("module://matplotlib_inline.backend_inline")
        for notebook in notebooks.values():
            shell.reset()
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    cell.outputs = list(run_cell(shell, cell.source))
        plt.close("all")
        plt.switch_backend("agg")
    InteractiveShell.clear_instance()
    sys.modules["__main__"] = main
    return notebooks


def draw(figure: Figure) -> str:
    """Draw a figure as PNG in base64, once and with its layout computed once; a kernel
    does both twice.
    """
    canvas, layout, image = FigureCanvasAgg(figure), figure.get_layout_engine(), io.BytesIO()
    if layout is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")
    canvas.print_png(image)  # type: ignore[no-untyped-call]
    return base64.b64encode(image.getvalue()).decode()


def show_value(value: Any) -> None:
    """Show the value of a cell's last line, if it has one."""
    if value is not None:
        display(value)  # type: ignore[no-untyped-call]


def run_cell(shell: Any, source: str) -> Iterator[Any]:
    """Run a cell, and yield its outputs as a notebook has them."""
    with capture_output() as captured:
        result = shell.run_cell(source)
    result.raise_error()
    output: Any = nbformat.v4.new_output
    for name, text in (("stdout", captured.stdout), ("stderr", captured.stderr)):
        if text:
            yield output("stream", name=name, text=text)
    for each in captured.outputs:
        yield output("display_data", data=each.data, metadata=each.metadata)


def outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def figures(notebook: Any) -> list[np.ndarray]:
    encoded = [
        output.data["image/png"]
        for output in outputs(notebook)
        if "image/png" in output.get("data", {})
    ]
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB"))
        for each in encoded
    ]


def words(notebook: Any) -> str:
    """Everything that is text: sources, and outputs without their images."""
    texts = [cell.source for cell in notebook.cells]
    for output in outputs(notebook):
        texts += [
            output.get("text", ""),
            *(
                str(data)
                for kind, data in output.get("data", {}).items()
                if not kind.startswith("image/")
            ),
        ]
    return "\n".join(texts)


def decision(notebook: Any) -> str:
    """What the last cell says."""
    output: str = notebook.cells[-1].outputs[0].data["text/markdown"]
    return output


def is_drawn(figure: np.ndarray) -> bool:
    """At least a hundredth of the figure is ink."""
    return bool((figure < 250).any(axis=2).mean() > 0.01)


def trouble(notebook: Any) -> list[str]:
    """Errors, warnings, and folders of this machine."""
    loud = [
        str(output.get("text", output))
        for output in outputs(notebook)
        if output.output_type == "error" or output.get("name") == "stderr"
    ]
    return loud + [line for line in words(notebook).splitlines() if PATH.search(line)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the search `found`: two temperatures, measured on test images of digits in
    groups, and a copy of each run as that of another seed.
    """
    folder = tmp_path_factory.mktemp("notebooks")
    pixels, labels, _ = Digits().load()
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "group"])
        for number in range(200):
            Image.fromarray(pixels[number]).save(folder / f"{number}.png")
            rows.writerow([f"{number}.png", labels[number], f"block {number // 20}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        search = (
            "hparams_search=temperature",
            "hydra.sweeper.sampler=grid",
            "loss.soft_target.temperature=choice(1,4)",
        )
        fixed = (
            "loss.soft_target.weight=choice(1)",
            "test=always",
            "trial_pruning=null",
            "stages=.stages",
            "examples=12",
            "out=found",
        )
        succeed(
            "-m",
            *TINY,
            "data=csv",
            "data.root=.",
            "data.source.channels=1",
            "student.name=resnet8",
            *search,
            *fixed,
        )
        for number in (0, 1):
            run = shutil.copytree(f"found/{number}", f"found/{number + 2}")
            config = Path(run, "config.yaml")
            text = config.read_text(encoding="utf-8")
            assert "\nseed: 0\n" in text
            config.write_text(text.replace("\nseed: 0\n", "\nseed: 1\n"), encoding="utf-8")
            recorded = {**results(Path(run))["config"], "seed": 1}
            accept_changes(Path(run), seed=1, config=recorded)
    return folder


@pytest.fixture(scope="module")
def notebooks(folder: Path) -> dict[str, Any]:
    """The notebooks, executed once on the runs in `found`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_RUNS", "found")
        return execute_together(FIGURES, folder)


@pytest.fixture(params=FIGURES)
def of_a_folder(request: pytest.FixtureRequest, notebooks: dict[str, Any]) -> tuple[str, Any]:
    """Each notebook, executed."""
    return request.param, notebooks[request.param]


def test_it_reads_a_folder_of_runs_and_draws_every_figure(
    of_a_folder: tuple[str, Any], folder: Path
) -> None:
    name, notebook = of_a_folder
    drawn = figures(notebook)
    assert len(drawn) in (
        FIGURES[name],
        FIGURES[name] - 1,
    )  # a student that is nowhere wrong where its teacher is right has no flip to show
    assert all(is_drawn(figure) for figure in drawn)
    assert trouble(notebook) == []
    assert "found" in words(notebook)
    assert not (folder / "runs").exists()  # what is given is read, and nothing is trained


def test_the_decision_is_what_the_runs_hold(
    of_a_folder: tuple[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, notebook = of_a_folder
    monkeypatch.chdir(folder)
    runs = [kd_app.load_run(path) for path in kd_app.load_runs("found")["path"]]
    output, first = decision(notebook), runs[0].results
    assert first.test is not None
    assert first.verdict is not None
    if name == "first_run":
        assert f"Measured on {first.test.num_images}" in output
        interval = (first.verdict.difference, first.verdict.low, first.verdict.high)
        # without the sign of a negative zero
        difference, low, high = (f"{round(100 * each, 2) + 0.0:+.2f}" for each in interval)
        assert f"{difference} points ({low} to {high})" in output
        assert all(sentence in words(notebook) for sentence in describe_gains(first))
    elif name == "methods_over_seeds":
        winner = compare(runs).winner
        assert winner is not None
        assert f"**{winner}** is chosen on validation among 2" in output
        assert "over 2 seeds" in output
    elif name == "sweep":
        best = max(
            run.results.validation.student.top1 or 0 for run in runs if run.results.validation
        )
        assert f"{100 * best:.2f} % (" in output
        assert "loss.soft_target.temperature" in output
    else:
        answers = runs[0].predictions
        right = {
            role: answers[f"{role}_top1"] == answers["target"] for role in ("teacher", "student")
        }
        assert (
            f"Of {len(answers)} test images {(right['teacher'] & ~right['student']).sum()} were"
            " right and become wrong" in output
        )
        assert "group" in output


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_without_a_folder_it_makes_small_runs_and_reads_those(name: str, tmp_path: Path) -> None:
    notebook = execute(
        read_without_outputs(name),
        tmp_path,
        KD_APP_OVERRIDES=(
            "debug=fdr teacher.name=resnet8 teacher.max_epochs=1 controls=[labels_only]"
        ),
    )
    assert trouble(notebook) == []
    assert decision(notebook)
    runs = kd_app.load_runs(tmp_path / "runs" / "notebooks")
    assert len(runs) >= 1
    assert set(runs["status"]) == {"finished"}


@every_notebook
def test_the_committed_notebook_shows_real_runs_and_ends_with_a_decision(name: str) -> None:
    committed = read(name)
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert len(figures(committed)) == FIGURES[name]
    assert all(is_drawn(figure) for figure in figures(committed))
    assert "runs/notebooks/" in words(committed)
    assert "**" in decision(committed)


@every_notebook
def test_the_committed_notebook_is_small_and_names_no_machine(name: str) -> None:
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LIMIT
    committed = read(name)
    assert trouble(committed) == []
    assert set(committed.metadata) == {"kernelspec", "language_info"}
