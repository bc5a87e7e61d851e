"""The size of a teacher cache, and the views that fit into a budget."""

from pathlib import Path

import pytest

from kd_app.config import RequestError
from kd_app.run.cache_plan import CachePlan, choose_max_views
from kd_app.teacher_outputs.format import Int8Format, TopTenFormat
from tests.builders import build_workspace, teacher_folder

PLAN = CachePlan(TopTenFormat(1000), views=4, images=1_000_000)
CACHED = ("teacher.outputs=cached", "controls=[]", "data.views=5", "trainer.max_epochs=4")


def test_the_size_is_that_of_the_rows() -> None:
    assert PLAN.size == 44 * 4 * 1_000_000
    assert PLAN.describe() == "top10, 44 bytes a view, 4 views of 1,000,000 images, 0.18 GB"


def test_as_many_views_are_used_as_fit() -> None:
    assert choose_max_views(PLAN, 0.1) == 2
    with pytest.raises(RequestError, match=r"cache_gb=0.01 is too little .* takes 0.044 GB"):
        choose_max_views(PLAN, 0.01)


def test_only_views_that_an_epoch_shows_are_planned(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "teacher")
    workspace = build_workspace(tmp_path, f"teacher.checkpoint={folder}", *CACHED)
    plan = workspace.cache_plan
    assert plan is not None
    assert (plan.format.name, plan.views, plan.images) == ("exact", 4, 1295)
    assert workspace.max_views is None
    live = build_workspace(tmp_path, f"teacher.checkpoint={folder}", "data.views=5")
    assert live.cache_plan is None


def test_views_are_used_in_turn_within_a_budget(tmp_path: Path) -> None:
    folder = teacher_folder(tmp_path / "teacher")
    words = (f"teacher.checkpoint={folder}", *CACHED, "teacher.cache=int8")
    bytes_a_view = Int8Format(10).bytes_per_view * 1295
    workspace = build_workspace(tmp_path, *words, f"teacher.cache_gb={2.9 * bytes_a_view / 1e9}")
    plan = workspace.cache_plan
    assert plan is not None
    assert (workspace.max_views, plan.views, plan.size) == (2, 2, 2 * bytes_a_view)
    # the controls see the same views
    assert workspace.data.describe_identity(for_teacher=False)["views"] == 2
    with pytest.raises(RequestError, match="too little for one view of 1,295 images"):
        build_workspace(tmp_path, *words, "teacher.cache_gb=1e-5")
