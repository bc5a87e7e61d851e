"""A search without Optuna is a wrong request."""

from pathlib import Path

import pytest

from kd_app.config import RequestError
from kd_app.search import trials
from kd_app.search.pruning import MedianPruner
from kd_app.search.trials import require_optuna


def test_a_search_without_optuna_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "find_spec", lambda _: None)
    with pytest.raises(RequestError, match=r"pip install 'kd_app\[search\]'"):
        require_optuna()
    with pytest.raises(RequestError, match="optuna, which is not installed"):
        MedianPruner(tmp_path, 0)
