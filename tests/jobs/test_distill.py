"""Which splits a run measures, and which results kd-distill reuses."""

from pathlib import Path
from typing import Any

import pytest

from kd_app.config.compose import compose_config
from kd_app.jobs.distill import _read_results, find_results, select_splits
from kd_app.measurement.builder import SplitName
from kd_app.reporting.console import Console
from kd_app.reporting.results import write
from kd_app.specs.spec import RunSpec, build_spec
from tests.reporting import run_folders

SPLITS: dict[SplitName, str] = {"validation": "validation", "test": "test"}


@pytest.fixture(scope="module")
def spec() -> RunSpec:
    return build_spec(compose_config("distill", ["teacher.name=resnet8"]))


def find(folder: Path, spec: RunSpec, **changes: Any) -> bool:
    """Whether results with these changes are reused for `spec`."""
    license = spec.licenses.to_record()
    write(folder / "results.json", run_folders.build_results(**{"license": license, **changes}))
    return find_results(folder, spec, SPLITS, Console(silent=True)) is not None


@pytest.mark.parametrize(
    ("test", "trial", "has_test"),
    [
        ("auto", None, True),
        ("auto", 3, False),
        ("always", 3, True),
        ("never", None, False),
    ],
)
def test_a_trial_reads_test_only_with_always(test: str, trial: int | None, has_test: bool) -> None:
    splits = select_splits({"test": test}, trial)
    assert list(splits) == (["validation", "test"] if has_test else ["validation"])


def test_finished_results_with_all_measurements_are_reused(tmp_path: Path, spec: RunSpec) -> None:
    assert find(tmp_path, spec)


def test_results_are_not_reused_if_a_measurement_or_the_license_differs(
    tmp_path: Path, spec: RunSpec
) -> None:
    assert not find(tmp_path, spec, test=False)
    assert not find(tmp_path, spec, status="failed")
    assert not find(tmp_path, spec, license=None)
    assert not find(tmp_path, spec, config={"examples": spec.config["examples"] + 1})


def test_results_with_a_changed_file_are_not_reused(tmp_path: Path, spec: RunSpec) -> None:
    assert not find(tmp_path, spec, files=[{"name": "split.csv", "sha256": "ab"}])


def test_a_pruned_trial_stays_pruned_only_under_the_same_rules(
    tmp_path: Path, spec: RunSpec
) -> None:
    assert not find(tmp_path, spec, status="pruned")
    overrides = ["teacher.name=resnet8", "trial_pruning=median"]
    assert find(tmp_path, build_spec(compose_config("distill", overrides)), status="pruned")


def test_damaged_results_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "results.json", run_folders.build_results())
    assert _read_results(tmp_path, Console()) == run_folders.build_results()
    assert capsys.readouterr().out == ""
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    (tmp_path / "results.json").write_text(text.replace('"seed": ', '"seed": 1'), encoding="utf-8")
    assert _read_results(tmp_path, Console()) is None
    output = " ".join(capsys.readouterr().out.split())
    assert "has changed since kd_app wrote it" in output
    assert "This command writes it anew." in output


def test_truncated_results_are_not_reused(tmp_path: Path, spec: RunSpec) -> None:
    (tmp_path / "results.json").write_text('{"status": "fini')
    assert find_results(tmp_path, spec, {}, Console(silent=True)) is None
    assert find_results(tmp_path / "nowhere", spec, {}, Console(silent=True)) is None
