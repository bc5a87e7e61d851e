"""Values and gradients of the terms equal those of the original implementations."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.losses.golden_cases import CASES, DEVIATIONS, REGULAR
from tests.losses.golden_check import TOLERANCE, Golden, main
from tests.losses.golden_result import GoldenResult

EXCERPT = Path(__file__).with_name("golden")
GOLDEN = Golden(Path(os.environ.get("GOLDEN", EXCERPT)))


@pytest.mark.parametrize("case", [case for case in CASES | DEVIATIONS if case in GOLDEN.index])
def test_value_and_gradient_are_those_of_the_reference(case: str) -> None:
    off = GOLDEN.deviations(case, (CASES | DEVIATIONS)[case])
    assert {name: value for name, value in off.items() if not value <= TOLERANCE} == {}


@pytest.mark.parametrize("case", [case for case in DEVIATIONS if case in GOLDEN.index])
def test_what_a_reference_does_differently_is_not_what_the_term_does(case: str) -> None:
    result = REGULAR[case](GOLDEN.inputs(case))
    value = result.value if isinstance(result, GoldenResult) else result
    same_value = abs(value.item() / GOLDEN.index[case]["loss"] - 1) <= TOLERANCE
    assert not same_value or max(GOLDEN.deviations(case, REGULAR[case]).values()) > TOLERANCE


def test_every_deviation_has_the_regular_value_of_the_term() -> None:
    assert set(DEVIATIONS) == set(REGULAR)


def test_every_stored_case_belongs_to_a_term() -> None:
    assert set(Golden(EXCERPT).index) <= set(CASES) | set(DEVIATIONS)


def test_the_check_of_a_folder_reports_passed_and_not_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _folder(tmp_path, "kd_mdistiller_T4", "kd_hunto_T4", renamed="of_a_method_to_come")
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1 passed, 0 off, 1 not built" in out
    assert "of_a_method_to_come" in out


def test_the_check_of_a_folder_reports_a_deviation_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _folder(tmp_path, "kd_mdistiller_T4", "funmatch_bigvision_kl_t1")
    shutil.copy(EXCERPT / "funmatch_bigvision_kl_t1.npz", tmp_path / "kd_mdistiller_T4.npz")
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "1 passed, 1 off, 0 not built" in out
    assert "(loss)" in out or "(grad" in out


def test_a_folder_without_reference_values_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "make golden GOLDEN=" in capsys.readouterr().err


def _folder(to: Path, *cases: str, renamed: str | None = None) -> None:
    """Write a folder with some cases; with `renamed` the last one has a name that no
    term knows.
    """
    index = json.loads((EXCERPT / "index.json").read_text(encoding="utf-8"))
    index["cases"] = [case for case in index["cases"] if case["id"] in cases]
    for name in ("inputs", *cases):
        shutil.copy(EXCERPT / f"{name}.npz", to)
    if renamed is not None:
        next(case for case in index["cases"] if case["id"] == cases[-1])["id"] = renamed
        (to / f"{cases[-1]}.npz").rename(to / f"{renamed}.npz")
    (to / "index.json").write_text(json.dumps(index), encoding="utf-8")
