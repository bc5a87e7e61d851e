"""A loss term of somebody's own: one .py and one .yaml in a folder outside the package,
as docs/extending.md shows it.
"""

import csv
import re
import sys
from pathlib import Path

import pytest

from tests.commands.call import TINY, call

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
(MODULE,) = (
    block
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    if "class LogitGap" in block
)
(CHOICE,) = (
    block
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    if "mine.logit_gap.LogitGap" in block
)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``mine/logit_gap.py`` and ``conf/loss/logit_gap.yaml`` below a folder that Python
    looks into.
    """
    for path, text in (
        ("mine/__init__.py", ""),
        ("mine/logit_gap.py", MODULE),
        ("conf/loss/logit_gap.yaml", CHOICE),
    ):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_kd_distill_trains_with_it_by_name_and_its_settings_are_checked_like_ours(
    mine: Path,
) -> None:
    words = [
        f"hydra.searchpath=[file://{mine / 'conf'}]",
        "loss=[cross_entropy,logit_gap]",
        *TINY,
        "controls=[]",
        "out=run",
    ]
    result = call(*words, "loss.logit_gap.power=1")
    assert (result.code, result.err) == (0, "")
    rows = list(csv.DictReader(Path("run/metrics.csv").read_text(encoding="utf-8").splitlines()))
    assert any(float(row["train/logit_gap"] or 0) > 0 for row in rows)
    wrong = call(*words, "loss.logit_gap.power=much")
    assert wrong.code == 2
    assert "power='much'" in wrong.err
