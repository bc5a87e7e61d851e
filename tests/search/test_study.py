"""A search proposes trials from the results in the trials' folders."""

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from kd_app.config import RequestError
from kd_app.reporting.results import write
from kd_app.search.study import Params, Search, SearchSettings, suggest_next
from kd_app.search.trials import FILE
from tests.reporting.run_folders import build_results

PLAIN = build_results()
SPACE: dict[str, BaseDistribution] = {
    "x": FloatDistribution(0.0, 10.0),
    "method": CategoricalDistribution(["a", "b"]),
}


def settings(**changed: Any) -> SearchSettings:
    plain = {
        "trials": 12,
        "sampler": "tpe",
        "seed": 0,
        "batch": 1,
        "objectives": {"selection": "maximize"},
    }
    return SearchSettings(**{**plain, **changed})


def score(params: Params) -> float:
    return 1 - abs(float(params["x"]) - 3) / 10 - (0.2 if params["method"] == "b" else 0)


def finish(
    out: Path, number: int, top1: float, *, status: str = "finished", macs: int = 1000
) -> None:
    content = PLAIN.model_copy(deep=True)
    content.status = status  # type: ignore[assignment]
    assert content.validation is not None
    content.validation.student.top1 = top1
    content.models["student"].macs = macs
    (out / str(number)).mkdir(parents=True, exist_ok=True)
    write(out / str(number) / "results.json", content)


def run(
    out: Path, space: dict[str, BaseDistribution] = SPACE, *, until: int = 1000, **changed: Any
) -> list[Params]:
    """Run the proposed trials until the search is killed before trial `until`; return
    the proposals.
    """
    search = Search(out, settings(**changed), space)
    for batch in search.iterate_batches():
        for number, params in batch:
            if number == until:
                return search.proposed
            finish(out, number, score(params))
    return search.proposed


def test_a_search_finds_good_settings(tmp_path: Path) -> None:
    tpe = run(tmp_path / "tpe", trials=20)
    assert len(tpe) == 20
    assert max(map(score, tpe)) > 0.95
    later, earlier = tpe[10:], tpe[:10]
    assert sum(map(score, later)) / len(later) > sum(map(score, earlier)) / len(earlier)


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_killed_search_resumes_with_the_same_trials(sampler: str, tmp_path: Path) -> None:
    space: dict[str, BaseDistribution] = {**SPACE, "x": IntDistribution(0, 5)}
    whole = run(tmp_path / "whole", space, sampler=sampler)
    for until in (0, 4, 11):
        run(tmp_path / "killed", space, sampler=sampler, until=until)
    assert run(tmp_path / "killed", space, sampler=sampler) == whole
    assert len(whole) == 12


def test_finished_trials_are_not_repeated_and_the_number_of_trials_may_grow(
    tmp_path: Path,
) -> None:
    run(tmp_path, trials=3)
    finish(tmp_path, 1, 0.1, status="failed")
    finish(tmp_path, 2, 0.1, status="pruned")
    assert [
        [number for number, _ in batch]
        for batch in Search(tmp_path, settings(trials=5, batch=4), SPACE).iterate_batches()
    ] == [[1], [3, 4]]


def test_a_grid_has_every_cell_once(tmp_path: Path) -> None:
    space: dict[str, BaseDistribution] = {
        "x": FloatDistribution(0.0, 0.5, step=0.25),
        "method": CategoricalDistribution(["a", "b"]),
    }
    cells = run(tmp_path, space, sampler="grid", trials=100)
    assert [(cell["x"], cell["method"]) for cell in cells] == [
        (0.0, "a"),
        (0.0, "b"),
        (0.25, "a"),
        (0.25, "b"),
        (0.5, "a"),
        (0.5, "b"),
    ]
    with pytest.raises(
        RequestError, match=r"hydra\.sweeper\.sampler=grid needs discrete values, but x has none"
    ):
        run(tmp_path / "none", SPACE, sampler="grid")


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path, trials=2)
    for changed in (
        {"seed": 1},
        {"sampler": "random"},
        {"objectives": {"models.student.macs": "minimize"}},
    ):
        with pytest.raises(RequestError, match="holds another search"):
            Search(tmp_path, settings(**changed), SPACE)
    with pytest.raises(RequestError, match="holds another search"):
        Search(tmp_path, settings(), {"y": FloatDistribution(0.0, 1.0)})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"search": 1}'])
def test_a_damaged_record_is_refused_and_not_changed(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=r"search\.json' can't be read.*move that file away"):
        Search(tmp_path, settings(), SPACE)
    assert (tmp_path / FILE).read_text(encoding="utf-8") == text


def test_two_objectives_give_a_pareto_front(tmp_path: Path) -> None:
    objectives = {"validation.student.top1": "maximize", "models.student.macs": "minimize"}
    search = Search(tmp_path, settings(objectives=objectives, trials=4), SPACE)
    for batch, (top1, macs) in zip(
        search.iterate_batches(), [(0.9, 100), (0.8, 200), (0.95, 300), (0.7, 50)], strict=True
    ):
        finish(tmp_path, batch[0][0], top1, macs=macs)
    assert suggest_next(tmp_path) == [
        "Trials that no other trial beats in all of validation.student.top1,"
        " models.student.macs: 0, 2, 3."
    ]


def test_suggestions_name_the_most_important_setting_and_wider_ranges(tmp_path: Path) -> None:
    space: dict[str, BaseDistribution] = {
        "x": FloatDistribution(3.0, 10.0),
        "y": FloatDistribution(0.0, 1.0),
        "method": CategoricalDistribution(["a", "b"]),
    }
    run(tmp_path, space, trials=15, sampler="random")
    text = " ".join(suggest_next(tmp_path))
    assert "is at the lower end of 3 to 10: also search below this range." in text
    assert "The most important setting in these 15 trials is x" in text
    assert suggest_next(tmp_path / "nowhere") == []


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    run(tmp_path, trials=2)
    content = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    assert list(content) == ["search", "proposed", "sha256"]
    assert [list(params) for params in content["proposed"]] == [["x", "method"]] * 2
